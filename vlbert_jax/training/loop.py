"""The training loop: updates, and what is logged, evaluated and saved between them. It names no task.

Reproducibility: parameters are sampled with threefry from `seed`, so they do not depend on the mesh. The dropout key of
update k is fold_in(key(seed, prng_impl), k - 1), folded once more with the index of the micro-batch when a batch is
cut. A resumed run repeats the uninterrupted one bit for bit on the same devices.
"""

import contextlib
import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from vlbert_jax.files import disk_full
from vlbert_jax.tasks.base import Task
from vlbert_jax.training import metrics, sharding
from vlbert_jax.training.description import facts_of, write_description
from vlbert_jax.training.evaluate import EVALUATION, evaluate, make_score
from vlbert_jax.training.lock import only_run
from vlbert_jax.training.logs import Waits
from vlbert_jax.training.patience import Patience
from vlbert_jax.training.preemption import Preemption, Stopped
from vlbert_jax.training.profile import Profile
from vlbert_jax.training.provenance import copy_vocabularies
from vlbert_jax.training.run_report import RunReport
from vlbert_jax.training.state import TrainState, open_run
from vlbert_jax.training.step import jitted_step
from vlbert_jax.training.trackers import open_trackers
from vlbert_jax.weights.model_card import write_run_card

log = logging.getLogger(__name__)
AHEAD = 2  # updates that may be dispatched before the devices have finished; bounds the batches in their memory


def train(
    config: ml_collections.ConfigDict, task: Task, workdir: pathlib.Path, mesh: Mesh
) -> tuple[nnx.GraphDef, TrainState]:
    """Run or continue the run of `workdir` to its end, or until `config.early_stopping` ends it.

    Args:
      config: the run's config (configs/).
      task: the task of `config.task`.
      workdir: folder of the run; its newest checkpoint is where the run continues.
      mesh: devices of the run (`sharding.make_mesh`).

    Returns:
      The model's structure and the last state.

    Raises:
      Stopped: a process of the run received SIGTERM; everything is saved.
      FloatingPointError: the loss or its gradient is not finite; names the step, before which the state is saved.
      OSError: the disk is full.
      ValueError: the config does not fit the devices, the data or the checkpoints of `workdir`, or another run writes
        to it.
    """
    with only_run(workdir):
        return _train(config, task, workdir, mesh)


def _train(
    config: ml_collections.ConfigDict, task: Task, workdir: pathlib.Path, mesh: Mesh
) -> tuple[nnx.GraphDef, TrainState]:
    """Do what `train` describes, in a workdir that no other run uses."""
    loop = Loop(config, task, workdir, mesh)
    with loop.opened():
        loop.repeat_stopped_evaluation()
        for step in range(loop.start + 1, config.total_steps + 1):
            if loop.patience.ended:
                break
            loop.update(step)
            due = loop.due(step)
            if due.any():  # on all other steps the host does not wait for the devices
                loop.act(step, due)
        loop.write_report(loop.step)  # where no evaluation of this start has written it
    if jax.process_index() == 0:
        duration = facts_of(workdir, metrics.read_rows(workdir / "metrics.jsonl"))["duration"]
        if loop.patience.ended:
            best = workdir / "checkpoints" / str(loop.patience.step)
            log.info("ended early after step %s: %s, which is %s", f"{loop.step:,}", loop.patience.reason, best)
        else:
            log.info("all %s updates are done: %s", f"{config.total_steps:,}", duration)
    return loop.graphdef, loop.state


@dataclasses.dataclass(frozen=True)
class Due:
    """Actions that are due after an update."""

    log: bool
    evaluate: bool
    save: bool
    stop: bool

    def any(self) -> bool:
        """Return whether there is anything to do."""
        return self.log or self.evaluate or self.save or self.stop


class Loop:
    """One start of a run: its state, what is not yet logged, and where both are written."""

    def __init__(self, config: ml_collections.ConfigDict, task: Task, workdir: pathlib.Path, mesh: Mesh):
        """Make or restore the state; open the input, of which batch k feeds update k + 1, and the outputs."""
        self.config, self.task, self.mesh, self.workdir = config, task, mesh, workdir
        self.profile = Profile(config.profile_steps, workdir / "profile")
        if 0 < config.opening.steps >= config.total_steps:
            log.warning(
                "config.opening.steps=%d leaves no other update of total_steps=%d: all belong to the opening",
                config.opening.steps, config.total_steps,
            )  # fmt: skip
        run = open_run(config, task, workdir, mesh)
        self.graphdef, self.shardings, self.state = run.graphdef, run.shardings, run.state
        self.tx, self.checkpoints, self.start = run.tx, run.checkpoints, int(run.state.step)
        meta = run.meta
        self.patience, self.step = Patience(config, meta.get("patience")), self.start  # `step`: the last update
        self.unscored = meta.get("unscored", False)  # whether the run was stopped in the evaluation of `start`

        hosts = jax.process_index(), jax.process_count()
        self.batches = task.train_batches(config, self.start, *hosts)
        task.eval_batches(config, *hosts)  # what is wrong with the split ends the run now, not at its first evaluation
        is_writer, trackers = jax.process_index() == 0, []
        if is_writer:
            about = write_description(workdir, config)
            log.debug("this start: %s", about)  # for log.txt
            copy_vocabularies(config, workdir)
            trackers = open_trackers(config, workdir, self.start, about)
        self.writer = metrics.Writer(
            workdir if is_writer else None, self.start, config.total_steps, self.unscored, config.best_metric, trackers
        )
        self.score = make_score(self.graphdef, task, config, mesh)
        self.evaluated = False  # whether `score` is compiled
        self.waits = Waits()
        self.report = RunReport(config, task, workdir, self.graphdef, mesh, self.waits) if config.report else None
        self.losses: tuple[str, ...] = ()  # of the last update
        self.programs: dict[Any, Callable] = {}  # compiled updates, by losses and shapes of the batch

        self.pending: list[PyTree] = []  # reports of updates that are not yet fetched
        self.window = metrics.Sums(meta.get("window", {}))  # sums since the last row; a restart finds them again
        self.durations = Durations()

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Hold what the updates need open: the mesh, the outputs and the signal handler; close it in reverse order."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(jax.set_mesh(self.mesh))  # the region head works on each device's own regions
            stack.enter_context(contextlib.closing(self.writer))
            stack.enter_context(disk_full(self.checkpoints.directory))
            stack.enter_context(contextlib.closing(self.checkpoints))
            stack.enter_context(contextlib.closing(self.profile))
            self.preemption = stack.enter_context(Preemption())
            yield

    # --- One update

    def update(self, step: int):
        """Dispatch update `step`; wait only for the update before the last AHEAD ones."""
        with self.durations.of_update():
            with self.durations.of_waiting():
                batch = self._next_batch(step)
            with jax.transfer_guard("disallow"):  # only explicit transfers are allowed
                batch = sharding.global_batch(batch, self.mesh)
                with self.durations.left_out():
                    program = self._program(self._losses(step), batch)
                with self.profile.of_update(step):
                    self.state, report = program(self.state, batch)
            self.step = step
            self.pending.append(report)
            if len(self.pending) > AHEAD:
                jax.block_until_ready(self.pending[-1 - AHEAD])
        self.profile.after_update(step, self.state)
        self.writer.progress(step)

    def _next_batch(self, step: int) -> PyTree:
        """Return the batch of update `step` (NumPy). The first one fills the input pipeline, which takes longer."""
        if step > self.start + 1:
            return next(self.batches)
        with self.waits.announced("the first batch", "", "0.1 to 1 s for a demo"):
            return next(self.batches)

    def _losses(self, step: int) -> tuple[str, ...]:
        """Return the losses of update `step`; explain a change, after which the total loss jumps."""
        names = self.task.active_losses(self.config, step - 1)
        if self.losses and names != self.losses and not self.task.alternates(self.config):
            log.info(
                "from update %s on these losses are trained: %s; before: %s. The total loss is another sum: it jumps.",
                f"{step:,}", ", ".join(names), ", ".join(self.losses),
            )  # fmt: skip
        self.losses = names
        return names

    def _program(self, names: tuple[str, ...], batch: PyTree) -> Callable:
        """Return the update with these losses, compiled for batches of this shape."""
        key = names, tuple(x.shape for x in jax.tree.leaves(batch)), jax.tree.structure(batch)
        if key not in self.programs:
            about = f"of an update with these losses: {', '.join(names)}"
            expected = "6 to 16 s for a demo or a base recipe on 2 cores"
            with self.waits.announced("the compilation", about, expected), self.preemption.of_compilation():
                jitted = jitted_step(
                    names, graphdef=self.graphdef, task=self.task, config=self.config, tx=self.tx, mesh=self.mesh,
                    shardings=self.shardings,
                )  # fmt: skip
                self.programs[key] = jitted.lower(self.state, batch).compile()
        return self.programs[key]

    # --- Between updates

    def due(self, step: int) -> Due:
        """Return what is due after update `step`; everything is due after the last one."""
        config, stop = self.config, self.preemption.reached()

        def at(every: int) -> bool:
            return step == config.total_steps or (every > 0 and step % every == 0)

        evaluating = at(config.eval_every_steps)
        saving = at(config.checkpoint_every_steps) or (evaluating and config.checkpoint_every_steps > 0)
        return Due(log=at(config.log_every_steps), evaluate=evaluating, save=saving, stop=stop)

    def act(self, step: int, due: Due):
        """Do what is due after update `step`. Raise Stopped after saving where the run was asked to stop.

        The checkpoint is saved after the rows of this step are written, so that a restart finds them.
        """
        reports = self.fetch_reports(step)
        if due.log:
            self.log_row(step, learning_rate=float(reports[-1]["learning_rate"][0]))
        scores, stop = None, due.stop
        if due.evaluate and not stop:
            with contextlib.suppress(Stopped):  # an evaluation takes too long for a process that must stop
                scores = self.evaluate(step)
            stop = scores is None
        ended = self.patience.ended
        if ended and not due.log:  # these are the last updates
            self.log_row(step, learning_rate=float(reports[-1]["learning_rate"][0]))
        if stop or due.save or ended:
            unscored = due.evaluate and scores is None
            meta = dict(window=self.window.sums, unscored=unscored, patience=self.patience.stored)
            with self.waits.announced("saving", f"step {step:,}", "less than a second for a demo"):
                self.checkpoints.save(step, self.state, meta, scores)
        if stop:
            raise Stopped(f"step {step} is saved; the same command continues from it")
        if due.evaluate:
            self.write_report(step)

    def fetch_reports(self, step: int) -> list[PyTree]:
        """Wait for update `step`; add the reports of all finite updates to the window and return all reports.

        Raises:
          FloatingPointError: an update was not finite; the state before it is saved.
        """
        with self.durations.of_fetching():
            reports, good = jax.device_get(self.pending), int(jax.device_get(self.state.step))
            self.pending = []
        for report in reports[: len(reports) - (step - good)]:
            self.window.add(report)
        if good < step:
            finite = jax.device_put(np.True_, sharding.replicated(self.mesh))
            self.state = dataclasses.replace(self.state, finite=finite)
            self.checkpoints.save(good, self.state, dict(window=self.window.sums))
            raise FloatingPointError(
                f"the loss or its gradient is not finite at step {good + 1}; the state before it is "
                f"saved as step {good} in {self.checkpoints.directory}"
            )
        return reports

    def log_row(self, step: int, learning_rate: float):
        """Write the means over the updates since the last row, and begin anew."""
        values = self.window.means() | {"learning_rate": learning_rate}
        self.writer.write(step, "train", values | self.durations.values(self.config.batch_size))
        self.window, self.durations = metrics.Sums(), Durations()

    def evaluate(self, step: int) -> dict[str, float]:
        """Write and return the scores of the current state, which is that of `step`. Raise Stopped where asked to."""
        weights, stop = (self.state.params, self.state.constants), self.preemption.reached
        score = self.score if self.evaluated else self.preemption.of_compilation()(self.score)
        with self.waits.announced("the evaluation", "", EVALUATION):
            scores, _ = evaluate(score, *weights, self.task, self.config, self.mesh, stop)
        self.evaluated = True
        self.writer.write(step, "val", scores)
        self.patience.count(step, scores)
        if jax.process_index() == 0:
            write_run_card(self.workdir, self.config.to_dict(), step, scores)
        return scores

    def write_report(self, step: int):
        """Write the report of the current state, which is that of `step`, where the config asks for one."""
        if self.report:
            self.writer.examples(step, self.report.write(step, self.state.params, self.state.constants))

    def repeat_stopped_evaluation(self):
        """Evaluate the first state where the run was stopped in the evaluation of this step."""
        if self.unscored:
            self.checkpoints.add_scores(self.start, self.evaluate(self.start))


class Durations:
    """Wall-clock seconds of the updates since the last row.

    An update lasts from the request for its batch until it is dispatched, including the wait for an earlier update.
    Tracing and compiling an update are left out. Evaluating, saving and logging lie between updates.
    """

    def __init__(self):
        self.updates, self.seconds, self.waited = 0, 0.0, 0.0

    @contextlib.contextmanager
    def of_update(self) -> Iterator[None]:
        """Measure one update."""
        self.updates += 1
        with self.of_fetching():
            yield

    @contextlib.contextmanager
    def of_fetching(self) -> Iterator[None]:
        """Measure a wait for updates that were counted before."""
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began

    @contextlib.contextmanager
    def of_waiting(self) -> Iterator[None]:
        """Measure, within an update, the wait for the batch."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    @contextlib.contextmanager
    def left_out(self) -> Iterator[None]:
        """Subtract a part of an update."""
        began = time.perf_counter()
        yield
        self.seconds -= time.perf_counter() - began

    def values(self, batch_size: int) -> dict[str, float]:
        """Return the mean step time and wait for data in ms, and the sequences per second."""
        return {
            "step_time_ms": 1e3 * self.seconds / self.updates,
            "data_wait_time_ms": 1e3 * self.waited / self.updates,
            "samples_per_sec": batch_size * self.updates / self.seconds,
        }
