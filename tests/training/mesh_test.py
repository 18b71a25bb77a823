"""Loss and gradients do not depend on the mesh, fsdp divides the state, and collectives are few.

Compilation takes seconds per program, so every mesh and every recipe occurs only once or twice.
VLBERT_ALL_MESHES=1 selects all pairs of them.
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
    "model.region_head.widths": (8, 8, 8, 8),  # divisible by eight, so fsdp=8 divides them
    "model.region_head.stem_width": 8,
}


def make_mesh(*sizes):
    config = ml_collections.ConfigDict(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))
    return sharding.make_mesh(config, jax.devices()[: math.prod(sizes)])


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Return the config of each recipe, shrunk to two layers and a batch of eight images."""
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
    """Run one update with dropout.

    Returns:
        The state before the update, the metrics, the gradients, the text of the compiled program,
        and the memory analysis of the state's creation (None if `start` is given).
    """
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
    """Return a function from the name of a recipe to its update on one device."""
    return functools.cache(lambda name: update(configs[name], make_mesh(1, 1, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("name, sizes", PAIRS, ids=str)
def test_the_mesh_changes_neither_loss_nor_gradients(name, sizes, configs, alone):
    """Metrics and gradients on a mesh equal those on one device.

    The tolerance is 1e-5 of each metric and of the largest entry of each gradient, because float32
    sums have another order.
    """
    start, expected, gradients, _, _ = alone(name)
    divided = sizes == (1, 8, 1)
    before, report, found, program, memory = update(configs[name], make_mesh(*sizes), None if divided else start)
    assert report.keys() == expected.keys()
    np.testing.assert_allclose(*zip(*((report[x], expected[x]) for x in report), strict=True), rtol=1e-5)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(gradients))
    assert largest > 1e-3
    for other, (path, gradient) in zip(
        jax.tree.leaves(found), jax.tree_util.tree_leaves_with_path(gradients), strict=True
    ):
        # Softmax is invariant to the bias of the keys, so the gradient of that is rounding error.
        scale = max(np.abs(gradient).max(), 1e-3 * largest)
        np.testing.assert_allclose(other, gradient, rtol=0, atol=1e-5 * scale, err_msg=jax.tree_util.keystr(path))
    kinds, _ = compile_ahead.count_collectives(program)
    if sizes == (8, 1, 1):
        assert set(kinds) == {"all-reduce"}
    if divided:
        jax.tree.map(np.testing.assert_array_equal, before, start)  # initial values do not depend on the mesh
        whole = sum(x.nbytes for x in jax.tree.leaves(start))
        assert memory.output_size_in_bytes + memory.temp_size_in_bytes < whole / 3
        assert set(kinds) <= {"all-reduce", "all-gather", "reduce-scatter"}
        gathered = re.findall(r" = \w+\[([\d,]*)\]\S* all-gather", program)
        # Parameters are gathered one layer at a time; activations are not gathered.
        arrays = jax.tree.leaves((start.params, start.constants))
        parameters = {_sides(x.shape[layers:]) for x in arrays for layers in (0, 1)}
        assert len(gathered) > 10
        assert {_sides(map(int, sides.split(","))) for sides in gathered} <= parameters


def _sides(shape):
    """Return the sorted sizes of a shape's axes, without those of size 1."""
    return tuple(sorted(side for side in shape if side > 1))


@pytest.fixture(scope="module")
def base():
    """Return the abstract state of base_e2e in its real sizes."""
    config = recipes.base_e2e()
    tx = optimizer.make_optimizer(config.optimizer, optimizer.learning_rate_schedule(config))
    return create_state(config, get_task("pretrain"), tx, make_mesh(1, 1, 1))[1]


def test_bytes_per_device_fall_with_fsdp(base):
    """fsdp divides parameters, moments and constants of base_e2e, except small arrays."""
    whole = sharding.bytes_per_device(base, sharding.tree_shardings(base, make_mesh(1, 1, 1)))
    assert whole == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(base))
    for fsdp in (2, 4, 8):
        shardings = sharding.tree_shardings(base, make_mesh(8 // fsdp, fsdp, 1))
        assert whole / fsdp <= sharding.bytes_per_device(base, shardings) < 1.01 * whole / fsdp
        for array, place in zip(jax.tree.leaves(base), jax.tree.leaves(shardings), strict=True):
            assert array.size < 40_000 or math.prod(place.shard_shape(array.shape)) * fsdp == array.size, array


def test_regions_are_balanced_among_devices():
    """The largest number of real regions on a device is close to the mean.

    It exceeds the mean by less than 2 %; in random order it exceeds it by more than 10 %.
    """
    rng = np.random.default_rng(0)
    worst = {True: [], False: []}
    for _ in range(20):
        counts = rng.integers(10, 102, 128)
        balanced = even_order(counts)
        assert sorted(balanced) == list(range(128))
        for order, even in ((np.arange(128), False), (balanced, True)):
            per_device = counts[order].reshape(8, 4, 4)  # (device, row, micro-batch), as in `sharding.cut`
            worst[even].append([per_device.sum((1, 2)).max() / per_device.sum((1, 2)).mean()])
            worst[even][-1] += list(per_device.sum(1).max(0) / per_device.sum(1).mean(0))
    assert np.mean(worst[False], axis=0)[0] > 1.1 and np.mean(worst[True], axis=0)[0] < 1.02
    assert np.mean(worst[True]) < 1.05 < 1.2 < np.mean(worst[False])
    assert list(even_order([5])) == [0] and sorted(even_order([1, 1, 1])) == [0, 1, 2]


def test_balanced_order_by_hand():
    """Halves and quarters of a batch with pixels have equal numbers of regions.

    A batch without pixels keeps its order.
    """
    counts = [3, 8, 1, 6, 2, 7, 5, 4]
    examples = [dict(region_mask=np.arange(9) < count, index=np.int32(count)) for count in counts]
    assert stacked_evenly(examples)["index"].tolist() == counts
    pixels = [dict(example, pixels=np.uint8(example["index"])) for example in examples]
    balanced = stacked_evenly(pixels)
    # Each quarter has 9 regions. Alternate rows have equal sums in both halves.
    assert balanced["index"].tolist() == [8, 1, 5, 4, 7, 2, 6, 3]
    np.testing.assert_array_equal(balanced["pixels"], balanced["index"])
    np.testing.assert_array_equal(balanced["region_mask"].sum(1), balanced["index"])


def test_batches_with_pixels_are_balanced(configs):
    """All fields of an image move to the same row."""
    plain = configs["e2e"].copy_and_resolve_references()
    plain.data.even_regions = False
    pair = (plain, configs["e2e"])
    original, balanced = (next(get_task("pretrain").train_batches(config, 0, 0, 1)) for config in pair)
    order = even_order(original.region_mask.sum(1))
    assert list(order) != sorted(order)
    for name in ("pixels", "boxes", "region_mask"):
        np.testing.assert_array_equal(getattr(balanced, name), getattr(original, name)[order])
    np.testing.assert_array_equal(balanced.token_ids[:, 0], original.token_ids[order, 0])


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
