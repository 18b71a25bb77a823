"""The figure of the probes: accuracy by what is removed, attention by layer and head, and one example. SVG."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8

from vlbert_jax.files import atomic_write
from vlbert_jax.visualization.attention import data_address
from vlbert_jax.visualization.templates import Html, join, load_templates

COLORS = ("#00796b", "#c2571a", "#5e4fa2", "#8a8d00")
HEIGHT, PANEL = 320, 360  # SVG units: of the figure, and the width of a panel
LEFT, TOP, BOTTOM = 44, 34, 236  # of the axes inside a panel
SIDE = 300  # longest side of the example's image and of the heat map


@dataclasses.dataclass(frozen=True)
class Line:
    """Accuracy at each level of removal; levels are none, N %, all, and others, which are single points."""

    label: str
    values: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Heat:
    """Attention on the right regions, as a share of that on all regions."""

    values: Sequence[Sequence[float]]  # by layer and head
    chance: float


@dataclasses.dataclass(frozen=True)
class Example:
    """A masked word and where one head looks from it."""

    pixels: UInt8[np.ndarray, "y x 3"] | None  # None = the features are precomputed
    size: tuple[int, int]  # width and height to which the boxes refer
    boxes: Float[np.ndarray, "r 4"]
    shares: Float[np.ndarray, "r"]
    right: Bool[np.ndarray, "r"]
    words: Sequence[str]
    position: int  # of the masked word
    answer: str
    head: str


def write_figure(path: Path, lines: Sequence[Line], heat: Heat | None, example: Example | None) -> None:
    """Write the figure as an SVG file; parts that are None are left out."""
    templates = load_templates("probes.html")
    panels = [_accuracy(templates, lines)]
    panels += [_heat(templates, heat)] if heat else []
    panels += [_example(templates, example)] if example else []
    placed = [templates["panel"].fill(x=PANEL * i, content=panel) for i, panel in enumerate(panels)]
    size = dict(width=PANEL * len(panels), height=HEIGHT)
    with atomic_write(path) as partial:
        partial.write_text(templates["figure"].fill(**size, panels=join(placed)) + "\n", "utf-8")


def _place(share: float, value: float) -> tuple[float, float]:
    """Return x and y of a point of the axes, both from 0 to 1."""
    return LEFT + share * (PANEL - LEFT - 130), BOTTOM - value * (BOTTOM - TOP)


def _accuracy(templates: Mapping, lines: Sequence[Line]) -> Html:
    """Return lines over the removed share, and points for what is named by, or names, a target and for all but that."""
    shapes = [templates["title"].fill(text="accuracy by what is removed of the other modality")]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = _place(tick, tick)
        end, _ = _place(1.5, 0.0)
        shapes.append(templates["tick_y"].fill(left=LEFT, right=end, x=LEFT - 6, y=y, base=y + 4, label=f"{tick:g}"))
        shapes.append(templates["tick_x"].fill(x=x, y=BOTTOM + 16, label=f"{tick:.0%}"))
    places = dict(none=0.0, all=1.0, aligned=1.2, others=1.4)
    for name in ("aligned", "others"):
        shapes.append(templates["tick_x"].fill(x=_place(places[name], 0.0)[0], y=BOTTOM + 16, label=name))
    for i, (line, color) in enumerate(zip(lines, COLORS, strict=False)):
        points = {
            level: _place(places[level] if level in places else float(level.strip("%")) / 100, value)
            for level, value in line.values.items()
        }
        joined = [point for level, point in points.items() if level not in ("aligned", "others")]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in sorted(joined))
        shapes.append(templates["line"].fill(points=joined, color=color))
        for level, (x, y) in points.items():
            label = f"{line.label}, {level}: {line.values[level]:.3f}"
            shapes.append(templates["point"].fill(x=f"{x:.1f}", y=f"{y:.1f}", color=color, label=label))
        shapes.append(templates["key"].fill(x=LEFT, y=BOTTOM + 34 + 14 * i, color=color, label=line.label))
    return join(shapes)


def _heat(templates: Mapping, heat: Heat) -> Html:
    """Return one square for each layer and head: white at chance, darker above it, red below."""
    values = np.array(heat.values)
    side = min(64.0, (PANEL - LEFT - 20) / values.shape[1], (BOTTOM - TOP) / values.shape[0])
    shapes = [templates["title"].fill(text=f"attention on the right region; chance is {heat.chance:.2f}")]
    for layer, row in enumerate(values):
        y = TOP + side * layer
        shapes.append(templates["tick_x"].fill(x=LEFT - 16, y=y + side / 2 + 4, label=layer + 1))
        for head, value in enumerate(row):
            above = value >= heat.chance
            strength = (value - heat.chance) / max(1 - heat.chance if above else heat.chance, 1e-9)
            cell = dict(x=f"{LEFT + side * head:.1f}", y=f"{y:.1f}", side=f"{side - 1:.1f}")
            cell |= dict(color=COLORS[0] if above else COLORS[1], strength=f"{abs(strength):.3f}")
            shapes.append(templates["cell"].fill(**cell, label=f"layer {layer + 1}, head {head + 1}: {value:.3f}"))
            if side >= 30:
                middle = dict(x=f"{LEFT + side * (head + 0.5):.1f}", y=f"{y + side / 2 + 4:.1f}")
                shapes.append(templates["tick_x"].fill(**middle, label=f"{value:.2f}"))
    below = TOP + side * len(values)
    for head in range(values.shape[1]):
        shapes.append(templates["tick_x"].fill(x=LEFT + side * (head + 0.5), y=below + 14, label=head + 1))
    about = "layers from top to bottom, heads from left to right"
    return join([*shapes, templates["note"].fill(x=LEFT, y=below + 32, text=about)])


def _example(templates: Mapping, example: Example) -> Html:
    """Return the image with its regions, shaded by attention, and the caption; the right regions have a thick line."""
    scale = min(SIDE / example.size[0], (BOTTOM - TOP) / example.size[1])
    width, height = (scale * side for side in example.size)
    size = dict(x=10, y=TOP, width=f"{width:.1f}", height=f"{height:.1f}")
    address = "" if example.pixels is None else data_address(np.ascontiguousarray(example.pixels))
    shapes = [templates["title"].fill(text=f"{example.head}: attention from “{example.answer}”, which is masked")]
    shapes.append(templates["image"].fill(**size, data=address) if address else templates["canvas"].fill(**size))
    for (x1, y1, x2, y2), share, right in zip(example.boxes, example.shares, example.right, strict=True):
        x, y = 10 + scale * x1, TOP + scale * y1
        box = dict(x=f"{x:.1f}", y=f"{y:.1f}", width=f"{scale * (x2 - x1):.1f}", height=f"{scale * (y2 - y1):.1f}")
        label = f"{share:.0%}"
        shapes.append(templates["box"].fill(**box, strength=f"{0.5 * share:.3f}", line=3 if right else 1, label=label))
        shapes.append(templates["share"].fill(x=f"{x + 3:.1f}", y=f"{y + 13:.1f}", label=label))
    words = [f"»{word}«" if i == example.position else word for i, word in enumerate(example.words)]
    text = textwrap.wrap(" ".join(words).replace(" ##", ""), 60)
    lines = (templates["note"].fill(x=10, y=TOP + height + 18 + 13 * i, text=line) for i, line in enumerate(text))
    return join([*shapes, *lines])
