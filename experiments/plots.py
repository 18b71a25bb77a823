"""Plots of a study, as SVG files whose bytes depend on the rows and the version of matplotlib alone."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.page import plotted_scores
from experiments.rows import Rows
from experiments.study import Curves, Heat, Study
from vlbert_jax.files import atomic_write

COLORS = ("#00796b", "#c2571a", "#5e4fa2", "#8a8d00", "#b0306a", "#3b6fb6")
DASHES = ("-", "--", ":", "-.")  # after the last color the first one follows with other dashes
STYLE = {"svg.hashsalt": "vlbert_jax", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False,
         "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6,
         "axes.axisbelow": True}  # fmt: skip
PER_ROW = 3  # panels

Scores = Mapping[str, Mapping[tuple[int, int], float]]  # setting -> seeds of the pre-training and of the run -> score


def require_matplotlib() -> None:
    """Raise ValueError if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("the plots need matplotlib, which is missing: pip install 'vlbert_jax[experiments]'") from None


def write_plot(study: Study, rows: Rows, path: Path) -> None:
    """Draw one panel per column of the table: each run as a point, and the mean of each setting.

    Args:
        study: The study; where it has a plot, settings are points of lines over an axis, in one panel per task. Where
            it has a figure of probes, it is this one.
        rows: The rows of its results, some with a score that is plotted.
        path: The SVG file.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    scores = plotted_scores(study, rows)
    if study.figure:
        with matplotlib.rc_context(STYLE):
            _save((_curves if isinstance(study.figure, Curves) else _heat)(pyplot, study, study.figure, scores), path)
        return
    columns = min(PER_ROW, len(scores))
    height = 2.6 if study.plot else 0.9 + 0.28 * len(study.settings)
    count = -(-len(scores) // columns)
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(count, columns, squeeze=False, figsize=(3.4 * columns, height * count),
                                       layout="constrained", sharey=not study.plot)  # fmt: skip
        for axis, (column, found) in zip(axes.flat, scores.items(), strict=False):
            (_lines if study.plot else _points)(axis, study, found)
            axis.set_title(f"{column}: {study.columns[column]}", fontsize=8)
        for axis in list(axes.flat)[len(scores) :]:
            axis.remove()
        if study.plot:
            axes[0, 0].legend(fontsize=8, frameon=False)
        _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    with atomic_write(path) as file:
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def _points(axis: Any, study: Study, found: Scores) -> None:
    names = list(study.settings)
    for setting, scores in found.items():
        row, values = names.index(setting), list(scores.values())
        starts = sorted({start for start, _ in scores})
        crowded = len(starts) < len(scores)  # several fine-tunings of a pre-training: a line of points for each
        step = 0.5 / len(starts) if crowded else 0.0
        places = [row + step * (starts.index(start) - (len(starts) - 1) / 2) for start, _ in scores]
        axis.plot(values, places, "o", color=COLORS[0], alpha=0.5, markersize=4)
        axis.plot([statistics.fmean(values)] * 2, [row - 0.3, row + 0.3], color=COLORS[0], linewidth=2)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)


def _looks() -> Iterator[tuple[str, str]]:
    """Yield color and dashes of one line after the other, without an end."""
    return itertools.cycle((color, dash) for dash in DASHES for color in COLORS)


def _lines(axis: Any, study: Study, found: Scores) -> None:
    plot = study.plot
    for (color, dash), line in zip(_looks(), dict.fromkeys(plot.lines.values()), strict=False):
        of_line = [s for s in sorted(found, key=lambda s: plot.positions[s]) if plot.lines[s] == line]
        for setting in of_line:
            values = list(found[setting].values())
            axis.plot([plot.positions[setting]] * len(values), values, "o", color=color, alpha=0.4, markersize=4)
        means = [statistics.fmean(found[setting].values()) for setting in of_line]
        axis.plot([plot.positions[setting] for setting in of_line], means, dash, color=color, label=line)
    axis.set_xscale("log")
    ticks = sorted(set(plot.positions.values()))
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel(plot.x)


def _curves(pyplot: Any, study: Study, curves: Curves, scores: Mapping[str, Scores]) -> Any:
    """Return a figure with a panel per kind of target: a line per setting over the shares that are removed, up to all.

    Levels behind "all" are no shares: they have a mark for the mean of a setting.
    """
    count = len(curves.panels)
    figure, axes = pyplot.subplots(1, count, squeeze=False, figsize=(3.4 * count, 2.8), layout="constrained")
    for axis, (title, levels) in zip(axes.flat, curves.panels.items(), strict=True):
        last = [*levels].index("all") if "all" in levels else len(levels)
        for (color, dash), setting in zip(_looks(), study.settings, strict=False):
            values = [list(scores.get(name, {}).get(setting, {}).values()) for name in levels.values()]
            places = [place for place, found in enumerate(values) if found]
            for place in places:
                axis.plot([place] * len(values[place]), values[place], "o", color=color, alpha=0.4, markersize=3)
            means = {place: statistics.fmean(values[place]) for place in places}
            shares = [place for place in places if place <= last]
            axis.plot(shares, [means[place] for place in shares], dash, color=color, label=setting)
            others = [place for place in places if place > last]
            axis.plot(others, [means[place] for place in others], "_", color=color, markersize=16, markeredgewidth=2)
        axis.set_xticks(range(len(levels)), list(levels), rotation=30, fontsize=8)
        axis.set_title(title, fontsize=8)
        axis.set_xlabel(curves.x)
    axes[0, 0].legend(fontsize=8, frameon=False)
    return figure


def _heat(pyplot: Any, study: Study, heat: Heat, scores: Mapping[str, Scores]) -> Any:
    """Return a figure with a map per setting: means over seeds, and the chance in the middle of the colors."""
    cell = re.compile(rf"{re.escape(heat.values)}\.(\d+)\.(\d+)")
    for field, name, is_there in (("chance", heat.chance, heat.chance in scores),
                                  ("values", heat.values, any(map(cell.fullmatch, scores)))):  # fmt: skip
        if not is_there:
            raise ValueError(f"the study {study.name}: [heat] {field} is {name!r}, which is not in the probes; "
                             f"their numbers are: {', '.join(scores)}")  # fmt: skip
    settings = [setting for setting in study.settings if setting in scores[heat.chance]]
    figure, axes = pyplot.subplots(1, len(settings), squeeze=False, figsize=(2.9 * len(settings), 2.6),
                                   layout="constrained")  # fmt: skip
    for axis, setting in zip(axes.flat, settings, strict=True):
        chance = statistics.fmean(scores[heat.chance][setting].values())
        cells = {
            (int(place[1]), int(place[2])): statistics.fmean(found[setting].values())
            for name, found in scores.items()
            if (place := cell.fullmatch(name)) and setting in found
        }
        layers, heads = (max(place[i] for place in cells) for i in (0, 1))
        grid = [[cells.get((layer, head), math.nan) for head in range(1, heads + 1)] for layer in range(1, layers + 1)]
        axis.imshow(grid, cmap="RdBu_r", vmin=chance - 0.5, vmax=chance + 0.5, aspect="auto")
        for (layer, head), value in cells.items():
            axis.text(head - 1, layer - 1, f"{value:.2f}", ha="center", va="center", fontsize=8)
        axis.set_xticks(range(heads), range(1, heads + 1))
        axis.set_yticks(range(layers), range(1, layers + 1))
        axis.grid(visible=False)
        axis.set_title(f"{setting} (chance {chance:.2f})", fontsize=8)
        axis.set_xlabel("head")
    axes[0, 0].set_ylabel("layer")
    return figure
