"""The state of a run and how it is created, restored and initialized."""

import dataclasses
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
    finite: Any  # bool; False after a loss or gradient that was not finite, and nothing changes any more
    params: PyTree  # nnx.State: what is trained
    constants: PyTree  # nnx.State: frozen parameters and statistics
    opt_state: PyTree


def create_state(
    config: ml_collections.ConfigDict, task: Task, tx: optax.GradientTransformation, mesh: Mesh
) -> tuple[nnx.GraphDef, TrainState, TrainState, Callable[[], TrainState]]:
    """The model's structure, the abstract state, its shardings, and a function that makes it from scratch.

    The function is compiled with the shardings of its output: nothing is ever whole on one device.
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
    """(graphdef, params, constants): what is trained, and what is not."""

    def trainable(path: tuple, variable) -> bool:
        return isinstance(variable, nnx.Param) and not task.is_frozen(tuple(map(str, path)), config)

    return nnx.split(model, trainable, ...)


def abstract_with_static(create: Callable) -> tuple[Any, PyTree]:
    """Shapes of `create()[1]` without computing it, and the static `create()[0]` as it is."""
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
    """The state with the weights that `config.init` names; logs where every part came from.

    With `complete` these must be all there are (`warm_start.load_into`); otherwise the task may make something of what
    was loaded (its `prepare`).
    """
    params, constants, filled = state.params, state.constants, set()
    if init := named_sources(config.init.to_dict()):
        encoder = config.model.encoder.to_dict()
        params, constants, filled = load_into(
            params, constants, encoder, config.task, init, complete, config.data.get("extractor", "")
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


@dataclasses.dataclass
class Run:
    """The run of a workdir, ready to go on."""

    graphdef: nnx.GraphDef
    tx: optax.GradientTransformation
    shardings: TrainState
    state: TrainState
    meta: dict[str, Any]  # `window`: metric -> (sum, count) since the last row
    checkpoints: checkpoint.Checkpoints


def open_run(
    config: ml_collections.ConfigDict, task: Task, workdir: pathlib.Path, mesh: Mesh, read_only: bool = False
) -> Run:
    """Builds the model's state on the mesh and fills it; `read_only` as in `checkpoint.Checkpoints`."""
    tx = optimizer.make_optimizer(config.optimizer, optimizer.learning_rate_schedule(config))
    graphdef, abstract, shardings, create = create_state(config, task, tx, mesh)
    for kind in ("params", "constants"):
        sizes = [x.size for x in jax.tree.leaves(getattr(abstract, kind))]
        log.info("%s: %s numbers in %d arrays", kind, f"{sum(sizes):,}", len(sizes))

    # Where the state comes from, in this order:
    # 1. the newest checkpoint of this workdir;
    # 2. init.checkpoint: the weights of another run, or converted ones;
    # 3. init.bert and init.resnet, the rest from scratch;
    # 4. scratch, where init.scratch allows it.
    checkpoints, meta = checkpoint.Checkpoints(workdir, config, read_only), dict(window={})
    if (step := checkpoints.latest_step()) is not None:
        state, meta = checkpoints.restore(abstract, shardings), checkpoints.meta()
        log.info("all parameters: step %d of %s", step, workdir)
    else:
        state = initial_weights(config, task, graphdef, create(), shardings, complete=read_only)
    return Run(graphdef, tx, shardings, state, meta, checkpoints)
