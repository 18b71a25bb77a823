import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from tests.helpers import toy_task
from vlbert_jax.training import optimizer, sharding
from vlbert_jax.training.state import create_state


def make_mesh(data=-1, fsdp=1, tensor=1):
    return sharding.make_mesh(ml_collections.ConfigDict(dict(data=data, fsdp=fsdp, tensor=tensor)))


@pytest.mark.parametrize(
    "sizes, shape", [((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((1, 4, 2), (1, 4, 2))]
)
def test_mesh(sizes, shape):
    mesh = make_mesh(*sizes)
    assert tuple(mesh.shape.values()) == shape and mesh.axis_names == ("data", "fsdp", "tensor")


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (0, 1, 1), (16, 1, 1), (-1, 16, 1)])
def test_impossible_mesh(sizes):
    with pytest.raises(ValueError, match="do not fit 8 devices"):
        make_mesh(*sizes)


@pytest.mark.parametrize(
    "axes, shape, spec",
    [
        (("embed", "mlp"), (8, 16), P("fsdp", "tensor")),
        (("embed", "mlp"), (3, 8, 16), P(None, "fsdp", "tensor")),  # stacked layers
        (("vocab", "embed"), (128, 6), P("tensor", "fsdp")),
        (("vocab", "embed"), (127, 5), P(None, None)),  # not divisible
        (("embed", "embed"), (8, 8), P("fsdp", None)),  # a mesh axis is used once
        ((None, None, "conv_in", "conv_out"), (3, 3, 8, 8), P(None, None, None, "fsdp")),
        ((), (), P()),
    ],
)
def test_partition_spec(axes, shape, spec):
    assert sharding.partition_spec(axes, shape, make_mesh(2, 2, 2)) == spec


def test_unknown_axis():
    with pytest.raises(ValueError, match="'emded'"):
        sharding.partition_spec(("emded",), (8,), make_mesh())


def test_moments_have_the_shardings_of_their_parameters():
    mesh = make_mesh(1, 4, 2)
    params = nnx.State(
        {"w": nnx.Param(jnp.zeros((8, 16)), axes=("embed", "mlp")), "b": nnx.Param(jnp.zeros(3))}
    )
    state = jax.eval_shape(optax.adam(1.0).init, params)
    places = sharding.tree_shardings((params, state), mesh)
    specs = [place.spec for place in jax.tree.leaves(places)]
    count, rest = specs[2], specs[:2] + specs[3:]
    assert count == P() and rest == 3 * [P(None), P("fsdp", "tensor")]


def test_global_batch_keeps_the_order_of_rows():
    mesh = make_mesh(2, 2, 2)
    rows = np.arange(8 * 3).reshape(8, 3)
    placed = sharding.global_batch({"x": rows, "absent": None}, mesh)
    np.testing.assert_array_equal(placed["x"], rows)
    assert placed["x"].sharding.spec == P(("data", "fsdp")) and placed["absent"] is None
    assert {shard.data.shape for shard in placed["x"].addressable_shards} == {(2, 3)}


def test_batch_that_does_not_divide():
    with pytest.raises(ValueError, match="6 examples per host do not divide among 8 devices"):
        sharding.global_batch({"x": np.zeros((6, 3))}, make_mesh())


def test_cut_that_does_not_divide():
    batch = sharding.global_batch({"x": np.zeros((8, 2))}, make_mesh())
    with pytest.raises(ValueError, match="8 examples do not divide into 2 micro-batches on 8 devices"):
        sharding.cut(batch, 2, make_mesh())


def test_cut_keeps_rows_on_their_device():
    """Each row is in one micro-batch, and the cut requires no communication."""
    mesh = make_mesh(4, 2, 1)
    batch = sharding.global_batch({"x": np.arange(32.0).reshape(16, 2)}, mesh)
    cut = jax.jit(lambda b: sharding.cut(b, 2, mesh))
    parts = cut(batch)["x"]
    assert parts.shape == (2, 8, 2)
    np.testing.assert_array_equal(np.sort(np.ravel(parts)), np.arange(32.0))
    text = cut.lower(batch).compile().as_text()
    assert not any(word in text for word in ("all-to-all", "all-gather", "collective-permute"))


def test_parameters_that_an_axis_does_not_divide_are_listed():
    """fsdp=4 divides the 8 rows of the toy task's parameter `first`; fsdp=3 does not."""
    config = toy_task.make_config()
    tx = optimizer.make_optimizer(config.optimizer, optimizer.learning_rate_schedule(config))
    for fsdp, expected in ((3, ["first"]), (4, [])):
        axes = ml_collections.ConfigDict(dict(data=1, fsdp=fsdp, tensor=1))
        mesh = sharding.make_mesh(axes, jax.devices()[:fsdp])
        _, abstract, shardings, _ = create_state(config, toy_task.toy, tx, mesh)
        assert sharding.whole_on_axes(abstract.params, shardings.params, mesh) == {"fsdp": expected}
