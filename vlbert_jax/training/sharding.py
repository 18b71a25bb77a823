"""Where arrays are: the device mesh, the one table from logical to mesh axes, and the shardings it determines.

The model names the dimensions of its parameters (`nnx.Param(..., axes=("embed", "mlp"))`); this module
alone decides which mesh axis a name is divided over. Batches are divided over `data` and `fsdp` along
their first axis.
"""

import math
from collections import Counter
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from vlbert_jax.model.partitioning import BATCH_AXES

# Logical axis -> mesh axis. Layers are stacked on a leading axis that is scanned over, which stays whole.
RULES = {
    "vocab": "tensor",
    "heads": "tensor",
    "mlp": "tensor",
    "embed": "fsdp",
    "conv_in": None,
    "conv_out": "fsdp",
    "feature": None,
    "layers": None,
}


def make_mesh(config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:  # pyright: ignore[reportInvalidTypeForm]
    """Return the mesh `data x fsdp x tensor` of the sizes in the block `mesh`; one size may be -1 (remaining devices).

    The devices of every process are one block of the rows `data x fsdp`, in the order of the processes, so
    that a global batch is the parts of the processes in order. JAX numbers the hosts of a TPU pod slice by
    slice, so slices, which only the network of the data center connects, lie along `data`, which sends the
    least.

    Args:
        config: The block `mesh` of a config.
        devices: Devices of the mesh; None = all.

    Raises:
        ValueError: The sizes do not multiply to the number of devices, a slice would be cut, or `tensor` does
            not fit within each process.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict(data=config.data, fsdp=config.fsdp, tensor=config.tensor)
    known = math.prod(size for size in sizes.values() if size != -1)
    filled = (
        {name: len(devices) // known if size == -1 else size for name, size in sizes.items()}
        if known > 0
        else {}
    )
    if known < 1 or list(sizes.values()).count(-1) > 1 or math.prod(filled.values()) != len(devices):
        raise ValueError(
            f"mesh sizes {dict(sizes)} do not fit {len(devices)} devices; "
            "they must multiply to that number, and one of them may be -1"
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if devices[0].platform == "tpu" else 1
    if filled["data"] % slices:
        raise ValueError(f"mesh.data={filled['data']} does not divide among {slices} slices, which lie along it")
    hosts = Counter(device.process_index for device in devices)
    if len(set(hosts.values())) > 1 or hosts[devices[0].process_index] % filled["tensor"]:
        counts = " or ".join(map(str, sorted(set(hosts.values()))))
        raise ValueError(
            f"mesh.tensor={filled['tensor']} does not divide the {counts} devices of each host: it must lie within "
            "one, and all hosts need as many devices"
        )
    # `mesh_utils` orders by the topology alone, so that the rows of a process are apart and `tensor` spans processes.
    # Neighbors in a slice have neighboring numbers; the all-reduce over all of `data` does not depend on the order.
    placed = np.array(sorted(devices, key=lambda device: device.process_index)).reshape(tuple(filled.values()))
    return Mesh(placed, tuple(filled), axis_types=(AxisType.Auto,) * 3)


def partition_spec(axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """Return the table applied to the logical `axes` of the trailing dimensions of `shape`.

    A dimension that the mesh axis does not divide, or whose mesh axis an earlier dimension uses, stays whole.

    Raises:
        ValueError: A name is not in the table.
    """
    spec: list[str | None] = [None] * (len(shape) - len(axes))
    for name, size in zip(axes, shape[len(shape) - len(axes) :], strict=True):
        if name is not None and name not in RULES:
            raise ValueError(f"unknown logical axis {name!r}; the table has {', '.join(RULES)}")
        axis = RULES[name] if name is not None else None
        fits = axis is not None and axis not in spec and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0
        spec.append(axis if fits else None)
    return PartitionSpec(*spec)


def tree_shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """Return a NamedSharding for every leaf of a (possibly abstract) tree; leaves without named axes are replicated.

    Optimizer moments made by `jax.tree.map` from parameters keep their metadata and so their places.
    """

    def place(leaf):
        if not isinstance(leaf, nnx.Variable):
            return NamedSharding(mesh, PartitionSpec())
        axes = leaf.get_metadata().get("axes") or ()
        return leaf.replace(NamedSharding(mesh, partition_spec(axes, leaf.get_value().shape, mesh)))

    return jax.tree.map(place, tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: Mesh) -> int:
    """Return the number of parts into which the first axis of a batch is divided."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def global_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Return the global batch, sharded over all processes, of this process's part (NumPy).

    Raises:
        ValueError: The examples do not divide among the devices.
    """
    sharding, hosts = batch_sharding(mesh), jax.process_count()

    def place(array: np.ndarray) -> jax.Array:
        check_divides(array.shape[0], mesh, hosts)
        return jax.make_array_from_process_local_data(sharding, array)

    with jax.transfer_guard("allow"):  # the one intended transfer of a step
        return jax.tree.map(place, batch)


def whole_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Return the global batch, sharded over all processes, of a batch that each process has whole (NumPy)."""

    def place(array: np.ndarray) -> jax.Array:
        check_divides(array.shape[0], mesh)
        return jax.make_array_from_callback(array.shape, batch_sharding(mesh), lambda part: array[part])

    return jax.tree.map(place, batch)


def check_divides(examples: int, mesh: Mesh, hosts: int = 1):
    """Raise ValueError where the examples of one of `hosts` do not divide among the devices that it feeds."""
    if examples % (local := max(batch_shards(mesh) // hosts, 1)):
        raise ValueError(
            f"{examples} examples per host do not divide among {local} devices: change batch_size or mesh"
        )


def check_parts(examples: int, parts: int, mesh: Mesh):
    """Raise ValueError where the examples of a global batch do not divide into `parts` micro-batches on the devices."""
    if examples % (parts * batch_shards(mesh)):
        raise ValueError(
            f"{examples} examples do not divide into {parts} micro-batches on {batch_shards(mesh)} devices: change "
            "batch_size, grad_accumulation_steps or mesh"
        )


def bytes_per_device(abstract: PyTree, shardings: PyTree) -> int:
    """Return the bytes that the arrays of a tree take on each device."""
    sizes = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, abstract, shardings)
    return sum(jax.tree.leaves(sizes))


def whole_on_axes(abstract: PyTree, shardings: PyTree, mesh: Mesh) -> dict[str, list[str]]:
    """Return, for each mesh axis larger than 1, the parameters that the table assigns to it but that stay whole.

    They are whole because no dimension divides by the size of the axis. Batch axes divide no parameter
    unless the table says so.

    Args:
        abstract: State of parameters: shapes with named axes.
        shardings: Their shardings.
        mesh: Mesh of the run.
    """
    axes = [axis for axis, size in mesh.shape.items() if size > 1 and axis in RULES.values()]
    found: dict[str, list[str]] = {axis: [] for axis in axes}
    places = dict(nnx.to_flat_state(shardings))
    for path, variable in nnx.to_flat_state(abstract):
        names = variable.get_metadata().get("axes") or ()
        used = set(places[path].get_value().spec)
        for axis, parameters in found.items():
            if axis in {RULES.get(name) for name in names if name} and axis not in used:
                parameters.append("/".join(map(str, path)))
    return found


def cut(batch: PyTree, parts: int, mesh: Mesh) -> PyTree:
    """Return a global batch cut into `parts` micro-batches along a new first axis; every device keeps its rows.

    Micro-batch i is rows i, i + parts, ...: a plain reshape would gather each micro-batch on few devices.

    Raises:
        ValueError: The examples do not divide.
    """
    sharding = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))

    def cut_array(x: jax.Array) -> jax.Array:
        check_parts(x.shape[0], parts, mesh)
        x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x, sharding)

    return jax.tree.map(cut_array, batch)
