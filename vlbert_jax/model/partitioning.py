"""How activations and parameters are laid out on the mesh while a program is traced."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int, PyTree, Shaped

BATCH_AXES = ("data", "fsdp")  # mesh axes over which the examples of a batch are divided


def split_axes() -> tuple[str, ...]:
    """Return the mesh axes over which the program being traced divides its examples.

    There are none without a mesh, or inside a `shard_map`, where each device has separate examples already.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(name for name in BATCH_AXES if mesh.shape.get(name, 1) > 1 and name not in mesh.manual_axes)


def keep_split(x: Shaped[Array, "b ..."]) -> Shaped[Array, "b ..."]:
    """Return `x` with its examples where the batch has them, and the other axes whole.

    Where parameters are divided over `fsdp`, the compiler could collect them for the examples of each device,
    or collect the examples for the columns of each device. This constraint selects the first.
    """
    axes = split_axes()
    return jax.lax.with_sharding_constraint(x, jax.P(axes)) if axes else x


def replicate(parameter: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Return `parameter` whole on every device while it is used: examples read rows of it, with all columns."""
    sizes = jax.sharding.get_abstract_mesh().shape
    divided = any(size > 1 for name, size in sizes.items() if name != "data")
    return jax.lax.with_sharding_constraint(parameter, jax.P()) if divided else parameter


def with_copies(params: PyTree) -> PyTree:
    """Return parameters of which those with the metadata `several_uses` are one copy per device: [devices, ...].

    The compiler reduces the gradient of a parameter over the devices once for each use. The gradient of a copy is the
    sum of all uses on its device, so only the sum over the copies, which is that of the parameter, is reduced.
    There are no copies where parameters are divided (`fsdp`, `tensor`), because a copy is whole.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    if split_axes() != ("data",) or sizes["tensor"] > 1:
        return params

    def copied(variable):
        if not variable.get_metadata().get("several_uses"):
            return variable
        value = variable.get_value()
        copies = jnp.broadcast_to(value, (sizes["data"], *value.shape))
        return variable.replace(jax.lax.with_sharding_constraint(copies, jax.P("data")))

    return jax.tree.map(copied, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def look_up(table: Shaped[Array, "... rows d"], ids: Int[Array, "b ..."]) -> Shaped[Array, "b ... d"]:
    """Return the rows `ids` of a table; an id outside the table reads its nearest row."""
    return with_table(lambda table, ids: replicate(table).at[ids].get(mode="clip"), table, ids)


def with_table(
    function: Callable, table: Shaped[Array, "... rows d"], x: Shaped[Array, "b ..."]
) -> Shaped[Array, "b ..."]:
    """Return `function(table, x)`; every device computes it with its examples where there are copies of the table."""
    if table.ndim == 2:
        return function(table, x)
    return jax.shard_map(
        lambda copy, part: function(copy[0], part), in_specs=jax.P("data"), out_specs=jax.P("data"), axis_names={"data"}
    )(table, x)
