"""Training: the state, one update as a pure function, and the loop. It knows no task by name.

Reproducibility: parameters are drawn with threefry from `seed`, so they do not depend on the mesh. The
dropout key of update k is fold_in(key(seed, prng_impl), k - 1), folded once more with the index of the
micro-batch when a batch is cut. A resumed run repeats the uninterrupted one bit for bit on the same devices.
"""

import contextlib
import dataclasses
import functools
import logging
import pathlib
import time
from collections.abc import Callable

import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vlbert_jax.files import disk_full
from vlbert_jax.tasks.base import Task
from vlbert_jax.training import metrics, sharding
from vlbert_jax.training.evaluate import evaluate, make_score
from vlbert_jax.training.preemption import Preemption, Stopped
from vlbert_jax.training.state import TrainState, open_run
from vlbert_jax.training.step import jitted_step

log = logging.getLogger(__name__)
AHEAD = 2  # updates that may be dispatched before the devices have finished: bounds the batches in their memory


def train(
    config: ml_collections.ConfigDict, task: Task, workdir: pathlib.Path, mesh: Mesh
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
    score = make_score(graphdef, task, config, mesh)

    @functools.cache  # one program per set of losses
    def update(names: tuple[str, ...]) -> Callable:
        log.info("losses from here on: %s (compiling)", ", ".join(names))
        static = dict(graphdef=graphdef, task=task, config=config, tx=tx, mesh=mesh, shardings=shardings)
        return jitted_step(names, **static)

    def evaluated(step: int) -> dict[str, float]:
        weights = state.params, state.constants
        scores, _ = evaluate(score, *weights, task, config, mesh, preemption.reached)
        writer.write(step, "val", scores)
        return scores

    # --- Updates
    pending, timed, seconds, waited = [], 0, 0.0, 0.0  # reports not yet fetched; durations since the last row
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))  # the region head works on each device's own regions
        stack.enter_context(contextlib.closing(writer))
        stack.enter_context(disk_full(checkpoints.directory))
        stack.enter_context(contextlib.closing(checkpoints))
        preemption = stack.enter_context(Preemption())
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
                with contextlib.suppress(Stopped):
                    scores = evaluated(step)
                stop = scores is None

            # --- Save: after the rows of this step are written, so that a restart finds them
            if stop or due["save"]:
                unscored = due["evaluate"] and scores is None
                checkpoints.save(step, state, dict(window=window.sums, unscored=unscored), scores)
            if stop:
                raise Stopped(f"step {step} is saved; the same command goes on from it")
    return graphdef, state
