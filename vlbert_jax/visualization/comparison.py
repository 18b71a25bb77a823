"""The comparison page: several runs over each other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from vlbert_jax.visualization import report
from vlbert_jax.visualization.charts import Line, line_chart
from vlbert_jax.visualization.metric_names import format_value, is_share, title_of
from vlbert_jax.visualization.templates import Html

COLORS = 8  # classes run0, run1, ... of report.css


@dataclasses.dataclass(frozen=True)
class ComparedRun:
    """What a workdir says about its run."""

    name: str
    rows: Sequence[Mapping[str, Any]]  # of metrics.jsonl
    config: Mapping[str, Any]  # fields by dotted name
    facts: Mapping[str, str]  # as in its report

    def scores(self) -> Mapping[str, Any]:
        """Return the last evaluation; empty if there is none."""
        return next((row for row in reversed(self.rows) if row["split"] == "val"), {})


def comparison_sections(runs: Sequence[ComparedRun], labels: report.Labels) -> list[tuple[str, Html]]:
    """Return the sections of the page: scores, curves, differing fields of the configs, and facts."""
    differing = differing_fields(runs)
    fields = [(name, "", [("", _shown(run.config, name)) for run in runs]) for name in differing]
    names = list(dict.fromkeys(name for run in runs for name in run.facts))
    facts = [(name, "", [("", run.facts.get(name, "")) for run in runs]) for name in names]
    head = _head(runs)
    return [
        ("Scores of the last evaluation", _score_table(runs, labels)),
        ("Curves", _curves(runs, labels)),
        (
            "Fields of the config that differ",
            report.plain_table(head, fields) if fields else report.paragraph("The configs are the same."),
        ),
        ("Runs", report.plain_table(head, facts)),
    ]


def differing_fields(runs: Sequence[ComparedRun]) -> list[str]:
    """Return the fields that do not have the same value in all configs, or that one of them lacks."""
    names = dict.fromkeys(name for run in runs for name in run.config)
    return [name for name in names if len({_shown(run.config, name) for run in runs}) > 1]


def _shown(config: Mapping[str, Any], name: str) -> str:
    """Return a field's value as text; a missing field differs from an empty one."""
    return repr(config[name]) if name in config else "none"


def _head(runs: Sequence[ComparedRun]) -> list[tuple[str, str]]:
    return [(f"run{i % COLORS} held", run.name) for i, run in enumerate(runs)]


def _score_table(runs: Sequence[ComparedRun], labels: report.Labels) -> Html:
    """Return the table of scores, the best of each row emphasized.

    Scores that all runs have come first, and shares before other values.
    """
    scores = [run.scores() for run in runs]
    names = dict.fromkeys(name for row in scores for name in row if name != "split")
    rows = []
    lacking = {name: sum(name not in row for row in scores) for name in names}
    for name in sorted(names, key=lambda name: (name != "step", lacking[name], not is_share(name))):
        values = [row.get(name) for row in scores]
        known = [value for value in values if isinstance(value, Real) and math.isfinite(value)]
        kind = "share" if is_share(name) else "loss" if "loss" in name else ""
        best = None
        if kind and len(set(known)) > 1 and not report.parse_metric(name).blind:
            best = max(known) if kind == "share" else min(known)
        cells = [("best" if best is not None and value == best else "", _number(name, value)) for value in values]
        rows.append(("step of the evaluation" if name == "step" else score_title(name, labels), name, cells))
    if not rows:
        return report.paragraph("None of the runs was evaluated.")
    return report.plain_table(_head(runs), rows, "numbers")


def score_title(name: str, labels: report.Labels) -> str:
    """Return the label of a score, with its group and its missing input."""
    metric = report.parse_metric(name)
    parts = [title_of(metric.base, labels)]
    parts += [report.title_of_group(metric.group, labels)] if metric.group else []
    parts += [f"no {report.blind_input(name)}"] if metric.blind else []
    return ", ".join(parts)


def _number(name: str, value: Real | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if name == "step" else format_value(name, value)


def _curves(runs: Sequence[ComparedRun], labels: report.Labels) -> Html:
    """Return one chart per metric with two lines per run: thin for training, thick for evaluation."""
    all_series = [report.series_of(run.rows) for run in runs]
    charts, merged = {}, {}
    for name in dict.fromkeys(name for series in all_series for name in series):
        lines = [
            Line(f"{run.name}, {split}", f"run{i % COLORS}{'' if split == 'train' else ' held'}", points)
            for i, (run, series) in enumerate(zip(runs, all_series, strict=True))
            for (split, blind), points in sorted(series.get(name, {}).items())
            if not blind
        ]
        if lines:
            charts[name] = line_chart(name, title_of(name, labels), lines)
            merged[name] = {line.label: line.points for line in lines}
    if not charts:
        return report.paragraph("No rows yet.")
    return report.chart_grid(charts, report.main_metrics(merged), labels)
