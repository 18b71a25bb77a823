"""Where arrays live: the device mesh, the one table from logical to mesh axes, the shardings it gives.

The model names the dimensions of its parameters (`nnx.Param(..., axes=("embed", "mlp"))`); what a name means
on the machine is decided here and nowhere else. Batches are split over `data` and `fsdp` along their first
axis.
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

# Logical axis -> mesh axis. Layers are stacked on a leading axis that is scanned over: it stays whole.
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


def make_mesh(config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh `data x fsdp x tensor` of the sizes in the block `mesh`; one may be -1, the rest.

    Every host's devices are one block of the rows `data x fsdp`, in the order of the processes: a global batch is the
    hosts' parts behind each other. JAX numbers the hosts of a TPU pod slice by slice, so slices, which only the data
    centre's network joins, lie along `data`, which sends the least. Raises ValueError where the sizes do not multiply
    to the number of devices, slices would be cut, or `tensor` does not fit within each host.
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
    # Not by `mesh_utils`, which goes by the topology alone: there a host's rows lie apart, and `tensor` spans hosts.
    # Neighbours in a slice have neighbouring numbers; the all-reduce over all of `data` does not ask for the order.
    placed = np.array(sorted(devices, key=lambda device: device.process_index)).reshape(tuple(filled.values()))
    return Mesh(placed, tuple(filled), axis_types=(AxisType.Auto,) * 3)


def partition_spec(axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """The table applied to the logical `axes` of the trailing dimensions of `shape`.

    A dimension that the mesh axis does not divide, or whose mesh axis is taken by an earlier dimension, stays
    whole. Raises ValueError for a name that is not in the table.
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
    """A NamedSharding for every leaf of a (possibly abstract) tree; leaves without named axes are replicated.

    Optimizer moments made by `jax.tree.map` from parameters keep their metadata and so their places.
    """

    def place(leaf):
        if not isinstance(leaf, nnx.Variable):
            return NamedSharding(mesh, PartitionSpec())
        axes = leaf.get_metadata().get("axes") or ()
        return leaf.replace(NamedSharding(mesh, partition_spec(axes, leaf.get_value().shape, mesh)))

    return jax.tree.map(place, tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the first axis of a batch is cut."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def global_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """This host's part of a batch (numpy) -> the global batch (sharded arrays over all hosts).

    Raises ValueError where the examples do not divide among the devices.
    """
    sharding, hosts = batch_sharding(mesh), jax.process_count()

    def place(array: np.ndarray) -> jax.Array:
        check_divides(array.shape[0], mesh, hosts)
        return jax.make_array_from_process_local_data(sharding, array)

    with jax.transfer_guard("allow"):  # the one transfer of a step that is meant
        return jax.tree.map(place, batch)


def check_divides(examples: int, mesh: Mesh, hosts: int = 1):
    """Raises ValueError where the examples of one of `hosts` do not divide among the devices that it feeds."""
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
    """What the arrays of a tree take on each device where they live as `shardings` says."""
    sizes = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, abstract, shardings)
    return sum(jax.tree.leaves(sizes))


def cut(batch: PyTree, parts: int, mesh: Mesh) -> PyTree:
    """Cuts a global batch into `parts` micro-batches along a new first axis; every device keeps its rows.

    Micro-batch i is rows i, i + parts, ...: a plain reshape would gather each micro-batch on few devices.
    """
    sharding = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))

    def cut_array(x: jax.Array) -> jax.Array:
        check_parts(x.shape[0], parts, mesh)
        x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x, sharding)

    return jax.tree.map(cut_array, batch)
