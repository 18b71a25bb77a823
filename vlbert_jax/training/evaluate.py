"""A finite split, exactly once: sums and counts over all its batches and hosts."""

import json
import logging
import pathlib
from collections.abc import Callable

import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import PyTree

from vlbert_jax.tasks.base import Task
from vlbert_jax.training import metrics, sharding
from vlbert_jax.training.preemption import Preemption, Stopped
from vlbert_jax.training.state import TrainState, open_run
from vlbert_jax.weights.initialize import check_sources

log = logging.getLogger(__name__)

AHEAD = 2  # batches that may be on their way to the devices


def make_score(
    graphdef: nnx.GraphDef, task: Task, config: ml_collections.ConfigDict, mesh: Mesh, predict: bool = False
) -> Callable:
    """The compiled `(params, constants, batch) -> scores, rows` of a task; make it once per run.

    `rows` are the task's predictions for each example if `predict`, else empty; every host gets those of all.
    """

    def score(params: PyTree, constants: PyTree, batch: PyTree) -> tuple[dict, dict]:
        model = nnx.merge(graphdef, params, constants)
        rows = task.predict(model, batch, config) | dict(index=batch.index) if predict else {}
        return task.score(model, batch, config), rows

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
    """Metric -> sum / count over each subset of `task.eval_batches`, and the rows; `score` is from `make_score`.

    Where several subsets have a metric of the same name, the first has the plain name, the others `subset/name`. A
    metric that counted nothing is left out. Rows are in the order of their `index`, without what filled up batches.
    Every host gets the same. `asked_to_stop` is called after each batch (`checkpoint.Preemption.reached`); then raises
    checkpoint.Stopped, with nothing left to the devices.
    """
    values, seen, tables = {}, set(), []
    for subset, batches in task.eval_batches(config, jax.process_index(), jax.process_count()).items():
        pending = []
        for batch in batches:
            # The sums are over the global batch: the compiled program has already added up all hosts.
            pending.append(score(params, constants, sharding.global_batch(batch, mesh)))
            if len(pending) > AHEAD:
                jax.block_until_ready(pending[-1 - AHEAD])
            if asked_to_stop():
                jax.block_until_ready(pending)
                raise Stopped("in an evaluation; the same command does it again")
        sums = metrics.Sums()
        for scores, rows in jax.device_get(pending):
            sums.add(scores)
            tables.append(rows)
        values |= {
            f"{subset}/{name}" if name in seen else name: value for name, value in sums.means().items()
        }
        seen |= set(sums.sums)
    return values, _in_order(tables)


def _in_order(tables: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    if not tables or not tables[0]:
        return {}
    rows = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    order = np.argsort(rows["index"], kind="stable")
    order = order[rows["index"][order] >= 0]
    return {name: array[order] for name, array in rows.items()}


def evaluate_run(
    config: ml_collections.ConfigDict, task: Task, workdir: pathlib.Path, mesh: Mesh
) -> dict[str, float | int]:
    """Scores, and `step`, of the newest checkpoint of `workdir` or of `config.init`; host 0 writes scores.json, too.

    A task with predictions writes them to WORKDIR/predictions. Only the fields that shape the model must be those of
    the run. Raises FileNotFoundError without any weights, and checkpoint.Stopped.
    """
    check_sources(config, workdir, "evaluate")
    predict = task.overrides("predict")

    def evaluated(config: ml_collections.ConfigDict, workdir: pathlib.Path):
        run = open_run(config, task, workdir, mesh, read_only=True)
        score = make_score(run.graphdef, task, config, mesh, predict)
        weights, stop = (run.state.params, run.state.constants), preemption.reached
        with jax.set_mesh(mesh):
            return int(run.state.step), *evaluate(score, *weights, task, config, mesh, stop)

    companions = task.companions(config)
    nowhere = workdir / "predictions" / "of_companions"  # has no checkpoint: theirs are named by their config
    with Preemption() as preemption:
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


def write_run_report(
    config: ml_collections.ConfigDict,
    task: Task,
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
