"""How activations and parameters are laid out on the mesh while a program is traced."""

from __future__ import annotations

import jax
from jaxtyping import Array, Shaped

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
