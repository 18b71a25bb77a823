"""A finite split, exactly once: sums and counts over all its batches and hosts."""

from collections.abc import Callable
from types import ModuleType

import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from vlbert_jax import checkpoint, metrics, sharding

AHEAD = 2  # batches that may be on their way to the devices


def make_score(
    graphdef: nnx.GraphDef, task: ModuleType, config: ml_collections.ConfigDict, mesh: Mesh, predict: bool = False
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
    task: ModuleType,
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
                raise checkpoint.Stopped("in an evaluation; the same command does it again")
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
