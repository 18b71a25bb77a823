"""Meshes: the same loss and gradients on any, the state divided over fsdp, what the compiled programs send about.

Compiling takes seconds per program: every mesh and every recipe is here once or twice. VLBERT_ALL_MESHES=1 takes all
pairs of them.
"""

import functools
import math
import os
import re

import jax
import ml_collections
import numpy as np
import pytest

from configs import pretrain as recipes
from data_prep.build import build_scene_tasks, build_scenes
from tests.helpers import pretrain_case, vcr_case
from tests.helpers.batch_case import fields_of
from vlbert_jax.data.streams import even_order, stacked_evenly
from vlbert_jax.tasks import get_task
from vlbert_jax.training import compile_ahead, optimizer, sharding
from vlbert_jax.training.state import create_state
from vlbert_jax.training.step import jitted_step

MESHES = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2)]
PAIRS = [("vcr", (8, 1, 1)), ("e2e", (1, 8, 1)), ("precomputed", (2, 4, 1)), ("e2e", (2, 2, 2))]
if os.environ.get("VLBERT_ALL_MESHES"):
    PAIRS = [(name, sizes) for name in ("e2e", "precomputed", "vcr") for sizes in MESHES]
SMALL = {
    "optimizer.name": "sgd",  # its momentum after one update is the gradient
    "optimizer.weight_decay": 0.0,
    "optimizer.clip_norm": 0.0,
    "model.encoder.text_visual_gain_init": 0.5,
    "model.encoder.region_visual_gain_init": 0.5,
    "model.region_head.widths": (8, 8, 8, 8),  # divide by eight, so that they are divided
    "model.region_head.stem_width": 8,
}


def make_mesh(*sizes):
    config = ml_collections.ConfigDict(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))
    return sharding.make_mesh(config, jax.devices()[: math.prod(sizes)])


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Recipe -> its config, shrunk: two layers, a batch of eight images."""
    folder = tmp_path_factory.mktemp("data")
    build_scenes(
        folder, num_train=40, num_val=20, num_train_stories=20, num_val_stories=8, feature_width=pretrain_case.FEATURES
    )
    build_scene_tasks(folder, num_train=20, num_val=10, num_test=4)
    return {
        "e2e": pretrain_case.shrunk("base_e2e", folder, batch_size=16, **SMALL),
        "precomputed": pretrain_case.shrunk("base_prec", folder, batch_size=16, **SMALL),
        "vcr": vcr_case.shrunk("q2a_base", folder, batch_size=8, **SMALL, **{"model.encoder.num_layers": 2}),
    }


def update(config, mesh, start=None):
    """One update, dropout on: (state before, metrics, gradients, the program's text, what creating the state took)."""
    task, memory = get_task(config.task), None
    tx = optimizer.make_optimizer(config.optimizer, optimizer.learning_rate_schedule(config))
    graphdef, abstract, shardings, create = create_state(config, task, tx, mesh)
    if start is None:
        create = create.lower().compile()
        memory, state = create.memory_analysis(), create()
        start = jax.device_get(state)
    else:
        state = jax.device_put(start, shardings)
    static = dict(graphdef=graphdef, task=task, config=config, tx=tx, mesh=mesh, shardings=shardings)
    step = jitted_step(task.active_losses(config, 0), **static)
    with jax.set_mesh(mesh):
        batch = sharding.global_batch(next(task.train_batches(config, 0, 0, 1)), mesh)
        program = step.lower(state, batch).compile()
        state, report = program(state, batch)
    report = {name: float(value) / float(count) for name, (value, count) in report.items() if count}
    return start, report, jax.device_get(state.opt_state), program.as_text(), memory


@pytest.fixture(scope="module")
def alone(configs):
    """Recipe -> its update on one device."""
    return functools.cache(lambda name: update(configs[name], make_mesh(1, 1, 1)))


@pytest.mark.parametrize("name, sizes", PAIRS, ids=str)
def test_the_mesh_changes_neither_loss_nor_gradients(name, sizes, configs, alone):
    """To 1e-5 of each metric, and of the largest entry of each gradient: float32 sums in another order."""
    start, expected, gradients, _, _ = alone(name)
    divided = sizes == (1, 8, 1)
    ours, report, mine, program, memory = update(configs[name], make_mesh(*sizes), None if divided else start)
    assert report.keys() == expected.keys()
    np.testing.assert_allclose(*zip(*((report[x], expected[x]) for x in report), strict=True), rtol=1e-5)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(gradients))
    assert largest > 1e-3
    for other, (path, gradient) in zip(
        jax.tree.leaves(mine), jax.tree_util.tree_leaves_with_path(gradients), strict=True
    ):
        # That of the keys' bias is zero but for rounding: softmax does not feel it.
        scale = max(np.abs(gradient).max(), 1e-3 * largest)
        np.testing.assert_allclose(other, gradient, rtol=0, atol=1e-5 * scale, err_msg=jax.tree_util.keystr(path))
    kinds, _ = compile_ahead.count_collectives(program)
    if sizes == (8, 1, 1):
        assert set(kinds) == {"all-reduce"}
    if divided:
        jax.tree.map(np.testing.assert_array_equal, ours, start)  # drawn alike on any mesh
        whole = sum(x.nbytes for x in jax.tree.leaves(start))
        assert memory.output_size_in_bytes + memory.temp_size_in_bytes < whole / 3
        assert set(kinds) <= {"all-reduce", "all-gather", "reduce-scatter"}
        gathered = re.findall(r" = \w+\[([\d,]*)\]\S* all-gather", program)
        # Parameters are collected, one layer at a time; activations stay where their examples are.
        arrays = jax.tree.leaves((start.params, start.constants))
        parameters = {_sides(x.shape[layers:]) for x in arrays for layers in (0, 1)}
        assert len(gathered) > 10
        assert {_sides(map(int, sides.split(","))) for sides in gathered} <= parameters


def _sides(shape):
    """A shape in any order of its axes."""
    return tuple(sorted(side for side in shape if side > 1))


@pytest.fixture(scope="module")
def base():
    """The abstract state of base_e2e in its real sizes."""
    config = recipes.base_e2e()
    tx = optimizer.make_optimizer(config.optimizer, optimizer.learning_rate_schedule(config))
    return create_state(config, get_task("pretrain"), tx, make_mesh(1, 1, 1))[1]


def test_bytes_per_device_fall_with_fsdp(base):
    """Parameters, moments and constants of base_e2e; what stays whole is small."""
    whole = sharding.bytes_per_device(base, sharding.tree_shardings(base, make_mesh(1, 1, 1)))
    assert whole == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(base))
    for fsdp in (2, 4, 8):
        shardings = sharding.tree_shardings(base, make_mesh(8 // fsdp, fsdp, 1))
        assert whole / fsdp <= sharding.bytes_per_device(base, shardings) < 1.01 * whole / fsdp
        for array, place in zip(jax.tree.leaves(base), jax.tree.leaves(shardings), strict=True):
            assert array.size < 40_000 or math.prod(place.shard_shape(array.shape)) * fsdp == array.size, array


def test_regions_are_dealt_evenly_among_devices():
    """Real regions per device: at random the fullest has a sixth more than the mean, dealt out a fiftieth."""
    rng = np.random.default_rng(0)
    worst = {True: [], False: []}
    for _ in range(20):
        counts = rng.integers(10, 102, 128)
        dealt = even_order(counts)
        assert sorted(dealt) == list(range(128))
        for order, even in ((np.arange(128), False), (dealt, True)):
            per_device = counts[order].reshape(8, 4, 4)  # a device's rows, as `sharding.cut` takes them: (rows, parts)
            worst[even].append([per_device.sum((1, 2)).max() / per_device.sum((1, 2)).mean()])
            worst[even][-1] += list(per_device.sum(1).max(0) / per_device.sum(1).mean(0))
    assert np.mean(worst[False], axis=0)[0] > 1.1 and np.mean(worst[True], axis=0)[0] < 1.02
    assert np.mean(worst[True]) < 1.05 < 1.2 < np.mean(worst[False])
    assert list(even_order([5])) == [0] and sorted(even_order([1, 1, 1])) == [0, 1, 2]


def test_dealt_by_hand():
    """The heaviest and the fourth, the fifth and the eighth to one half; then within each half. Without pixels, not."""
    counts = [3, 8, 1, 6, 2, 7, 5, 4]
    examples = [dict(region_mask=np.arange(9) < count, index=np.int32(count)) for count in counts]
    assert stacked_evenly(examples)["index"].tolist() == counts
    pixels = [dict(example, pixels=np.uint8(example["index"])) for example in examples]
    dealt = stacked_evenly(pixels)
    assert dealt["index"].tolist() == [8, 1, 5, 4, 7, 2, 6, 3]  # quarters, and every other row of a half, hold 9
    np.testing.assert_array_equal(dealt["pixels"], dealt["index"])
    np.testing.assert_array_equal(dealt["region_mask"].sum(1), dealt["index"])


def test_batches_with_pixels_are_dealt_out(configs):
    """What a row holds of its image moves as one."""
    plain = configs["e2e"].copy_and_resolve_references()
    plain.data.even_regions = False
    drawn, dealt = (next(get_task("pretrain").train_batches(config, 0, 0, 1)) for config in (plain, configs["e2e"]))
    order = even_order(drawn.region_mask.sum(1))
    assert list(order) != sorted(order)
    for name in ("pixels", "boxes", "region_mask"):
        np.testing.assert_array_equal(getattr(dealt, name), getattr(drawn, name)[order])
    np.testing.assert_array_equal(dealt.token_ids[:, 0], drawn.token_ids[order, 0])


@pytest.mark.parametrize("name", ["e2e", "precomputed", "vcr"])
def test_shapes_are_known_without_data(name, configs):
    config = configs[name].copy_and_resolve_references()
    config.data.one_orientation = False
    task = get_task(config.task)
    for caffe_resize in {False, config.data.features == "image"}:
        config.data.caffe_resize = caffe_resize
        assert shapes(task.batch_shapes(config)) == shapes(next(task.train_batches(config, 0, 0, 1)))


def shapes(batch):
    return {name: (x.shape, x.dtype) for name, x in fields_of(batch).items()}
