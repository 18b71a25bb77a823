"""Charts of metrics over training steps, as SVG; `report.js` shows values and changes the scale."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from numbers import Real

from vlbert_jax.visualization.metric_names import format_value, is_share
from vlbert_jax.visualization.templates import Html, join, load_templates

WIDTH, HEIGHT = 440, 230  # of a chart in SVG units
LEFT, RIGHT, TOP, BOTTOM = 52, 24, 8, 26  # margins around the lines, SVG units
MAX_POINTS = 400  # per line; lines with more are thinned
MAX_MARKED = 60  # points of a line up to which each is marked
MAX_LOG_TICKS = 7  # on a logarithmic axis; with more only powers of ten are marked

Points = Sequence[tuple[int, Real]]  # (step, value)


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a chart."""

    label: str
    kind: str  # classes of CSS that give the line its look: sighted or blind or runN, and held if thick
    points: Points  # of several points of one step the last counts

    @property
    def is_marked(self) -> bool:
        """Whether each point is marked."""
        return "held" in self.kind


@dataclasses.dataclass(frozen=True)
class Phase:
    """A change of the losses that are trained."""

    step: int  # the last update before the change
    text: str


def line_chart(name: str, title: str, lines: Sequence[Line], phases: Sequence[Phase] = ()) -> Html:
    """Return a chart of one metric, with the last values in the key below it.

    Metrics other than shares have a button for a logarithmic scale if two values are positive.

    Args:
        name: the metric.
        title: its label.
        lines: lines with at least one point each.
        phases: changes of the losses, marked as vertical lines.
    """
    templates = load_templates("report.html")
    lines = [dataclasses.replace(line, points=sorted(dict(line.points).items())) for line in lines]
    key = [
        templates["chart_key"].fill(kind=line.kind, label=line.label, value=format_value(name, line.points[-1][1]))
        for line in lines
    ]
    scales = [templates["scale"].fill(kind="linear", shapes=_shapes(templates, name, lines, phases, False))]
    positive = [dataclasses.replace(line, points=[p for p in line.points if p[1] > 0]) for line in lines]
    positive = [line for line in positive if line.points]
    button = Html()
    if not is_share(name) and sum(len(line.points) for line in positive) > 1:
        scales.append(templates["scale"].fill(kind="log", shapes=_shapes(templates, name, positive, phases, True)))
        button = templates["scale_button"].fill()
    return templates["chart"].fill(
        name=name, title=title, button=button, width=WIDTH, height=HEIGHT, scales=join(scales), key=join(key)
    )


def _shapes(templates: Mapping, name: str, lines: Sequence[Line], phases: Sequence[Phase], log: bool) -> Html:
    axes = Axes.around(name, [point for line in lines for point in line.points], log)
    shapes = _tick_shapes(templates, name, axes)
    for phase in phases:
        if axes.x_ticks[0] < phase.step < axes.last_step:
            x, _ = axes.place(phase.step, axes.y_ticks[-1])
            shapes.append(templates["phase"].fill(x=f"{x:.1f}", top=TOP, bottom=HEIGHT - BOTTOM, text=phase.text))
    for line in lines:
        shapes += _line_shapes(templates, name, axes, line)
    return join(shapes)


@dataclasses.dataclass(frozen=True)
class Axes:
    """The axes of a chart."""

    x_ticks: Sequence[Real]  # steps; the last may be beyond the axis
    y_ticks: Sequence[Real]  # values; the axis runs from the first to the last
    last_step: Real  # end of the axis of steps
    log: bool = False  # whether the axis of values is logarithmic

    @classmethod
    def around(cls, name: str, points: Points, log: bool = False) -> Axes:
        """Return axes that hold the points, whose values are positive if `log`.

        Shares go from 0 to 1, other values from 0 if they are near it.
        """
        steps, values = zip(*points, strict=True)
        x_ticks = nice_ticks(min(0, *steps), max(1, *steps), 4)
        if log:
            return cls(x_ticks, log_ticks(min(values), max(values)), max(1, *steps), log)
        low, high = (0.0, 1.0) if is_share(name) else (min(values), max(values))
        low = 0.0 if 0 <= low < 0.6 * high else low
        return cls(x_ticks, nice_ticks(low, high), max(1, *steps), log)

    def place(self, step: Real, value: Real) -> tuple[float, float]:
        """Return x and y of a point in SVG units."""
        first, low, high = self.x_ticks[0], self.y_ticks[0], self.y_ticks[-1]
        if self.log:
            share = math.log(value / low) / math.log(high / low)
        else:
            share = (value - low) / (high - low)
        x = LEFT + (step - first) / (self.last_step - first) * (WIDTH - LEFT - RIGHT)
        return x, HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def nice_ticks(low: Real, high: Real, count: int = 5) -> list[Real]:
    """Return about `count` + 1 round numbers that cover low..high (Heckbert, 1990).

    The step is 1, 2 or 5 times a power of 10.
    """
    rough = max(high - low, 1e-9) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def log_ticks(low: Real, high: Real) -> list[Real]:
    """Return 1, 2 and 5 times powers of 10, or every n-th power alone, that cover the positive low..high."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    ticks = [m * 10.0**power for power in range(first, last + 1) for m in (1, 2, 5)]
    start = max(i for i, tick in enumerate(ticks) if tick <= low * (1 + 1e-9))
    stop = min(i for i, tick in enumerate(ticks) if tick >= high * (1 - 1e-9))
    ticks = ticks[start : max(stop, start + 1) + 1]
    if len(ticks) <= MAX_LOG_TICKS:
        return ticks
    every = -(-(last - first) // (MAX_LOG_TICKS - 1))
    return [10.0**power for power in range(first, last + every, every)]


def _tick_shapes(templates: Mapping, name: str, axes: Axes) -> list[Html]:
    shapes = []
    for tick in axes.y_ticks:
        _, y = axes.place(axes.x_ticks[0], tick)
        label = f"{100 * tick:.0f} %" if is_share(name) else f"{tick:.6g}"
        place = dict(left=LEFT, right=WIDTH - RIGHT, y=f"{y:.1f}", x=LEFT - 6, baseline=f"{y + 4:.1f}")
        shapes.append(templates["y_tick"].fill(label=label, **place))
    for tick in axes.x_ticks:
        if tick <= axes.last_step * 1.001:
            x, _ = axes.place(tick, axes.y_ticks[0])
            shapes.append(templates["x_tick"].fill(x=f"{x:.1f}", y=HEIGHT - 6, label=f"{tick:,.0f}"))
    return shapes


def _line_shapes(templates: Mapping, name: str, axes: Axes, line: Line) -> list[Html]:
    """Return the line through the points and, if it is marked, a circle at each.

    A single point is always marked.
    """
    thinned = list(line.points[:: max(1, len(line.points) // MAX_POINTS)])
    thinned += [line.points[-1]] if thinned[-1] != line.points[-1] else []
    places = [axes.place(*point) for point in thinned]
    shown = [format_value(name, value) for _, value in thinned]
    data = dict(
        points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places),
        steps=" ".join(str(step) for step, _ in thinned),
        values="|".join(shown),
    )
    shapes = [templates["line"].fill(kind=line.kind, label=line.label, **data)]
    if len(places) <= MAX_MARKED and line.is_marked or len(places) == 1:
        for (x, y), (step, _), value in zip(places, thinned, shown, strict=True):
            shapes.append(templates["point"].fill(kind=line.kind, x=f"{x:.1f}", y=f"{y:.1f}", step=step, value=value))
    return shapes
