"""Probes: what a trained model does with parts of its input removed (`--mode=probe`). The task defines them."""

from __future__ import annotations

import itertools
import logging
import pathlib
import time
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from vlbert_jax.model.architectures import VLBERT
from vlbert_jax.model.config import matmul_precision
from vlbert_jax.tasks.base import Task
from vlbert_jax.training import sharding
from vlbert_jax.training.config import with_fields_of_training
from vlbert_jax.training.evaluate import PROGRESS, outputs, score_precision
from vlbert_jax.training.logs import Waits
from vlbert_jax.training.preemption import Preemption
from vlbert_jax.training.provenance import with_own_vocabularies
from vlbert_jax.training.state import open_run
from vlbert_jax.weights.initialize import check_sources

log = logging.getLogger(__name__)


def check_probes(task: Task) -> None:
    """Raise ValueError for a task without probes."""
    if not task.overrides("probe"):
        raise ValueError(
            f"config.task={task.name} has no probes; --mode=probe is for pre-training: choose a recipe such as "
            "--config=pretrain, and --config.init.checkpoint=WEIGHTS for weights from elsewhere."
        )


def probe_run(config: ml_collections.ConfigDict, task: Task, workdir: pathlib.Path, mesh: Mesh) -> list[str]:
    """Probe the newest checkpoint of `workdir`, or the weights of `config.init`, on the evaluation split.

    Process 0 writes the results to WORKDIR/probes. Matrix products have the precision of an evaluation.

    Args:
      config: the run's config.
      task: a task with probes.
      workdir: folder of the run and of the results.
      mesh: devices to compute on.

    Returns:
      The lines to print; none on the other processes.

    Raises:
      FileNotFoundError: there are no weights.
      ValueError: the split has no example.
      Stopped: the process received SIGTERM.
    """
    check_sources(config, workdir, "probe")
    config = with_fields_of_training(with_own_vocabularies(config, workdir), workdir)
    with Preemption() as preemption:
        run = open_run(config, task, workdir, mesh, read_only=True)

        def probe(params: PyTree, constants: PyTree, batch: PyTree) -> dict[str, Any]:
            with matmul_precision(score_precision(config)):
                return task.probe(nnx.merge(run.graphdef, params, constants), batch, config)

        program = preemption.of_compilation()(jax.jit(probe, out_shardings=sharding.replicated(mesh)))
        batches = task.probe_batches(config, jax.process_index(), jax.process_count())
        first = next(batches)
        sums, shown, last = {}, None, time.monotonic()
        with jax.set_mesh(mesh), Waits().announced("the probes", "", "up to a minute for a demo on 2 cores"):
            state, all_batches = run.state, itertools.chain([first], batches)
            found = outputs(program, state.params, state.constants, all_batches, mesh, preemption.reached)
            for number, output in enumerate(found, 1):
                sums = _added(sums, output["sums"])
                shown = output["shown"] if shown is None else shown
                if time.monotonic() - last >= PROGRESS:
                    last = time.monotonic()
                    log.info("the probes: %s batches are done", f"{number:,}")
    if jax.process_index():
        return []
    about = dict(
        step=int(run.state.step), split=config.data.eval_split, checkpoint=config.init.checkpoint,
        architecture=config.model.get("architecture", VLBERT.name),
    )  # fmt: skip
    (workdir / "probes").mkdir(exist_ok=True)
    return task.conclude_probe(workdir / "probes", about, sums, (first, shown), config)


def _added(sums: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Return the sums of (sum, count) of arrays in double precision."""
    more = jax.tree.map(lambda x: np.asarray(x, np.float64), more)
    return jax.tree.map(np.add, sums, more) if sums else more
