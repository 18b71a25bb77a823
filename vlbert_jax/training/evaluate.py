"""Evaluation: sums and counts over a finite split, in which every example counts exactly once."""

import collections
import json
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

from vlbert_jax.files import atomic_write
from vlbert_jax.model.config import matmul_precision
from vlbert_jax.tasks.base import Task
from vlbert_jax.training import metrics, sharding
from vlbert_jax.training.config import with_fields_of_training
from vlbert_jax.training.logs import Waits
from vlbert_jax.training.preemption import Preemption, Stopped
from vlbert_jax.training.provenance import with_own_vocabularies
from vlbert_jax.training.state import open_run
from vlbert_jax.weights.initialize import check_sources
from vlbert_jax.weights.model_card import write_run_card

log = logging.getLogger(__name__)

EVALUATION = "7 to 21 s for a demo on 2 cores, of which most is a compilation"  # as measured, the first one
PROGRESS = 60  # seconds between lines about an evaluation that is under way
AHEAD = 2  # batches that may be dispatched before the oldest is fetched; bounds the outputs in the devices' memory


def score_precision(config: ml_collections.ConfigDict) -> str:
    """Return the precision of matrix products outside of training."""
    return "highest" if config.compute_dtype == "float32" else config.matmul_precision


def make_score(
    graphdef: nnx.GraphDef, task: Task, config: ml_collections.ConfigDict, mesh: Mesh, predict: bool = False
) -> Callable:
    """Return the compiled `(params, constants, batch) -> scores, rows` of a task; make it once per run.

    Matrix products of float32 runs have the precision "highest", those of other runs `config.matmul_precision`.

    Args:
      graphdef: the model's structure.
      task: the task of `config.task`.
      config: the run's config.
      mesh: devices of the run.
      predict: whether `rows` are the task's predictions for each example, else those that `Task.joint_scores` needs;
        every process gets the rows of all.
    """
    rows_of = task.predict if predict else task.joint_rows

    def score(params: PyTree, constants: PyTree, batch: PyTree) -> tuple[dict, dict]:
        with matmul_precision(score_precision(config)):
            model = nnx.merge(graphdef, params, constants)
            rows = rows_of(model, batch, config)
            return task.score(model, batch, config), rows and rows | dict(index=batch.index)

    return jax.jit(score, out_shardings=sharding.replicated(mesh))


def evaluate(
    score: Callable,
    params: PyTree,
    constants: PyTree,
    task: Task,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    asked_to_stop: Callable[[], bool],
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Score each subset of `task.eval_batches`. Every process returns the same.

    Args:
      score: a function of `make_score`.
      params: trained parameters.
      constants: frozen parameters and statistics.
      task: the task of `config.task`.
      config: the run's config.
      mesh: devices of the run.
      asked_to_stop: called after each batch (`Preemption.reached`).

    Returns:
      Metric -> sum / count, with the joint scores, and the rows in the order of `index` without those of padding.
      Where several subsets have a metric of the same name, the first has the plain name and the others
      `subset/name`. A metric that counted nothing is left out. For a task with a pace there is also
      `PACE_per_second`, which alone differs between processes. The first batch, which may compile a program, is not
      timed.

    Raises:
      Stopped: `asked_to_stop` returned True; the devices have finished.
    """
    values, seen, tables, pace = {}, set(), [], _Pace(task.pace)
    last = time.monotonic()
    for subset, batches in task.eval_batches(config, jax.process_index(), jax.process_count()).items():
        sums = metrics.Sums()
        for number, (scores, rows) in enumerate(outputs(score, params, constants, batches, mesh, asked_to_stop), 1):
            if time.monotonic() - last >= PROGRESS:
                last = time.monotonic()
                log.info("the evaluation: %s batches of %s are scored", f"{number:,}", subset)
            sums.add(scores)
            tables.append(rows)
            pace.add(scores)
        values |= {f"{subset}/{name}" if name in seen else name: value for name, value in sums.means().items()}
        seen |= set(sums.sums)
    rows = _in_order(tables)
    return values | pace.values() | (task.joint_scores(rows, config) if rows else {}), rows


class _Pace:
    """Measures the sum of a metric per second, from the first batch that is finished to the last."""

    def __init__(self, name: str):
        self.name, self.began, self.sum, self.seconds = name, None, 0.0, 0.0

    def add(self, scores: dict) -> None:
        """Count a batch that is finished now."""
        if self.name and self.began is not None:
            self.sum += float(scores[self.name][0])
            self.seconds = time.perf_counter() - self.began
        self.began = self.began or time.perf_counter()

    def values(self) -> dict[str, float]:
        """Return `NAME_per_second`; nothing without a second batch."""
        if not self.seconds:
            return {}
        log.info("%s %s in %.1f s after the first batch", f"{self.sum:,.0f}", self.name, self.seconds)
        return {f"{self.name}_per_second": self.sum / self.seconds}


def outputs(score, params, constants, batches, mesh, asked_to_stop) -> Iterator[Any]:
    """Yield the outputs of `score` for each batch, in order, on the host; AHEAD are on the devices at most."""
    pending = collections.deque()
    for batch in batches:
        # The sums are over the global batch: the compiled program has already added up all processes.
        pending.append(score(params, constants, sharding.global_batch(batch, mesh)))
        if len(pending) > AHEAD:
            yield jax.device_get(pending.popleft())
        if asked_to_stop():
            jax.block_until_ready(list(pending))
            raise Stopped("in an evaluation; the same command does it again")
    while pending:
        yield jax.device_get(pending.popleft())


def _in_order(tables: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the rows by their index, without padding; those of several tasks have different names."""
    alike, found = collections.defaultdict(list), {}
    for table in tables:
        alike[tuple(table)].append(table)
    for names, those in alike.items():
        rows = {name: np.concatenate([table[name] for table in those]) for name in names}
        if rows:
            order = np.argsort(rows["index"], kind="stable")
            order = order[rows["index"][order] >= 0]
            found |= {name: array[order] for name, array in rows.items()}
    return found


def evaluate_run(
    config: ml_collections.ConfigDict, task: Task, workdir: pathlib.Path, mesh: Mesh
) -> dict[str, float | int]:
    """Score the newest checkpoint of `workdir`, or the weights of `config.init`; only the model's fields must agree.

    Process 0 writes WORKDIR/scores.json and, for a task with predictions, the files in WORKDIR/predictions.

    Args:
      config: the run's config.
      task: the task of `config.task`.
      workdir: folder of the run and of the results.
      mesh: devices to evaluate on.

    Returns:
      `step` and the scores.

    Raises:
      FileNotFoundError: there are no weights.
      Stopped: the process received SIGTERM.
    """
    check_sources(config, workdir, "evaluate")
    config = with_fields_of_training(with_own_vocabularies(config, workdir), workdir)
    predict = task.overrides("predict")
    companions = task.companions(config)
    nowhere = workdir / "predictions" / "of_companions"  # holds no checkpoint: `init` of their configs names weights
    with Preemption() as preemption:
        evaluated = _evaluate_weights(config, task, workdir, mesh, predict, preemption)
        step, scores, predictions = evaluated[0], evaluated[1], {"": evaluated[2]}
        for name, other in companions.items():
            predictions[name] = _evaluate_weights(other, task, nowhere, mesh, predict, preemption)[2]
    if jax.process_index() == 0:
        if predict:
            (workdir / "predictions").mkdir(exist_ok=True)
            scores |= task.conclude(workdir / "predictions", predictions, config)
            log.info("predictions: %s", workdir / "predictions")
        scores = {"step": step} | scores
        with atomic_write(workdir / "scores.json") as path:
            path.write_text(json.dumps(scores, indent=2) + "\n")
        if (workdir / "versions.json").exists():  # the workdir holds the weights that were scored
            write_run_card(workdir, config.to_dict(), step, scores)
    return scores


def _evaluate_weights(config, task, workdir, mesh, predict: bool, preemption: Preemption) -> tuple[int, dict, dict]:
    """Return the step, scores and rows of the weights of a run; see `evaluate_run`."""
    run = open_run(config, task, workdir, mesh, read_only=True)
    score = preemption.of_compilation()(make_score(run.graphdef, task, config, mesh, predict))
    with jax.set_mesh(mesh), Waits().announced("the evaluation", "", EVALUATION):
        scores, rows = evaluate(
            score, run.state.params, run.state.constants, task, config, mesh, preemption.reached
        )
    return int(run.state.step), scores, rows

