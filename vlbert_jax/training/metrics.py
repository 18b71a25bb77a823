"""Metrics: (sum, count) pairs, `metrics.jsonl`, and the progress bar.

A metric is a sum and a count until it is written, so that averages over batches, processes and steps are exact.
Rows of `metrics.jsonl` are objects with `step`, `split` (train or val) and the values. Rows of an interrupted
and resumed run equal those of an uninterrupted one, except for durations, whose names contain `time` or
`per_sec`.
"""

import contextlib
import json
import logging
import math
import pathlib
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tqdm

from vlbert_jax.files import atomic_write, json_object
from vlbert_jax.training.trackers import Drawings, Tracker
from vlbert_jax.weights.stored_config import current_metric

log = logging.getLogger(__name__)
SPLITS = ("train", "val")


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
    """Return the rows of a metrics.jsonl; an incomplete last line (the process was killed) is left out.

    Raises:
        ValueError: Another line is damaged.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else (), 1):
        if line.endswith(b"\n") and line.strip():
            remedy = "remove this line; only curves and tables of the report are made of it"
            row = json_object(line, f"{path}, line {number},", remedy, "step", "split")
            kinds, whole = dict(step=int, split=str), ("step", "step_time_ms")  # the others are metrics
            for name, value in row.items():
                is_kind = isinstance(value, kinds.get(name, int | float | None)) and not isinstance(value, bool)
                if not is_kind or (name in whole and value is not None and not abs(value) < 2**63):
                    raise ValueError(f"{path}, line {number}, is damaged: {name} is {str(value)[:60]!r}; {remedy}")
            rows.append({current_metric(name): value for name, value in row.items()})
    return rows


class Bar(tqdm.tqdm):
    """A progress bar whose rate and remaining time do not depend on the wall clock, which may jump."""

    def __init__(self, **options):
        super().__init__(**options)
        if not self.disable:
            self._time = time.monotonic
            self.start_t = self.last_print_t = self._time()


class Writer:
    """Writer of rows to WORKDIR/metrics.jsonl, the trackers and the terminal; without a workdir it writes nothing."""

    def __init__(
        self, workdir: pathlib.Path | None, start_step: int, total_steps: int, unscored: bool = False,
        best_metric: str = "", trackers: Sequence[Tracker] = (),
    ):  # fmt: skip
        """Continue a run at `start_step`: rows that will be computed again are removed.

        Those are the rows of later steps, and of the evaluation at `start_step` if it is `unscored`. The progress bar
        shows `best_metric` of the newest evaluation.
        """
        self.active = workdir is not None
        if workdir is None:
            return
        self.path, self.trackers, self.best_metric = workdir / "metrics.jsonl", trackers, best_metric
        last = {"val": start_step - unscored}
        rows = [row for row in read_rows(self.path) if row["step"] <= last.get(row["split"], start_step)]
        with atomic_write(self.path) as kept:
            kept.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.file = self.path.open("a")
        # A progress bar on a terminal, one line per row elsewhere.
        self.bar = Bar(
            total=total_steps,
            initial=start_step,
            disable=not sys.stderr.isatty(),
            unit="step",
            dynamic_ncols=True,
        )
        self.shown = {split: next((row for row in reversed(rows) if row["split"] == split), {}) for split in SPLITS}
        self._show_values()

    def write(self, step: int, split: str, values: Mapping[str, float]):
        """Write one row. Values that are not finite become null, because JSON cannot represent them."""
        row = {"step": step, "split": split}
        row |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        if not self.active:
            return
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()  # from here on the row survives SIGKILL
        for tracker in self.trackers:
            tracker.scalars(step, split, values)
        line = f"step {step}/{self.bar.total} {split}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items())
        log.debug("%s", line)  # for log.txt
        self.shown[split] = row
        if self.bar.disable or split != "train":
            self.bar.write(line)
        self._show_values()

    def _show_values(self):
        self.bar.set_postfix_str(bar_values(self.shown["train"], self.shown["val"], self.best_metric))

    def examples(self, step: int, drawings: Drawings):
        """Pass examples of the report to the trackers."""
        if self.active and drawings:
            for tracker in self.trackers:
                tracker.examples(step, drawings)

    def progress(self, step: int):
        if self.active:
            self.bar.update(step - self.bar.n)

    def close(self):
        if self.active:
            with contextlib.ExitStack() as stack:
                for tracker in self.trackers:
                    stack.callback(tracker.close)
                stack.callback(self.bar.close)
                stack.callback(self.file.close)


def bar_values(train: Mapping[str, Any], val: Mapping[str, Any], best_metric: str) -> str:
    """Return what the progress bar shows: loss, accuracy and speed of training, and the best metric of the evaluation.

    The accuracy of training is the best metric itself, or the first accuracy of the row where the best metric is one of
    evaluations alone.
    """
    accuracies = [name for name in (best_metric, *train) if name in train and "accuracy" in name]
    shown = [f"loss {train['loss']:.4g}"] if train.get("loss") is not None else []
    if accuracies and train[accuracies[0]] is not None:
        shown.append(f"{accuracies[0]} {train[accuracies[0]]:.1%}")
    if train.get("samples_per_sec"):
        shown.append(f"{train['samples_per_sec']:.4g} sequences/s")
    if val.get(best_metric) is not None:
        form = ".1%" if "accuracy" in best_metric else ".4g"
        shown.append(f"val {best_metric} {val[best_metric]:{form}}")
    return ", ".join(shown)
