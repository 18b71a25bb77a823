"""Checkpoints of a run, written while training goes on (Orbax): state, step, config and scores in one.

WORKDIR/checkpoints/STEP/ holds `state` (step, params, constants, opt_state as nested dicts of arrays, named
as the model's attributes are) and `meta` (JSON). The data position is the step: batch k of a run is a
function of (config, k). A checkpoint is whole or, after a crash while writing, not there.
"""

import json
import logging
import math
import pathlib
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp
from flax import nnx
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from vlbert_jax.files import disk_full
from vlbert_jax.training.config import config_differences

log = logging.getLogger(__name__)
LOWER_IS_BETTER = ("loss", "error", "perplexity")  # in the name of the best metric


class _Manager(ocp.CheckpointManager):
    """Orbax's, which asks for a preemption with step numbers; `Preemption` counts otherwise, and the loop decides."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one workdir: the newest `keep_checkpoints`, and the best by `best_metric`."""

    def __init__(self, workdir: pathlib.Path, config: ml_collections.ConfigDict, read_only: bool = False):
        """Raises ValueError where the newest checkpoint's config differs in a field that may not.

        `read_only` leaves the folder alone, so that it can be looked at while the run goes on; then only the
        fields that shape the model have to agree.
        """
        self.directory, self.config = pathlib.Path(workdir).absolute() / "checkpoints", config.to_dict()
        self.metric = metric = config.best_metric
        policies = ocp.checkpoint_managers
        keep = [policies.LatestN(config.keep_checkpoints)]
        lower = any(word in metric for word in LOWER_IS_BETTER)

        def order(scores: dict[str, float]) -> float:
            """Of a checkpoint among all; last, where it was scored when another metric was the best one."""
            value = scores.get(metric, math.nan)
            return value if math.isfinite(value) else math.inf if lower else -math.inf

        if metric:
            keep.append(
                policies.BestN(get_metric_fn=order, reverse=lower, n=1, keep_checkpoints_without_metrics=False)
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            best_fn=order if metric else None,  # without it the scores are not written, and a restart forgets the best
            cleanup_tmp_directories=not read_only,  # of an earlier process that was killed while saving
            read_only=read_only,
        )
        with disk_full(self.directory):
            self.manager = _Manager(self.directory, options=options)
        if self.latest_step() is None:
            return
        fixed = ("task", "model.", "subtask", "blind") if read_only else ("",)
        before = self.meta()["config"]
        if all(run.get("data", {}).get("extractor") for run in (before, self.config)):
            fixed += ("data.extractor",)  # of both it is known
        if names := config_differences(before, self.config, fixed):
            names.sort(key=lambda name: name != "task")  # which explains all the others
            listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            raise ValueError(
                f"{workdir} holds a run with another config; these fields differ: {listed}. "
                "Choose another --workdir, or start from its weights with --config.init.checkpoint"
            )

    def latest_step(self) -> int | None:
        return self.manager.latest_step()

    def meta(self) -> dict[str, Any]:
        """What `save` stored beside the newest state: `config` and its own `meta`."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self.manager.restore(self.latest_step(), args=args)["meta"]

    def restore(self, abstract: PyTree, shardings: PyTree) -> PyTree:
        """The newest state, each device reading its part; another mesh than the one that saved is fine."""
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), plain(abstract), plain(shardings)
        )
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        restored = self.manager.restore(self.latest_step(), args=args)["state"]
        return jax.tree.unflatten(jax.tree.structure(abstract), jax.tree.leaves(restored))

    def save(self, step: int, state: PyTree, meta: dict[str, Any], scores: dict[str, float] | None = None):
        """Starts saving; returns when the state is copied to the host. A step that is there is left alone.

        `scores` of an evaluation at this very step make the checkpoint a candidate for the best.
        Raises OSError when the disk is full, for this save or at the latest at the next call or `close`.
        """
        if step in self.manager.all_steps():  # Orbax raises for it
            return
        scores = self._ranked(scores)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(plain(state)), meta=ocp.args.JsonSave(meta | {"config": self.config})
        )
        with disk_full(self.directory):
            self.manager.save(step, args=args, metrics=scores)

    def add_scores(self, step: int, scores: dict[str, float]):
        """Makes a checkpoint that was saved without scores a candidate for the best."""
        if not self.metric or self._ranked(scores) is None:
            return
        folder = self.directory / str(step) / "metrics"  # where Orbax puts and looks for them
        if jax.process_index() == 0:
            folder.mkdir(exist_ok=True)
            (folder / "metrics.tmp").write_text(json.dumps(scores))
            (folder / "metrics.tmp").replace(folder / "metrics")
        multihost_utils.sync_global_devices(f"scores of step {step}")
        self.manager.reload()

    def _ranked(self, scores: dict[str, float] | None) -> dict[str, float] | None:
        """The scores; None where they do not say how good the checkpoint is."""
        if scores is not None and self.metric and not math.isfinite(scores.get(self.metric, math.nan)):
            log.warning("best_metric %r has no value among the scores", self.metric)
            return None
        return scores

    def close(self):
        """Waits for the save under way."""
        with disk_full(self.directory):
            self.manager.wait_until_finished()
        self.manager.close()


def plain(tree: PyTree) -> PyTree:
    """NNX states without their variables' metadata: what is on disk does not depend on Flax."""
    return nnx.as_pure(tree)
