"""The state of a run and how it is created, restored and initialized."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from vlbert_jax.tasks.base import Task
from vlbert_jax.training import checkpoint, optimizer, sharding
from vlbert_jax.weights.initialize import load_into, named_sources

log = logging.getLogger(__name__)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything an update reads and writes: arrays, or their shapes or shardings in the same places."""

    step: Any  # int32: updates made
    finite: Any  # bool; False once a loss or gradient was not finite; later updates are no-ops
    params: PyTree  # nnx.State: trained parameters
    constants: PyTree  # nnx.State: frozen parameters and statistics
    opt_state: PyTree


@dataclasses.dataclass
class Run:
    """The opened run of a workdir."""

    graphdef: nnx.GraphDef
    tx: optax.GradientTransformationExtraArgs
    shardings: TrainState
    state: TrainState
    meta: dict[str, Any]  # `window`: metric -> (sum, count) since the last row
    checkpoints: checkpoint.Checkpoints


def open_run(
    config: ml_collections.ConfigDict, task: Task, workdir: pathlib.Path, mesh: Mesh, read_only: bool = False
) -> Run:
    """Build the model's state on the mesh and fill it from the first of these that there is.

    1. The newest checkpoint of `workdir`.
    2. `init.checkpoint`: the weights of another run, or converted ones.
    3. `init.bert` and `init.resnet`; all other parameters are sampled.
    4. Sampled parameters, if `init.scratch` allows it.

    Args:
      config: the run's config.
      task: the task of `config.task`.
      workdir: folder of the run.
      mesh: devices of the run.
      read_only: whether the run is only looked at (`checkpoint.Checkpoints`); then weights that `config.init` names
        must be complete.

    Raises:
      ValueError: the batch does not divide among the devices, or config, weights or checkpoints do not fit together.
    """
    check_batch(config, task, mesh, parts=1 if read_only else config.grad_accumulation_steps)
    tx = optimizer.make_optimizer(config.optimizer, optimizer.learning_rate_schedule(config))
    graphdef, abstract, shardings, create = create_state(config, task, tx, mesh)
    _log_sizes(abstract, shardings, mesh)
    checkpoints, meta = checkpoint.Checkpoints(workdir, config, read_only), dict(window={})
    if (step := checkpoints.newest) is not None:
        log.info("loading the checkpoint of step %d of %s; a second for a demo", step, workdir)
        state, meta = checkpoints.restore(abstract, shardings), checkpoints.meta()
        log.info("all parameters: step %d of %s", step, workdir)
    else:
        log.info("initializing the parameters; this compiles a program: 4 to 11 s for a demo on 2 cores")
        state = initial_weights(config, task, graphdef, create(), shardings, complete=read_only)
    return Run(graphdef, tx, shardings, state, meta, checkpoints)


def check_batch(config: ml_collections.ConfigDict, task: Task, mesh: Mesh, parts: int):
    """Raise ValueError where a global batch does not divide among processes, devices and micro-batches (`parts`)."""
    examples, hosts = jax.tree.leaves(task.batch_shapes(config))[0].shape[0], jax.process_count()
    if examples % hosts:
        raise ValueError(f"{examples} examples do not divide among {hosts} processes: change batch_size")
    sharding.check_divides(examples // hosts, mesh, hosts)
    sharding.check_parts(examples, parts, mesh)


def create_state(
    config: ml_collections.ConfigDict, task: Task, tx: optax.GradientTransformationExtraArgs, mesh: Mesh
) -> tuple[nnx.GraphDef, TrainState, TrainState, Callable[[], TrainState]]:
    """Return the model's structure, the abstract state, its shardings, and a function that samples the state.

    The function is compiled with the shardings of its output, so no array is ever whole on one device.
    """

    def create() -> tuple[nnx.GraphDef, TrainState]:
        model = task.build_model(config, nnx.Rngs(jax.random.key(config.seed, impl="threefry2x32")))
        graphdef, params, constants = split_model(model, task, config)
        state = TrainState(jnp.int32(0), jnp.bool(True), params, constants, tx.init(params))
        return graphdef, state

    graphdef, abstract = abstract_with_static(create)
    shardings = sharding.tree_shardings(abstract, mesh)
    return graphdef, abstract, shardings, jax.jit(lambda: create()[1], out_shardings=shardings)


def split_model(model: nnx.Module, task: Task, config: ml_collections.ConfigDict):
    """Return (graphdef, params, constants): the structure, what is trained, and what is not."""

    def trainable(path: tuple, variable) -> bool:
        return isinstance(variable, nnx.Param) and not task.is_frozen(tuple(map(str, path)), config)

    return nnx.split(model, trainable, ...)


def abstract_with_static(create: Callable) -> tuple[Any, PyTree]:
    """Return the static `create()[0]`, and the shapes of `create()[1]` without computing it."""
    static = []

    def dynamic():
        first, second = create()
        static.append(first)
        return second

    abstract = jax.eval_shape(dynamic)
    return static[0], abstract


def initial_weights(
    config: ml_collections.ConfigDict, task: Task, graphdef: nnx.GraphDef, state: TrainState,
    shardings: TrainState, complete: bool,
) -> TrainState:  # fmt: skip
    """Return the sampled `state` with the weights that `config.init` names; log where every part came from.

    With `complete` the weights must hold the whole model (`weights.initialize.load_into`). Otherwise the task may
    change the parameters that were not loaded (`initialize_heads`).
    """
    params, constants, filled = state.params, state.constants, set()
    if init := named_sources(config.init.to_dict()):
        encoder = config.model.encoder.to_dict()
        extractor, architecture = config.data.get("extractor", ""), config.model.get("architecture", "vlbert")
        rows = functools.partial(task.answer_rows, config)
        params, constants, filled = load_into(
            params, constants, encoder, config.task, init, complete, extractor, architecture, rows
        )
    else:
        log.info("all parameters: from scratch, seed %d", config.seed)
    if task.overrides("initialize_heads") and not complete:

        def prepared(params: PyTree, constants: PyTree) -> PyTree:
            model = nnx.merge(graphdef, params, constants)
            task.initialize_heads(model, config, filled)
            return split_model(model, task, config)[1]

        params = jax.jit(prepared, out_shardings=shardings.params)(params, constants)
    return dataclasses.replace(state, params=params, constants=constants)


def _log_sizes(abstract: TrainState, shardings: TrainState, mesh: Mesh) -> None:
    """Log the size of the state, and which parameters an axis of the mesh does not divide."""
    for kind in ("params", "constants", "opt_state"):
        tree = getattr(abstract, kind)
        sizes = [x.size for x in jax.tree.leaves(tree)]
        on_device = sharding.bytes_per_device(tree, getattr(shardings, kind)) / 1e6
        log.info("%s: %s values in %d arrays, %.1f MB per device", kind, f"{sum(sizes):,}", len(sizes), on_device)
    for axis, whole in sharding.whole_on_axes(abstract.params, shardings.params, mesh).items():
        if whole:
            more = f" and {len(whole) - 8} more" if len(whole) > 8 else ""
            log.info("mesh.%s=%d does not divide %s%s", axis, mesh.shape[axis], ", ".join(whole[:8]), more)
