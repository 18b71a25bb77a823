"""Metrics: (sum, count) pairs, `metrics.jsonl`, TensorBoard, and the progress bar.

A metric is a sum and a count until it is written, so that averages over batches, processes and steps are exact.
Rows of `metrics.jsonl` are objects with `step`, `split` (train or val) and the values. Rows of an interrupted
and resumed run equal those of an uninterrupted one, except for durations, whose names contain `time` or
`per_sec`.
"""

import collections
import contextlib
import importlib.metadata
import json
import logging
import math
import pathlib
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import ml_collections
import tensorboardX
import tqdm

from vlbert_jax.files import atomic_write
from vlbert_jax.weights.stored_config import SCHEMA

log = logging.getLogger(__name__)

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "numpy",
    "vlbert_jax",
)


def write_description(workdir: pathlib.Path, config: ml_collections.ConfigDict):
    """Write config.json and versions.json (packages, devices, git revision) of the newest start."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    devices = collections.Counter(device.device_kind for device in jax.devices())
    git = ["git", "-C", str(pathlib.Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        revision = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # not a checkout, or no git
        revision = None
    about = {"packages": versions, "devices": devices, "hosts": jax.process_count(), "revision": revision}
    stored = {"schema": SCHEMA} | json.loads(config.to_json_best_effort())
    for name, content in (("config.json", stored), ("versions.json", about)):
        with atomic_write(workdir / name) as path:
            path.write_text(json.dumps(content, indent=2) + "\n")


class Sums:
    """Running (sum, count) per metric, added in float64 in the order of the calls."""

    def __init__(self, start: Mapping[str, Iterable[float]] = {}):  # noqa: B006 (only read)
        self.sums = {name: list(map(float, pair)) for name, pair in start.items()}

    def add(self, metrics: Mapping[str, tuple[Any, Any]]):
        for name, (value, count) in metrics.items():
            total = self.sums.setdefault(name, [0.0, 0.0])
            total[0] += float(value)
            total[1] += float(count)

    def means(self) -> dict[str, float]:
        """Return metric -> sum / count; a metric that counted nothing is left out."""
        return {name: value / count for name, (value, count) in self.sums.items() if count}


def read_rows(path: pathlib.Path) -> list[dict]:
    """Return the rows of a metrics.jsonl; an incomplete last line (the process was killed) is left out."""
    rows = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else ():
        if line.endswith("\n") and line.strip():
            rows.append(json.loads(line))
    return rows


class Writer:
    """Writer of rows to WORKDIR/metrics.jsonl, WORKDIR/tensorboard and the terminal, if `active` (process 0)."""

    def __init__(
        self, workdir: pathlib.Path, start_step: int, total_steps: int, unscored: bool = False, active: bool = True
    ):
        """Continue a run at `start_step`: rows that will be computed again are removed.

        Those are the rows of later steps, and of the evaluation at `start_step` if it is `unscored`.
        """
        self.path, self.active = workdir / "metrics.jsonl", active
        if not active:
            return
        last = {"val": start_step - unscored}
        rows = [row for row in read_rows(self.path) if row["step"] <= last.get(row["split"], start_step)]
        with atomic_write(self.path) as kept:
            kept.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.file = self.path.open("a")
        self.board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)
        # A progress bar on a terminal, one line per row elsewhere.
        self.bar = tqdm.tqdm(
            total=total_steps,
            initial=start_step,
            disable=not sys.stderr.isatty(),
            unit="step",
            dynamic_ncols=True,
        )

    def write(self, step: int, split: str, values: Mapping[str, float]):
        """Write one row. Values that are not finite become null, because JSON cannot represent them."""
        row = {"step": step, "split": split}
        row |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        if not self.active:
            return
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()  # from here on the row survives SIGKILL
        for name, value in values.items():
            self.board.add_scalar(f"{split}/{name}", value, step)
        short = {name: f"{value:.4g}" for name, value in values.items()}
        line = f"step {step}/{self.bar.total} {split}: " + ", ".join(f"{k} {v}" for k, v in short.items())
        log.debug("%s", line)  # for log.txt
        if self.bar.disable or split != "train":
            self.bar.write(line)
        else:
            self.bar.set_postfix({name: short[name] for name in ("loss", "samples_per_sec") if name in short})

    def progress(self, step: int):
        if self.active:
            self.bar.update(step - self.bar.n)

    def close(self):
        if self.active:
            self.file.close()
            self.board.close()
            self.bar.close()
