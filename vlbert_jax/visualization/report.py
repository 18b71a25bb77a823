"""The report page: one HTML file with curves, scores and cards.

The page loads nothing when it is opened.


Functions here and in `cards` turn data into fragments of HTML; `write_page` joins them. Nothing in
this package knows a model or a task. See `metric_names` for the names of metrics.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path

from vlbert_jax.files import atomic_write
from vlbert_jax.visualization.charts import line_chart
from vlbert_jax.visualization.metric_names import (
    blind_input,
    format_difference,
    format_value,
    is_share,
    parse_metric,
    title_of,
)
from vlbert_jax.visualization.templates import Html, join, load_templates


def write_page(directory: Path | str, title: str, sections: Iterable[tuple[str, Html]]) -> Path:
    """Write `directory`/index.html atomically and return its path.

    Args:
        directory: folder, created if needed.
        title: heading of the page.
        sections: (heading, HTML) pairs; a heading may be empty.
    """
    templates = load_templates("report.html")
    parts = []
    for heading, content in sections:
        heading = templates["heading2"].fill(text=heading) if heading else ""
        parts.append(templates["section"].fill(heading=heading, content=content))
    style = Html(Path(__file__).with_suffix(".css").read_text("utf-8"))
    page = templates["page"].fill(title=title, style=style, sections=join(parts))
    path = Path(directory) / "index.html"
    with atomic_write(path) as partial:
        partial.write_text(f"{page}\n", encoding="utf-8")
    return path


def paragraph(text: str) -> Html:
    """Return a text as a paragraph of HTML."""
    return load_templates("report.html")["paragraph"].fill(text=text)


def curves(rows: Iterable[Mapping], names: Sequence[str] | None = None) -> Html:
    """Return one chart per metric, with lines for each split, with and without the blind input.

    Args:
        rows: rows of metrics.jsonl.
        names: metrics to show, in this order. By default losses come first, then accuracies; other
            metrics, and those with only one point, can be unfolded.
    """
    templates = load_templates("report.html")
    series = _series(rows)
    if not series:
        return paragraph("No rows yet.")
    charts = {name: line_chart(name, series[name]) for name in (names or series) if name in series}
    first = list(charts) if names else _main_metrics(series)
    other = [name for name in charts if name not in first]
    result = [templates["charts"].fill(charts=join(charts[name] for name in first))]
    if other:
        unfolded = join(charts[name] for name in other)
        result.append(templates["more_charts"].fill(names=", ".join(other), charts=unfolded))
    return join(result)


def _series(rows: Iterable[Mapping]) -> dict[str, dict[tuple[str, bool], list]]:
    """Return the finite values as metric -> (split, blind) -> list of (step, value).

    Metrics of groups are left out.
    """
    series: dict[str, dict[tuple[str, bool], list]] = {}
    for row in rows:
        for name, value in row.items():
            if name in ("step", "split") or not isinstance(value, Real) or not math.isfinite(value):
                continue
            metric = parse_metric(name)
            if not metric.group:
                lines = series.setdefault(metric.base, {})
                lines.setdefault((row["split"], metric.blind), []).append((row["step"], value))
    return series


def _main_metrics(series: Mapping[str, Mapping]) -> list[str]:
    """Return the losses, then the accuracies, that have a line of more than one point."""
    lines = [name for name, of_splits in series.items() if any(len(points) > 1 for points in of_splits.values())]
    return [name for name in lines if "loss" in name] + [name for name in lines if is_share(name)]


def scores(values: Mapping) -> Html:
    """Return a table of metrics with their blind baselines and groups.

    Values that are not numbers are left out.
    """
    templates = load_templates("report.html")
    table: dict[str, dict[tuple, dict[bool, Real]]] = {}
    for name, value in values.items():
        if name not in ("step", "split") and isinstance(value, Real):
            metric = parse_metric(name)
            table.setdefault(metric.base, {}).setdefault(metric.group, {})[metric.blind] = value
    with_blind = any(True in cells for groups in table.values() for cells in groups.values())
    rows = [
        _score_row(templates, base, group, groups[group], with_blind)
        for base, groups in sorted(table.items(), key=lambda item: not is_share(item[0]))
        for group in sorted(groups)
    ]
    head = templates["score_head_blind" if with_blind else "score_head"].fill()
    return templates["score_table"].fill(head=head, rows=join(rows))


def _score_row(templates: Mapping, base: str, group: tuple, values: Mapping[bool, Real], with_blind: bool) -> Html:
    label = " ".join(map(str, group)) or title_of(base)
    cells = [templates["score_group" if group else "score_name"].fill(label=label)]
    cells += [_score_cell(templates, base, values.get(blind), blind) for blind in (False, True)[: 1 + with_blind]]
    if with_blind:
        cells.append(templates["score_value"].fill(note="", value=format_difference(base, values)))
    return templates["score_row"].fill(cells=join(cells))


def _score_cell(templates: Mapping, base: str, value: Real | None, blind: bool) -> Html:
    if value is None:
        return templates["score_value"].fill(note="", value="")
    # The note floats to the left of its cell, so a space separates it from the value.
    note = join([templates["missing_input"].fill(input=blind_input(base)), " "]) if blind else ""
    shown = format_value(base, value)
    if not is_share(base):
        return templates["score_value"].fill(note=note, value=shown)
    kind = "blind" if blind else "sighted"
    return templates["score_bar"].fill(kind=kind, share=f"{value:.1%}", note=note, value=shown)
