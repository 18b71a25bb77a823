"""Checkpoints of a run, written while training continues (Orbax): state, step, config and scores in one.

WORKDIR/checkpoints/STEP/ holds `state` (step, params, constants, opt_state as nested dicts of arrays, named as the
model's attributes are) and `meta` (JSON). The data position is the step: batch k of a run is a function of (config, k).
Checkpoints are written atomically, with checksums of their files. A damaged one is not used but the one before it.

Several processes write to one folder that they share. Where each has its own copy of a workdir in a bucket, process 0
alone writes the whole state, and each process reads its parts from its copy.
"""

import copy
import json
import logging
import math
import pathlib
import shutil
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from vlbert_jax.files import address_of, atomic_write, disk_full
from vlbert_jax.training.config import config_differences
from vlbert_jax.training.patience import lower_is_better
from vlbert_jax.training.provenance import check_provenance, provenance_of
from vlbert_jax.training.sharding import replicated
from vlbert_jax.weights.checksums import newest_intact, write_checksums
from vlbert_jax.weights.stored_config import SCHEMA, completed, current_metric, upgraded

log = logging.getLogger(__name__)
SHAPING = ("task", "model.", "subtask", "blind")  # fields that must agree where a run is only read


class _Manager(ocp.CheckpointManager):
    """Orbax's manager without its handling of preemption: `Preemption` counts calls, and the loop decides."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one workdir: the newest `keep_checkpoints`, and the best by `best_metric`."""

    def __init__(self, workdir: pathlib.Path, config: ml_collections.ConfigDict, read_only: bool = False):
        """Open the folder and compare its newest checkpoint with this run.

        Args:
          workdir: folder of the run.
          config: the run's config.
          read_only: whether the folder is left alone, so that a run may be read while it continues. Then only the
            fields that shape the model have to agree.

        Raises:
          ValueError: the stored config differs in a field that may not, the data differ from those of the run, or all
            checkpoints are damaged.
        """
        self.directory, self.config = pathlib.Path(workdir).absolute() / "checkpoints", config.to_dict()
        self.metric = config.best_metric
        self.by_first = jax.process_count() > 1 and bool(address_of(workdir))  # process 0 alone saves, in its copy
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept(config.keep_checkpoints),
            # Without `best_fn` Orbax does not write the scores, and a restart does not know the best.
            best_fn=self._goodness if self.metric else None,
            cleanup_tmp_directories=not read_only,  # of an earlier process that was killed while saving
            read_only=read_only or (self.by_first and jax.process_index() > 0),
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            **(self._without_others() if self.by_first else {}),
        )
        self.newest = self._newest_intact(read_only)  # the step that is restored, None without any
        with disk_full(self.directory):
            self.manager = _Manager(self.directory, options=options)
        self.provenance = {} if read_only else provenance_of(config)
        if self.newest is not None:
            meta = self.meta()
            self._check_config(meta["config"], read_only)
            if not read_only:
                check_provenance(meta.get("provenance", {}), self.provenance, config.allow_other_data)

    def _without_others(self) -> dict[str, Any]:
        """Return options by which Orbax waits for no other process, and create the folder, which it does not then."""
        self.directory.mkdir(parents=True, exist_ok=True)
        own = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
        )
        return dict(multiprocessing_options=alone, create=False)

    def _kept(self, newest: int) -> ocp.checkpoint_managers.AnyPreservationPolicy:
        """Return the policy by which Orbax keeps checkpoints: the newest ones, and the best one."""
        policies = ocp.checkpoint_managers
        keep = [policies.LatestN(newest)]
        if self.metric:
            # This line decides which checkpoint is the best: the one of the highest (or lowest) `_goodness`.
            best = dict(get_metric_fn=self._goodness, reverse=lower_is_better(self.metric), n=1)
            keep.append(policies.BestN(**best, keep_checkpoints_without_metrics=False))
        return policies.AnyPreservationPolicy(keep)

    def _goodness(self, scores: dict[str, float]) -> float:
        """Return the value of the best metric; the worst value where another metric was the best one at the time."""
        value = {current_metric(name): score for name, score in scores.items()}.get(self.metric, math.nan)
        return value if math.isfinite(value) else math.inf if lower_is_better(self.metric) else -math.inf

    def _check_config(self, stored: dict[str, Any], read_only: bool):
        """Raise ValueError where the stored config differs in a field that may not."""
        workdir = self.directory.parent
        before, fixed = completed(stored, self.config, str(workdir)), SHAPING if read_only else ("",)
        if all(run.get("data", {}).get("extractor") for run in (before, self.config)):
            fixed += ("data.extractor",)  # it is compared where both are known
        if names := config_differences(before, self.config, fixed):
            names.sort(key=lambda name: name != "task")  # another task explains all other differences
            listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            raise ValueError(
                f"{workdir} holds a run with another config; these fields differ: {listed}. "
                "Choose another --workdir, or start from its weights with --config.init.checkpoint"
            )

    def _newest_intact(self, read_only: bool) -> int | None:
        """Return the step of the newest checkpoint that is not damaged, None without any.

        A run that continues moves the damaged ones away, because it will save these steps again. Process 0 looks for
        all, in the folder that they share. Raises ValueError if all checkpoints are damaged.
        """
        newest = np.int32(-1)
        if jax.process_index() == 0:
            remedy = f"remove this folder; then the run starts again{'' if read_only else ' from the beginning'}"
            if found := newest_intact(self.directory, remedy):
                newest = np.int32(found.name)
            for path in [] if read_only or not found else self.directory.iterdir():
                if path.name.isdigit() and int(path.name) > newest:
                    moved = self.directory.parent / "damaged_checkpoints" / path.name
                    shutil.rmtree(moved, ignore_errors=True)
                    moved.parent.mkdir(exist_ok=True)
                    path.rename(moved)
                    log.warning("%s was moved to %s; the run continues from step %d", path, moved, newest)
        if jax.process_count() > 1:
            newest = multihost_utils.broadcast_one_to_all(newest)
        return int(newest) if newest >= 0 else None

    def _seal(self):
        """Write the checksums of the checkpoint that is complete and will now be committed; Orbax calls this."""
        for path in self.directory.glob(f"{self.saving}.orbax-checkpoint-tmp*"):
            write_checksums(path)

    def meta(self) -> dict[str, Any]:
        """Return what `save` stored with the newest state: `meta`, `provenance`, and `config` as of this version."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        meta = self.manager.restore(self.newest, args=args)["meta"]
        return meta | {"config": upgraded(meta["config"], meta.get("schema"), str(self.directory.parent))}

    def restore(self, abstract: PyTree, shardings: PyTree) -> PyTree:
        """Return the newest state; each device reads its part. The mesh may differ from the one that saved it."""
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), plain(abstract), plain(shardings)
        )
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        restored = self.manager.restore(self.newest, args=args)["state"]
        return jax.tree.unflatten(jax.tree.structure(abstract), jax.tree.leaves(restored))

    def save(self, step: int, state: PyTree, meta: dict[str, Any], scores: dict[str, float] | None = None):
        """Start saving; return when the state is copied to the host. A checkpoint that exists is left alone.

        Args:
          step: updates that `state` has.
          state: the state of the run.
          meta: what `meta` returns, as JSON values.
          scores: scores of an evaluation of this very state; with them the checkpoint is a candidate for the best.

        Raises:
          OSError: the disk is full, for this save or at the latest at the next call or `close`.
        """
        state = plain(state)
        if self.by_first:
            state = _whole_on_first(state)
            if state is None:
                return
        if step in self.manager.all_steps():  # Orbax raises for it
            return
        # A copy, because Orbax writes it in another thread while the run adds to its sums.
        stored = copy.deepcopy(meta) | {"config": self.config, "schema": SCHEMA, "provenance": self.provenance}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(stored))
        with disk_full(self.directory):
            self.manager.wait_until_finished()
            self.saving = step
            self.manager.save(step, args=args, metrics=self._ranked(scores))

    def add_scores(self, step: int, scores: dict[str, float]):
        """Make a checkpoint that was saved without scores a candidate for the best."""
        if not self.metric or self._ranked(scores) is None:
            return
        if jax.process_index() == 0:
            with atomic_write(self.directory / str(step) / "metrics" / "metrics") as path:  # where Orbax looks for them
                path.write_text(json.dumps(scores))
        multihost_utils.sync_global_devices(f"scores of step {step}")
        self.manager.reload()

    def _ranked(self, scores: dict[str, float] | None) -> dict[str, float] | None:
        """Return the scores, or None where the best metric is not among them."""
        if scores is not None and self.metric and not math.isfinite(scores.get(self.metric, math.nan)):
            log.warning("best_metric %r has no value among the scores", self.metric)
            return None
        return scores

    def close(self):
        """Wait for the save under way."""
        log.debug("waiting until the last checkpoint is written")
        with disk_full(self.directory):
            self.manager.wait_until_finished()
        self.manager.close()


def _whole_on_first(state: PyTree) -> PyTree | None:
    """Return the arrays of a state, whole and on the host, to process 0, and None to the others; all must call it."""
    is_first = jax.process_index() == 0

    def fetched(x: jax.Array) -> np.ndarray | None:
        if not x.is_fully_replicated:
            x = jax.device_put(x, replicated(x.sharding.mesh))  # pyright: ignore[reportAttributeAccessIssue]
        return np.asarray(x.addressable_data(0)) if is_first else None

    state = jax.tree.map(fetched, state)
    return state if is_first else None


def plain(tree: PyTree) -> PyTree:
    """Return NNX states without their variables' metadata, so that files do not depend on Flax."""
    return nnx.as_pure(tree)
