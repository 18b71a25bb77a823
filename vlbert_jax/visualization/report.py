"""The report page: one HTML file with curves, scores, facts and cards.

The page loads nothing when it is opened.


Functions here and in `cards` turn data into fragments of HTML; `write_page` joins them. Nothing in
this package knows a model or a task: labels of metrics are an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path

from vlbert_jax.files import atomic_write
from vlbert_jax.visualization.charts import Line, Phase, line_chart
from vlbert_jax.visualization.metric_names import (
    blind_input,
    format_difference,
    format_value,
    is_share,
    parse_metric,
    title_of,
    title_of_group,
)
from vlbert_jax.visualization.templates import Html, join, load_templates

Labels = Mapping[str, str]  # metric, or kind of group -> label
LARGEST = 1e300  # value in a chart; the axes of larger ones would overflow


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
    style, script = (Html(Path(__file__).with_suffix(end).read_text("utf-8")) for end in (".css", ".js"))
    page = templates["page"].fill(title=title, style=style, script=script, sections=join(parts))
    path = Path(directory) / "index.html"
    with atomic_write(path) as partial:
        partial.write_text(f"{page}\n", encoding="utf-8")
    return path


def paragraph(text: str) -> Html:
    """Return a text as a paragraph of HTML."""
    return load_templates("report.html")["paragraph"].fill(text=text)


def note(text: str) -> Html:
    """Return a text as a paragraph in a pale color."""
    return load_templates("report.html")["note"].fill(text=text)


def fact_list(values: Mapping[str, str]) -> Html:
    """Return names with their values as a list; empty values are left out."""
    templates = load_templates("report.html")
    shown = (templates["fact"].fill(name=name, value=value) for name, value in values.items() if value)
    return templates["facts"].fill(facts=join(shown))


def command_list(steps: Iterable[tuple[str, str]]) -> Html:
    """Return commands to copy, each (what it does, the command)."""
    templates = load_templates("report.html")
    return join(templates["command"].fill(text=text, command=command) for text, command in steps)


def fold(summary: str, content: Html) -> Html:
    """Return a part of the page that is shown after a click on its summary."""
    return load_templates("report.html")["fold"].fill(summary=summary, content=content)


def plain_table(
    head: Sequence[tuple[str, str]], rows: Iterable[tuple[str, str, Sequence[tuple[str, str]]]], kind: str = ""
) -> Html:
    """Return a table of texts, or of numbers if `kind` is "numbers".

    Args:
        head: class and text of each column.
        rows: (name, hint, cells), a cell being its class and text.
        kind: class of the table.
    """
    templates = load_templates("report.html")
    return templates["plain_table"].fill(
        kind=kind,
        head=join([Html("<th></th>"), *(templates["head_cell"].fill(kind=kind, text=text) for kind, text in head)]),
        rows=join(
            templates["plain_row"].fill(
                name=name,
                hint=hint,
                cells=join(templates["plain_cell"].fill(kind=kind, value=value) for kind, value in cells),
            )
            for name, hint, cells in rows
        ),
    )


# --- Curves -------------------------------------------------------------------------------------


def curves(rows: Sequence[Mapping], names: Sequence[str] | None = None, labels: Labels | None = None) -> Html:
    """Return one chart per metric, with lines for each split, with and without the blind input.

    Args:
        rows: rows of metrics.jsonl.
        names: metrics to show, in this order. By default losses come first, then accuracies; other
            metrics, and those with only one point, can be unfolded.
        labels: labels of the task's metrics.
    """
    labels = labels or {}
    series, phases = series_of(rows), phases_of(rows, labels)
    if not series:
        return paragraph("No rows yet.")
    charts = {}
    for name in names or series:
        if name in series:
            lines = [
                Line(
                    label=split + (f", no {blind_input(name)}" if blind else ""),
                    kind=f"{'blind' if blind else 'sighted'}{'' if split == 'train' else ' held'}",
                    points=points,
                )
                for (split, blind), points in sorted(series[name].items())
            ]
            charts[name] = line_chart(name, title_of(name, labels), lines, phases)
    first = list(charts) if names else main_metrics(series)
    return join([*(note(phase.text) for phase in phases), chart_grid(charts, first, labels)])


def chart_grid(charts: Mapping[str, Html], first: Sequence[str], labels: Labels) -> Html:
    """Return charts side by side; those that are not `first` can be unfolded."""
    templates = load_templates("report.html")
    other = [name for name in charts if name not in first]
    result = templates["charts"].fill(charts=join(charts[name] for name in first))
    if not other:
        return result
    unfolded = templates["charts"].fill(charts=join(charts[name] for name in other))
    return join([result, fold("; ".join(title_of(name, labels) for name in other), unfolded)])


def series_of(rows: Iterable[Mapping]) -> dict[str, dict[tuple[str, bool], list]]:
    """Return the values that a chart can show as metric -> (split, blind) -> list of (step, value).

    Metrics of groups are left out.
    """
    series: dict[str, dict[tuple[str, bool], list]] = {}
    for row in rows:
        for name, value in row.items():
            if name in ("step", "split") or not isinstance(value, Real) or not abs(value) < LARGEST:
                continue
            metric = parse_metric(name)
            if not metric.group:
                lines = series.setdefault(metric.base, {})
                lines.setdefault((row["split"], metric.blind), []).append((row["step"], value))
    return series


def main_metrics(series: Mapping[str, Mapping]) -> list[str]:
    """Return the losses, then the accuracies, that have a line of more than one point."""
    lines = [name for name, of_splits in series.items() if any(len(points) > 1 for points in of_splits.values())]
    losses = [name for name in lines if "loss" in name]
    return sorted(losses, key=lambda name: name != "loss") + [name for name in lines if is_share(name)]


def phases_of(rows: Iterable[Mapping], labels: Labels) -> list[Phase]:
    """Return where the losses in the training rows change, with a sentence about each change.

    Of a change between two rows, the step of the earlier row is known.
    """
    phases, before, step = [], None, 0
    for row in rows:
        if row["split"] != "train":
            continue
        losses = [name for name in row if name.endswith("_loss")]
        if before is not None and losses != before:
            old, new = ("; ".join(title_of(name, labels) for name in names) for names in (before, losses))
            text = f"From step {step:,} on the total loss is another sum, so its curve jumps. It is the sum of: {new}."
            phases.append(Phase(step, f"{text} Before: {old}."))
        before, step = losses, row["step"]
    return phases


# --- Scores -------------------------------------------------------------------------------------


def scores(values: Mapping, labels: Labels | None = None) -> Html:
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
        _score_row(templates, base, group, groups[group], with_blind, labels or {})
        for base, groups in sorted(table.items(), key=lambda item: not is_share(item[0]))
        for group in sorted(groups)
    ]
    head = templates["score_head_blind" if with_blind else "score_head"].fill()
    return templates["score_table"].fill(head=head, rows=join(rows))


def _score_row(
    templates: Mapping, base: str, group: tuple, values: Mapping[bool, Real], with_blind: bool, labels: Labels
) -> Html:
    label = title_of_group(group, labels) if group else title_of(base, labels)
    cells = [templates["score_group" if group else "score_name"].fill(label=label, name=base)]
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
