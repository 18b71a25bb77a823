"""Training steps compile ahead of time for local devices and absent slices; costs are counted."""

import collections
import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from configs import pretrain as recipes
from tests.helpers.pretrain_case import shrunk
from vlbert_jax.model.resnet import tiled_convolution
from vlbert_jax.tasks.pretrain import task as pretrain
from vlbert_jax.training import compile_ahead, sharding

PRETRAIN = pretrain.PretrainTask()

FIELDS = {"batch_size": 32, "data.max_mlm_targets": 4}


def test_local_devices():
    """Memory, FLOP and collectives equal values computed by hand; no data are required.

    The peak performance of a CPU is unknown, so no time is predicted.
    """
    config = shrunk("base_prec", "nowhere", **FIELDS)
    found = compile_ahead.compile_step(config, PRETRAIN, jax.devices())
    assert found.mesh == dict(data=8, fsdp=1, tensor=1) and found.fits
    trained = 4 * parameters(config)
    assert 3 * trained < found.memory["state"] < 3.1 * trained  # parameters and two moments
    assert found.memory["temporary"] > 0 and found.needed == sum(found.memory.values())
    table = 4 * 384 * 16  # bytes of token embeddings; gradients of their two uses are reduced separately
    assert set(found.collectives) == {"all-reduce"} and trained <= found.reduced < trained + 1.1 * table
    b, s, width, mlp, layers = 16, 25, 16, 32, 2
    encoder = layers * 2 * b * 2 * s * (4 * width**2 + 2 * width * mlp + 2 * s * width)
    regions = 2 * b * 7 * (2048 + 12) * width
    words = 2 * b * 2 * 4 * (width * 384 + width**2)
    classes = 2 * b * 4 * (width * 81 + width**2)
    # Each forward product has two products in the backward pass.
    assert found.flops == found.executed_flops == 3 * (encoder + regions + words + classes)
    lines = "\n".join(compile_ahead.described(found, config, config.total_steps))
    assert "8 x cpu, data 8 x fsdp 1 x tensor 1" in lines and "time         no prediction" in lines


def parameters(config):
    model = jax.eval_shape(lambda: nnx.state(PRETRAIN.build_model(config, nnx.Rngs(0))))
    return sum(x.size for x in jax.tree.leaves(model))


def test_batches_and_slices_that_do_not_divide():
    config = shrunk("base_prec", "nowhere", batch_size=24)
    with pytest.raises(ValueError, match="12 examples per host do not divide among 8 devices"):
        compile_ahead.compile_step(config, PRETRAIN, jax.devices())
    with pytest.raises(ValueError, match="num_slices is 2 without a config.topology"):
        compile_ahead.devices_of("", 2)


@pytest.mark.parametrize("topology", ["v9:2x2", "v5e", "v5e:16", "v5e:axb", "v4:4x4x4x4"])
def test_unknown_topologies(topology):
    with pytest.raises(ValueError, match="a topology is one of v4, v5e, v5p, v6e, a colon"):
        compile_ahead.devices_of(topology, 1)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_a_missing_compiler_is_reported():
    with pytest.raises(ValueError, match="for v5e:2x4 requires libtpu, which is not installed: pip install"):
        compile_ahead.devices_of("v5e:2x4", 1)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="requires the extra `tpu`")
def test_absent_slices():
    """Two slices are consecutive along `data`; the step fits the chip and its time is predicted."""
    with pytest.raises(ValueError, match="3x5.* is not divisible"):
        compile_ahead.devices_of("v5e:3x5", 1)
    devices = compile_ahead.devices_of("v5e:2x2", 2)
    config = shrunk("base_prec", "nowhere", **FIELDS)
    mesh = sharding.make_mesh(config.mesh, devices)
    assert [device.slice_index for device in mesh.devices.flat] == 4 * [0] + 4 * [1]
    config.mesh.data, config.mesh.fsdp = 1, 8
    with pytest.raises(ValueError, match="mesh.data=1 does not divide among 2 slices"):
        sharding.make_mesh(config.mesh, devices)
    config.mesh.data, config.mesh.fsdp = 2, 4
    found = compile_ahead.compile_step(config, PRETRAIN, devices)
    assert found.fits and found.chip is compile_ahead.CHIPS["v5e"] and found.collectives["all-gather"] > 10
    assert found.step_seconds == pytest.approx(found.flops / (8 * 197e12 * 0.4))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="requires the extra `tpu`")
def test_hosts_with_eight_chips():
    for topology, slices in (("v5e:2x4", 1), ("v6e:2x4", 2)):
        devices = compile_ahead.devices_of(topology, slices)
        assert len(devices) == 8 * slices and len({device.process_index for device in devices}) == slices
        mesh = sharding.make_mesh(ml_collections.ConfigDict(dict(data=-1, fsdp=1, tensor=8)), devices)
        assert mesh.shape["data"] == slices


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="requires the extra `tpu`")
@pytest.mark.parametrize(
    "topology, slices",
    [("v5e:4x4", 1), ("v5e:16x16", 1), ("v6e:4x4", 1), ("v4:4x4x4", 1), ("v5p:4x4x4", 1), ("v5e:4x4", 2)],
)
def test_rows_of_a_batch_are_ordered_by_host(topology, slices):
    """Rows are in the order in which hosts read them, for every shape of a slice.

    `tensor` stays within a host, and `fsdp` within a slice.
    """
    devices = compile_ahead.devices_of(topology, slices)
    assert len({device.process_index for device in devices}) == len(devices) // 4
    for fsdp, tensor in ((1, 1), (1, 4), (2, 2), (8, 1), (4, 2)):
        sizes = ml_collections.ConfigDict(dict(data=-1, fsdp=fsdp, tensor=tensor))
        mesh = sharding.make_mesh(sizes, devices)
        hosts = np.vectorize(lambda device: device.process_index)(mesh.devices).reshape(-1, tensor)
        np.testing.assert_array_equal(hosts, hosts[:, :1].repeat(tensor, axis=1))
        np.testing.assert_array_equal(hosts[:, 0], np.arange(len(hosts)) * tensor // 4)
        for group in mesh.devices.reshape(mesh.shape["data"], -1):
            assert len({getattr(device, "slice_index", 0) for device in group}) == 1
    with pytest.raises(ValueError, match="mesh.tensor=8 does not divide the 4 devices of each host"):
        sharding.make_mesh(ml_collections.ConfigDict(dict(data=-1, fsdp=1, tensor=8)), devices)


def test_remedies_when_memory_does_not_fit():
    config = recipes.large_e2e()
    found = compile_ahead.Compiled(
        devices=8,
        kind="TPU v5 lite",
        mesh=dict(data=8, fsdp=1, tensor=1),
        memory=dict(state=2**34, batch=0, temporary=2**33, program=0),
        needed=3 * 2**33,
        flops=1e15,
        executed_flops=1e15,
        collectives=collections.Counter({"all-reduce": 2}),
        reduced=10**9,
    )
    assert not found.fits and dataclasses.replace(found, needed=2**34).fits
    local = dataclasses.replace(found, kind="NVIDIA H200", limit=2**34)
    assert not local.fits and dataclasses.replace(local, limit=2**35).fits and dataclasses.replace(local, limit=0).fits
    lines = "\n".join(compile_ahead.described(found, config, config.total_steps))
    assert "24.00 of 16 GiB per device" in lines and "all-reduce 2 per update" in lines
    seconds = 1e15 / (8 * 197e12 * 0.4)
    assert f"predicted {seconds:.3g} s" in lines and f"{seconds * 250_000 / 3600:.3g} hours of these devices" in lines
    proposed = " ".join(compile_ahead.remedies(found, config, 128))
    for field in ("grad_accumulation_steps=4", "mesh.fsdp=8 (", "region_head.remat=True", "encoder.remat=full"):
        assert field in proposed
    config.mesh.data, config.num_slices = 8, 2  # each slice holds all parameters
    assert "mesh.fsdp=4 --config.mesh.data=2 (" in "".join(compile_ahead.remedies(found, config, 128))
    config.model.encoder.remat, config.model.region_head.remat, config.grad_accumulation_steps = "full", True, 8
    divided = dataclasses.replace(found, mesh=dict(data=1, fsdp=8, tensor=1))
    left = "".join(compile_ahead.remedies(divided, config, 128))
    assert left.startswith("--config.grad_accumulation_steps=16a smaller --config.batch_size")
    config.grad_accumulation_steps = 16  # one image per device and micro-batch, so no further division
    assert "".join(compile_ahead.remedies(divided, config, 128)).startswith("a smaller --config.batch_size")


def test_flops_of_loops_branches_and_devices():
    """A product of [4, 8] and [8, 16] has 1024 FLOP, also in loops, branches and shard_map."""
    x, w = jnp.ones((4, 8)), jnp.ones((8, 16))

    def count(function, *args):
        return compile_ahead.matmul_flops(jax.make_jaxpr(function)(*args).jaxpr)

    assert count(jnp.matmul, x, w) == 1024
    assert count(lambda x, w: jax.lax.scan(lambda c, _: (c, x @ w), 0, length=5), x, w) == 5 * 1024
    assert count(lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: (x @ w).sum(), lambda: 0.0), x, w) == 1024
    convolution = jax.lax.conv_general_dilated
    image, kernel = jnp.ones((1, 3, 6, 6)), jnp.ones((5, 3, 3, 3))
    assert count(lambda a, b: convolution(a, b, (1, 1), "SAME"), image, kernel) == 2 * 5 * 36 * 27
    # The gradients of a convolution compute two more, and not the convolution itself again. The tiles of a CPU, which
    # need fewer products, do not count.
    image, kernel = jnp.ones((1, 16, 16, 128)), jnp.ones((3, 3, 128, 128))
    gradients = jax.value_and_grad(lambda a, b: tiled_convolution(a, b, 1).sum(), argnums=(0, 1))
    direct = 2 * 16 * 16 * 128 * 9 * 128
    assert count(functools.partial(tiled_convolution, dilation=1), image, kernel) == direct
    assert count(gradients, image, kernel) == 3 * direct
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        own = jax.shard_map(jnp.matmul, in_specs=(jax.P("data"), jax.P()), out_specs=jax.P("data"))
        assert count(own, jnp.ones((32, 8)), w) == 8 * 1024


PROGRAM = """
%cond (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %all-reduce.3 = (bf16[8,4]{1,0:T(8,128)(2,1)}, f32[]) all-reduce(%a, %b), to_apply=%add
  %ag = bf16[16]{0} all-gather-start(%c), dimensions={0}
  %agd = bf16[16]{0} all-gather-done(%ag)
}

ENTRY %main.2_spmd (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%t), condition=%cond, body=%body.1
  %v = (s32[], f32[8]) while(%t), condition=%other, body=%body.1, backend_config={"known_trip_count":{"n":"2"}}
  ROOT %all-reduce.4 = f32[10,10]{1,0} all-reduce(%x), to_apply=%add
}
"""


def test_collectives_in_loops_count_each_iteration():
    counts, reduced = compile_ahead.count_collectives(PROGRAM)
    assert counts == {"all-reduce": 15, "all-gather": 14}
    assert reduced == 14 * (8 * 4 * 2 + 4) + 400


def test_collectives_of_a_real_loop():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.device_put(np.ones((8, 3), np.float32), jax.NamedSharding(mesh, jax.P("data")))

    def run(x):
        return jax.lax.scan(lambda c, _: (c + jnp.sin(c * x).sum(0), None), jnp.ones(3), length=7)[0]

    with jax.numpy_rank_promotion("allow"):
        counts, reduced = compile_ahead.count_collectives(jax.jit(run).lower(rows).compile().as_text())
    assert counts == {"all-reduce": 7} and reduced == 7 * 3 * 4
