"""A finite split, exactly once: sums and counts over all its batches and hosts."""

from collections.abc import Callable
from types import ModuleType

import jax
import ml_collections
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from vlbert_jax import metrics, sharding

AHEAD = 2  # batches that may be on their way to the devices


def make_score(
    graphdef: nnx.GraphDef, task: ModuleType, config: ml_collections.ConfigDict, mesh: Mesh
) -> Callable:
    """The compiled `score(params, constants, batch)` of a task; make it once per run."""

    def score(params: PyTree, constants: PyTree, batch: PyTree) -> dict:
        return task.score(nnx.merge(graphdef, params, constants), batch, config)

    return jax.jit(score, out_shardings=sharding.replicated(mesh))


def evaluate(
    score: Callable,
    params: PyTree,
    constants: PyTree,
    task: ModuleType,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
) -> dict[str, float]:
    """Metric -> sum / count over each subset of `task.eval_batches`; `score` is from `make_score`.

    Where several subsets have a metric of the same name, the first has the plain name, the others
    `subset/name`. Every host gets the same numbers. A metric that counted nothing is left out.
    """
    values, seen = {}, set()
    for subset, batches in task.eval_batches(config, jax.process_index(), jax.process_count()).items():
        pending = []
        for batch in batches:
            # The sums are over the global batch: the compiled program has already added up all hosts.
            pending.append(score(params, constants, sharding.global_batch(batch, mesh)))
            if len(pending) > AHEAD:
                jax.block_until_ready(pending[-1 - AHEAD])
        sums = metrics.Sums()
        for scores in jax.device_get(pending):
            sums.add(scores)
        values |= {
            f"{subset}/{name}" if name in seen else name: value for name, value in sums.means().items()
        }
        seen |= set(sums.sums)
    return values
