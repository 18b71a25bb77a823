"""The report of a run while it trains: the page in WORKDIR/report, and its examples for trackers."""

import logging
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from vlbert_jax.files import with_addresses
from vlbert_jax.model.config import matmul_precision
from vlbert_jax.tasks.base import About, Task
from vlbert_jax.training import metrics, sharding
from vlbert_jax.training.description import facts_of
from vlbert_jax.training.evaluate import score_precision
from vlbert_jax.training.logs import Waits
from vlbert_jax.training.patience import patience_of
from vlbert_jax.weights.stored_config import flat_config

log = logging.getLogger(__name__)


class RunReport:
    """Writes the report of a run as often as it is asked to.

    The batches of the examples are made, and the program that answers them is compiled, once per start.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, task: Task, workdir: pathlib.Path, graphdef: nnx.GraphDef, mesh: Mesh,
        waits: Waits,
    ):  # fmt: skip
        self.config, self.task, self.workdir, self.mesh = config, task, workdir, mesh
        self.batches: list[Any] | None = None  # on the host, to leave the devices' memory to the updates
        self.step: int | None = None  # of the last report
        self.waits = waits

        def answer(params: PyTree, constants: PyTree, batch: PyTree) -> dict:
            with matmul_precision(score_precision(config)):
                return task.report_rows(nnx.merge(graphdef, params, constants), batch, config)

        self.answer = jax.jit(answer, out_shardings=sharding.replicated(mesh))

    def write(self, step: int, params: PyTree, constants: PyTree) -> list[tuple[str, np.ndarray]]:
        """Write the page on process 0, and return examples as texts and images that hold them.

        Every process takes part, because the examples are answered by all devices together. What it is asked for at
        a step for which the page exists is not done again.
        """
        if self.step == step:
            return []
        with self.waits.announced("the report", "", "3 to 5 s for a demo on 2 cores, of which most is a compilation"):
            drawings = self._write(step, params, constants)
        self.step = step
        if jax.process_index() == 0:
            log.info("report: %s", self.workdir / "report" / "index.html")
        return drawings

    def _write(self, step: int, params: PyTree, constants: PyTree) -> list[tuple[str, np.ndarray]]:
        if self.batches is None:
            self.batches = self.task.report_batches(self.config)
        shown = []
        for batch in self.batches:
            rows = self.answer(params, constants, sharding.whole_batch(batch, self.mesh))
            shown.append((batch, jax.device_get(rows)))
        drawings = []
        if jax.process_index() == 0:
            history = metrics.read_rows(self.workdir / "metrics.jsonl")
            about = about_run(self.config, self.task, self.workdir, step, history)
            (self.workdir / "report").mkdir(exist_ok=True)
            examples = self.task.write_report(self.workdir / "report", shown, self.config, history, about)
            drawings = examples.drawings()
        return drawings


def about_run(
    config: ml_collections.ConfigDict, task: Task, workdir: pathlib.Path, step: int, history: list[dict]
) -> About:
    """Return what the page says about the run at `step`."""
    facts, path = facts_of(workdir, history), shlex.quote(with_addresses(str(workdir)))
    patience = patience_of(config, history)
    done = step >= config.total_steps or patience.ended
    data = ", ".join(str(config.data[name]) for name in ("captions", "text", "texts", "images") if name in config.data)
    status = (
        f"{'Finished' if done else 'Under way'}: {step:,} of {config.total_steps:,} updates of {config.batch_size} "
        f"sequences; data: {data or 'its own'}."
    )
    if patience.ended:
        status += f" It ended early: {patience.reason}."
    return About(status, facts, _next(config, task, path, facts, done), flat_config(config.to_dict()))


def _next(config, task: Task, workdir: str, facts: Mapping[str, str], done: bool) -> list[tuple[str, str]]:
    """Return what to run next; `workdir` is quoted."""
    commands, command = [], facts["command"]
    can_repeat = "vlbert_jax.main" in command or command.startswith("vlbert-train")
    if can_repeat and not done:
        commands.append(("Continue the run, if it was stopped:", command))
    commands += task.next_commands(config, workdir)
    if can_repeat:
        commands.append(("Score it again, and write its predictions:", f"{command} --mode=evaluate"))
    commands.append(("Compare it with another run:", f"python -m vlbert_jax.report {workdir} OTHER_WORKDIR"))
    commands.append(("Look at the curves and examples in TensorBoard:", f"tensorboard --logdir {workdir}"))
    return commands

