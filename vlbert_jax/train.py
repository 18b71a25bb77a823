"""Training: the state, one update as a pure function, and the loop. It knows no task by name.

Reproducibility: parameters are drawn with threefry from `seed`, so they do not depend on the mesh. The
dropout key of update k is fold_in(key(seed, prng_impl), k - 1), folded once more with the index of the
micro-batch when a batch is cut. A resumed run repeats the uninterrupted one bit for bit on the same devices.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import pathlib
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from vlbert_jax import checkpoint, evaluate, metrics, optimizer, sharding, warm_start

log = logging.getLogger(__name__)
AHEAD = 2  # updates that may be dispatched before the devices have finished: bounds the batches in their memory


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
    config: ml_collections.ConfigDict, task: ModuleType, tx: optax.GradientTransformation, mesh: Mesh
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


def split_model(model: nnx.Module, task: ModuleType, config: ml_collections.ConfigDict):
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


def train_step(
    state: TrainState,
    batch: PyTree,
    *,
    graphdef: nnx.GraphDef,
    task: ModuleType,
    config: ml_collections.ConfigDict,
    tx: optax.GradientTransformation,
    names: tuple[str, ...],
    mesh: Mesh,
    shardings: TrainState,
) -> tuple[TrainState, dict[str, tuple[Array, Array]]]:
    """One update on a global batch, and its metrics as (sum, count) pairs.

    `names` are the losses that count. Each is divided by its count over the whole batch before the batch is
    cut into `grad_accumulation_steps` micro-batches, so the gradient does not depend on the cut (dropout
    draws differ).
    """
    parts, weights = config.grad_accumulation_steps, task.loss_weights(config)
    key = jax.random.fold_in(jax.random.key(config.seed, impl=config.prng_impl), state.step)
    counts = task.loss_counts(batch, config, names)

    def objective(params, micro_batch, key):
        model = nnx.merge(graphdef, params, state.constants)
        sums, scores = task.loss_sums(model, micro_batch, key, config, names)
        loss = sum(weights[name] * sums[name] / counts[name] for name in names)
        return loss, (loss, sums, scores)

    def gradients(micro_batch, key):
        grads, out = jax.grad(objective, has_aux=True)(state.params, micro_batch, key)
        return jax.lax.with_sharding_constraint(grads, shardings.params), out

    if parts == 1:
        grads, (loss, sums, scores) = gradients(batch, key)
    else:

        def accumulate(total, part):
            micro_batch, index = part
            return jax.tree.map(jnp.add, total, gradients(micro_batch, jax.random.fold_in(key, index))), None

        cut = sharding.cut(batch, parts, mesh), jnp.arange(parts)
        like = jax.eval_shape(lambda part: gradients(part[0], key), jax.tree.map(lambda x: x[0], cut))
        total, _ = jax.lax.scan(accumulate, jax.tree.map(jnp.zeros_like, like), cut)
        grads, (loss, sums, scores) = total

    norm = optax.tree.norm(grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    # Without a gradient, momentum and decay would still move a parameter.
    updates = jax.tree_util.tree_map_with_path(
        lambda path, update: jnp.zeros_like(update) if task.is_idle(names_of(path), config, names) else update, updates
    )
    finite = state.finite & jnp.isfinite(loss) & jnp.isfinite(norm)
    old = state.step, state.params, state.opt_state
    new = state.step + 1, optax.apply_updates(state.params, updates), opt_state
    # Not finite: keep the last good state, also from the updates dispatched before the host has noticed.
    step, params, opt_state = jax.tree.map(functools.partial(jnp.where, finite), new, old)
    rate, once = optimizer.learning_rate_schedule(config)(state.step + 1), jnp.float32(1)
    report = {"loss": (loss, once), "grad_norm": (norm, once), "learning_rate": (rate, once)}
    report |= {f"{name}_loss": (sums[name], counts[name]) for name in names}
    return TrainState(step, finite, params, state.constants, opt_state), report | scores


def jitted_step(names: tuple[str, ...], *, mesh: Mesh, shardings: TrainState, **static) -> Callable:
    """`(state, batch) -> (state, report)` by `train_step` with these losses, compiled at the first call.

    Both states live where `shardings` says, the batch is divided, and the new state takes the memory of the old.
    """
    return jax.jit(
        functools.partial(train_step, names=names, mesh=mesh, shardings=shardings, **static),
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def names_of(path: tuple) -> tuple[str, ...]:
    """The path of a parameter in a state, as names."""
    return tuple(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))


def initial_weights(
    config: ml_collections.ConfigDict, task: ModuleType, graphdef: nnx.GraphDef, state: TrainState,
    shardings: TrainState, complete: bool,
) -> TrainState:  # fmt: skip
    """The state with the weights that `config.init` names; logs where every part came from.

    With `complete` these must be all there are (`warm_start.load_into`); otherwise the task may make something of what
    was loaded (its `prepare`).
    """
    params, constants, filled = state.params, state.constants, set()
    if init := warm_start.sources(config.init.to_dict()):
        encoder = config.model.encoder.to_dict()
        params, constants, filled = warm_start.load_into(
            params, constants, encoder, config.task, init, complete, config.data.get("extractor", "")
        )
    else:
        log.info("all parameters: from scratch, seed %d", config.seed)
    if hasattr(task, "prepare") and not complete:

        def prepared(params: PyTree, constants: PyTree) -> PyTree:
            model = nnx.merge(graphdef, params, constants)
            task.prepare(model, config, filled)
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
    config: ml_collections.ConfigDict, task: ModuleType, workdir: pathlib.Path, mesh: Mesh, read_only: bool = False
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


def train(
    config: ml_collections.ConfigDict, task: ModuleType, workdir: pathlib.Path, mesh: Mesh
) -> tuple[nnx.GraphDef, TrainState]:
    """Runs or continues the run of `workdir` to its end.

    Raises checkpoint.Stopped, everything saved, when it is asked to stop, and FloatingPointError, naming the step, when
    the loss or its gradient is not finite; the state before that step is saved. Raises OSError when the disk is full.
    """
    # --- The model and its state
    run = open_run(config, task, workdir, mesh)
    graphdef, shardings, state, checkpoints = run.graphdef, run.shardings, run.state, run.checkpoints
    window, unscored = metrics.Sums(run.meta["window"]), run.meta.get("unscored", False)
    start, tx = int(state.step), run.tx
    del run  # its state is donated to the first update

    # --- Input and outputs. Batch k feeds update k + 1.
    batches = task.train_batches(config, start, jax.process_index(), jax.process_count())
    chief = jax.process_index() == 0
    if chief:
        metrics.write_description(workdir, config)
    writer = metrics.Writer(workdir, start, config.total_steps, unscored, active=chief)
    score = evaluate.make_score(graphdef, task, config, mesh)

    @functools.cache  # one program per set of losses
    def update(names: tuple[str, ...]) -> Callable:
        log.info("losses from here on: %s (compiling)", ", ".join(names))
        static = dict(graphdef=graphdef, task=task, config=config, tx=tx, mesh=mesh, shardings=shardings)
        return jitted_step(names, **static)

    def evaluated(step: int) -> dict[str, float]:
        weights = state.params, state.constants
        scores, _ = evaluate.evaluate(score, *weights, task, config, mesh, preemption.reached)
        writer.write(step, "val", scores)
        return scores

    # --- Updates
    pending, timed, seconds, waited = [], 0, 0.0, 0.0  # reports not yet fetched; durations since the last row
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))  # the region head works on each device's own regions
        stack.enter_context(contextlib.closing(writer))
        stack.enter_context(checkpoint.disk_full(checkpoints.directory))
        stack.enter_context(contextlib.closing(checkpoints))
        preemption = stack.enter_context(checkpoint.Preemption())
        if unscored:  # the run was stopped in the evaluation of this step
            checkpoints.add_scores(start, evaluated(start))
        for step in range(start + 1, config.total_steps + 1):
            began = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - began
            with jax.transfer_guard("disallow"):  # nothing crosses unless it says so
                batch = sharding.global_batch(batch, mesh)
                state, report = update(task.active_losses(config, step - 1))(state, batch)
            pending.append(report)
            if len(pending) > AHEAD:
                jax.block_until_ready(pending[-1 - AHEAD])
            timed, seconds = timed + 1, seconds + time.perf_counter() - began
            writer.progress(step)

            # --- Nothing below happens on most steps: the host does not wait for the devices.
            last, stop = step == config.total_steps, preemption.reached()
            due = {
                name: last or (every > 0 and step % every == 0)
                for name, every in (
                    ("log", config.log_every_steps),
                    ("evaluate", config.eval_every_steps),
                    ("save", config.checkpoint_every_steps),
                )
            }
            due["save"] |= due["evaluate"] and config.checkpoint_every_steps > 0
            if not (stop or any(due.values())):
                continue
            began = time.perf_counter()
            reports, good, pending = jax.device_get(pending), int(jax.device_get(state.step)), []
            seconds += time.perf_counter() - began
            for report in reports[: len(reports) - (step - good)]:
                window.add(report)

            # --- Not finite
            if good < step:
                state = dataclasses.replace(state, finite=jax.device_put(np.True_, sharding.replicated(mesh)))
                checkpoints.save(good, state, dict(window=window.sums))
                raise FloatingPointError(
                    f"the loss or its gradient is not finite at step {good + 1}; the state before it is "
                    f"saved as step {good} in {checkpoints.directory}"
                )

            # --- Log: means over the updates since the last row; a restart finds their sums in the checkpoint
            if due["log"]:
                values = window.means() | {"learning_rate": float(reports[-1]["learning_rate"][0])}
                values["step_time_ms"] = 1e3 * seconds / timed
                values["data_wait_time_ms"] = 1e3 * waited / timed
                values["samples_per_sec"] = config.batch_size * timed / seconds
                writer.write(step, "train", values)
                window, timed, seconds, waited = metrics.Sums(), 0, 0.0, 0.0

            # --- Evaluate, while there is time: whoever asks to stop does not wait for long
            scores = None
            if due["evaluate"] and not stop:
                with contextlib.suppress(checkpoint.Stopped):
                    scores = evaluated(step)
                stop = scores is None

            # --- Save: after the rows of this step are written, so that a restart finds them
            if stop or due["save"]:
                unscored = due["evaluate"] and scores is None
                checkpoints.save(step, state, dict(window=window.sums, unscored=unscored), scores)
            if stop:
                raise checkpoint.Stopped(f"step {step} is saved; the same command goes on from it")
    return graphdef, state


def evaluate_run(
    config: ml_collections.ConfigDict, task: ModuleType, workdir: pathlib.Path, mesh: Mesh
) -> dict[str, float | int]:
    """Scores, and `step`, of the newest checkpoint of `workdir` or of `config.init`; host 0 writes scores.json, too.

    A task with predictions writes them to WORKDIR/predictions. Only the fields that shape the model must be those of
    the run. Raises FileNotFoundError without any weights, and checkpoint.Stopped.
    """
    warm_start.check(config, workdir, "evaluate")
    predict = hasattr(task, "predict")

    def evaluated(config: ml_collections.ConfigDict, workdir: pathlib.Path):
        run = open_run(config, task, workdir, mesh, read_only=True)
        score = evaluate.make_score(run.graphdef, task, config, mesh, predict)
        weights, stop = (run.state.params, run.state.constants), preemption.reached
        with jax.set_mesh(mesh):
            return int(run.state.step), *evaluate.evaluate(score, *weights, task, config, mesh, stop)

    companions = task.companions(config) if hasattr(task, "companions") else {}
    nowhere = workdir / "predictions" / "of_companions"  # has no checkpoint: theirs are named by their config
    with checkpoint.Preemption() as preemption:
        step, scores, rows = evaluated(config, workdir)
        predictions = {"": rows} | {name: evaluated(other, nowhere)[2] for name, other in companions.items()}
    if jax.process_index() == 0:
        if predict:
            (workdir / "predictions").mkdir(exist_ok=True)
            scores |= task.conclude(workdir / "predictions", predictions, config)
            log.info("predictions: %s", workdir / "predictions")
        scores = {"step": step} | scores
        (workdir / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    return scores


def report(
    config: ml_collections.ConfigDict,
    task: ModuleType,
    workdir: pathlib.Path,
    graphdef: nnx.GraphDef,
    state: TrainState,
):
    """Has the task write its page into WORKDIR/report, on host 0, which gets all weights for it."""
    weights = multihost_utils.process_allgather((state.params, state.constants), tiled=True)
    if jax.process_index() == 0:
        rows = metrics.read_rows(workdir / "metrics.jsonl")
        (workdir / "report").mkdir(exist_ok=True)
        task.write_report(workdir / "report", nnx.merge(graphdef, *weights), config, rows)
        log.info("report: %s", workdir / "report" / "index.html")
