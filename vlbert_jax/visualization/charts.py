"""Charts of metrics over training steps, as SVG."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from numbers import Real

from vlbert_jax.visualization.metric_names import blind_input, format_value, is_share, title_of
from vlbert_jax.visualization.templates import Html, join, load_templates

WIDTH, HEIGHT = 440, 230  # of a chart in SVG units
LEFT, RIGHT, TOP, BOTTOM = 52, 24, 8, 26  # margins around the lines, SVG units
MAX_POINTS = 400  # per line; lines with more are thinned
MAX_MARKED = 60  # points of a line up to which each is marked

Points = Sequence[tuple[int, Real]]  # (step, value)


def line_chart(name: str, lines: Mapping[tuple[str, bool], Points]) -> Html:
    """Return a chart of one metric, with the last values in the key below it.

    Args:
        name: the metric.
        lines: points by (split, blind); of several points of one step the last counts.
    """
    templates = load_templates("report.html")
    lines = {key: sorted(dict(points).items()) for key, points in sorted(lines.items())}
    axes = Axes.around(name, [point for points in lines.values() for point in points])
    shapes, key = _tick_shapes(templates, name, axes), []
    for (split, blind), points in lines.items():
        kind = f"{'blind' if blind else 'sighted'}{'' if split == 'train' else ' held'}"
        shapes += _line_shapes(templates, name, axes, points, kind, mark=split != "train")
        label = split + (f", no {blind_input(name)}" if blind else "")
        value = format_value(name, points[-1][1])
        key.append(templates["chart_key"].fill(kind=kind, label=label, value=value))
    return templates["chart"].fill(
        title=title_of(name), width=WIDTH, height=HEIGHT, shapes=join(shapes), key=join(key)
    )


@dataclasses.dataclass(frozen=True)
class Axes:
    """The axes of a chart."""

    x_ticks: Sequence[Real]  # steps; the last may be beyond the axis
    y_ticks: Sequence[Real]  # values; the axis runs from the first to the last
    last_step: Real  # end of the axis of steps

    @classmethod
    def around(cls, name: str, points: Points) -> Axes:
        """Return axes that hold the points.

        Shares go from 0 to 1, other values from 0 if they are near it.
        """
        steps, values = zip(*points, strict=True)
        low, high = (0.0, 1.0) if is_share(name) else (min(values), max(values))
        low = 0.0 if 0 <= low < 0.6 * high else low
        x_ticks = nice_ticks(min(0, *steps), max(1, *steps), 4)
        return cls(x_ticks, nice_ticks(low, high), max(1, *steps))

    def place(self, step: Real, value: Real) -> tuple[float, float]:
        """Return x and y of a point in SVG units."""
        first, low, high = self.x_ticks[0], self.y_ticks[0], self.y_ticks[-1]
        x = LEFT + (step - first) / (self.last_step - first) * (WIDTH - LEFT - RIGHT)
        return x, HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def nice_ticks(low: Real, high: Real, count: int = 5) -> list[Real]:
    """Return about `count` + 1 round numbers that cover low..high (Heckbert, 1990).

    The step is 1, 2 or 5 times a power of 10.
    """
    rough = max(high - low, 1e-9) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


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


def _line_shapes(templates: Mapping, name: str, axes: Axes, points: Points, kind: str, mark: bool) -> list[Html]:
    """Return the line through the points and, if `mark` is set, a circle at each.

    A single point is always marked.
    """
    thinned = points[:: max(1, len(points) // MAX_POINTS)]
    thinned += [points[-1]] if thinned[-1] != points[-1] else []
    places = [axes.place(*point) for point in thinned]
    shapes = [templates["line"].fill(kind=kind, points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places))]
    if len(places) <= MAX_MARKED and mark or len(places) == 1:
        for (x, y), (step, value) in zip(places, thinned, strict=True):
            shown = format_value(name, value)
            shapes.append(templates["point"].fill(kind=kind, x=f"{x:.1f}", y=f"{y:.1f}", step=step, value=shown))
    return shapes
