"""Pictures a person wants to see: one HTML page with curves, scores and predictions, all in the file itself.

Functions turn data into pieces of HTML, `write` joins them. Nothing here knows a model or a task, nothing is loaded
from anywhere when the page is opened. A metric `X` is drawn next to its blind twin, `X_blind`: words guessed without
the image, or hidden regions (`mrc`) without the caption. `X_objects_2` is `X` over the examples of group 2.
"""

import base64
import dataclasses
import html
import io
import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real

import numpy as np
import PIL.Image

Guesses = Sequence[tuple[str, Real]]  # (word or class, probability), most probable first


@dataclasses.dataclass(frozen=True)
class Guess:
    """A masked word."""

    position: int  # in Card.words
    truth: str
    with_image: Guesses
    blind: Guesses = ()  # the same words without the image


@dataclasses.dataclass(frozen=True)
class HiddenRegion:
    """A region whose appearance the model did not see."""

    box: int  # row of Card.boxes
    truth: str
    guesses: Guesses
    blind: Guesses = ()  # the same without the caption


@dataclasses.dataclass(frozen=True)
class Answer:
    """One of those that a model chose from."""

    text: str
    probability: Real
    score: Real  # 1 = right, 0 = wrong, or between


@dataclasses.dataclass(frozen=True)
class Card:
    """An image with its caption or a question about it, and what a model made of them."""

    image: np.ndarray  # uint8 height x width x 3, RGB, without padding
    boxes: np.ndarray  # float r x 4, x1 y1 x2 y2 in its pixels; row 0 is the whole image and is not drawn
    box_labels: Sequence[str] = ()  # r of them, or none; the first is not read
    words: Sequence[str] = ()  # the caption unmasked, in words or WordPieces
    masked: Sequence[Guess] = ()
    hidden_regions: Sequence[HiddenRegion] = ()
    title: str = ""
    question: str = ""
    answers: Sequence[Answer] = ()  # most probable first


def write_page(directory: pathlib.Path | str, title: str, sections: Iterable[tuple[str, str]]) -> pathlib.Path:
    """Writes `directory`/index.html from (heading, HTML) pairs and returns its path."""
    body = "".join(f"<section>{_heading(heading, 'h2')}{part}</section>" for heading, part in sections)
    style = pathlib.Path(__file__).with_suffix(".css").read_text()
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{style}</style></head>"
        f"<body>{_HATCH}<h1>{_text(title)}</h1>{body}</body></html>\n"
    )
    path = pathlib.Path(directory) / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def paragraph(text: str) -> str:
    return f"<p>{_text(text)}</p>"


def curves(rows: Iterable[Mapping], names: Sequence[str] | None = None) -> str:
    """One chart per metric from rows of metrics.jsonl: train and val, with and without the image.

    `names` chooses and orders the charts. Without it losses come first, then accuracies; the rest, and what has no
    second point, can be unfolded.
    """
    series: dict[str, dict[tuple[str, bool], list]] = {}
    for row in rows:
        for name, value in row.items():
            if name in ("step", "split") or not isinstance(value, Real) or not math.isfinite(value):
                continue
            base, blind, group = _parse(name)
            if not group:
                series.setdefault(base, {}).setdefault((row["split"], blind), []).append((row["step"], value))
    if not series:
        return paragraph("No rows yet.")
    charts = {name: _chart(name, series[name]) for name in (names or series) if name in series}
    drawn = [n for n in charts if any(len(points) > 1 for points in series[n].values())]
    first = list(charts) if names else [n for n in drawn if "loss" in n] + [n for n in drawn if "accuracy" in n]
    rest = [n for n in charts if n not in first]
    result = f'<div class="charts">{"".join(charts[n] for n in first)}</div>'
    if rest:
        more = "".join(charts[n] for n in rest)
        result += f'<details><summary>{_text(", ".join(rest))}</summary><div class="charts">{more}</div></details>'
    return result


def scores(values: Mapping) -> str:
    """A table of metrics, e.g. the last val row, with blind twins and groups. What is not a number is left out."""
    table: dict[str, dict[tuple, dict[bool, Real]]] = {}
    for name, value in values.items():
        if name not in ("step", "split") and isinstance(value, Real):
            base, blind, group = _parse(name)
            table.setdefault(base, {}).setdefault(group, {})[blind] = value
    pairs = any(True in cells for groups in table.values() for cells in groups.values())
    lines = []
    for base, groups in sorted(table.items(), key=lambda item: "accuracy" not in item[0]):
        for group in sorted(groups):
            cells = groups[group]
            label = " ".join(map(str, group)) or base.replace("_", " ")
            line = f'<th scope="row"{" class=sub" if group else ""}>{_text(label)}</th>'
            for blind in (False, True) if pairs else (False,):
                value = cells.get(blind)
                bar = f' class="bar {"blind" if blind else "sighted"}" style="--p:{value:.1%}"' if (
                    value is not None and "accuracy" in base) else ""
                note = f"<small>no {_missing(base)}</small> " if blind and value is not None else ""
                line += f"<td{bar}>{note}{'' if value is None else _number(base, value)}</td>"
            if pairs:
                line += f"<td>{_difference(base, cells)}</td>"
            lines.append(f"<tr>{line}</tr>")
    head = "<th></th><th>with both</th><th>blind</th><th>difference</th>" if pairs else "<th></th><th></th>"
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def gallery(cards: Iterable[Card]) -> str:
    """Records as they are: image, numbered boxes, caption, classes."""
    items = "".join(f'<article class="card">{_heading(c.title)}{_picture(c)}{_caption(c)}</article>' for c in cards)
    return f'<div class="gallery">{items}</div>'


def predictions(cards: Iterable[Card]) -> str:
    """What the model guessed for masked words and hidden regions, next to the image."""
    items = []
    for card in cards:
        blocks = [_guess_block(f"word {g.position + 1}", g.truth, g.with_image, g.blind, ("with image", "without"))
                  for g in card.masked]
        blocks += [_guess_block(f"hidden region {h.box}", h.truth, h.guesses, h.blind, ("with caption", "without"))
                   for h in card.hidden_regions]
        items.append(f'<article class="card prediction">{_heading(card.title)}<div>{_picture(card)}{_caption(card)}'
                     f'</div><div class="guesses">{"".join(blocks)}</div></article>')
    how = paragraph("Marked words were masked; the hatched regions were hidden. Guesses are the most probable first.")
    return f'{how}<div class="cards">{"".join(items)}</div>'


def answers(cards: Iterable[Card]) -> str:
    """Questions and the model's answers next to the image, with the scores of those that are not wrong."""
    items, partly = [], False
    for card in cards:
        bars = "".join(
            f'<li class="bar sighted{" hit" if a.score > 0 else ""}" style="--p:{min(max(a.probability, 0), 1):.1%}">'
            f"<span>{_text(a.text)} {_score(a.score)}</span><span>{100 * a.probability:.0f} %</span></li>"
            for a in card.answers
        )
        best = card.answers[0].score if card.answers else 0
        mark = f'<b class="{"right" if best > 0 else "wrong"}">{_score(best) or "✗"}</b>'
        partly |= any(0 < a.score < 1 for a in card.answers)
        asked = f'<p class="caption">{_text(card.question)} {mark}</p>'
        items.append(f'<article class="card prediction"><div>{_picture(card)}</div><div class="guesses">'
                     f"{asked}<ol>{bars}</ol><small>{_text(card.title)}</small></div></article>")
    how = "The most probable answers come first; ✓ is right."
    how += " In brackets: the score of an answer that only some people gave." if partly else ""
    return f'{paragraph(how)}<div class="cards">{"".join(items)}</div>'


def _score(score: Real) -> str:
    return "✓" if score >= 1 else f"({score:.1g})" if score > 0 else ""


def _parse(name: str) -> tuple[str, bool, tuple]:
    """visual_word_accuracy_blind_objects_2 -> (visual_word_accuracy, True, ("objects", 2))."""
    blind = re.search(r"_blind(?=_|$)", name) is not None
    name = re.sub(r"_blind(?=_|$)", "", name)
    match = re.fullmatch(r"(.+(?:accuracy|loss))_([a-z]+)_(\d+)", name)
    return (match[1], blind, (match[2], int(match[3]))) if match else (name, blind, ())


def _missing(name: str) -> str:
    return "caption" if name.startswith("mrc") else "image"


def _number(name: str, value: Real) -> str:
    return f"{100 * value:.1f} %" if "accuracy" in name else f"{value:.4g}"


def _difference(base: str, cells: Mapping[bool, Real]) -> str:
    if len(cells) < 2:
        return ""
    difference = cells[False] - cells[True]
    return f"{100 * difference:+.1f}" if "accuracy" in base else f"{difference:+.3g}"


def _text(text) -> str:
    return html.escape(str(text), quote=True)


def _heading(text: str, tag: str = "h3") -> str:
    return f"<{tag}>{_text(text)}</{tag}>" if text else ""


def _ticks(low: Real, high: Real, count: int = 5) -> list[float]:
    """Round numbers that cover low..high."""
    rough = max(high - low, 1e-9) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _chart(name: str, lines: Mapping[tuple[str, bool], list], width: int = 440, height: int = 230) -> str:
    """An SVG of (split, blind) -> (step, value) points; the key below it has the last values."""
    lines = {key: sorted(dict(points).items()) for key, points in sorted(lines.items())}
    values = [v for points in lines.values() for _, v in points]
    steps = [s for points in lines.values() for s, _ in points]
    low, high = (0.0, 1.0) if "accuracy" in name else (min(values), max(values))
    low = 0.0 if 0 <= low < 0.6 * high else low
    ys, xs = _ticks(low, high), _ticks(min(0, *steps), max(1, *steps), 4)
    low, high, first, last = ys[0], ys[-1], xs[0], max(1, *steps)
    left, right, top, bottom = 52, 24, 8, 26

    def at(step, value):
        x = left + (step - first) / (last - first) * (width - left - right)
        return x, height - bottom - (value - low) / (high - low) * (height - top - bottom)

    parts = []
    for tick in ys:
        y = at(first, tick)[1]
        label = f"{100 * tick:.0f} %" if "accuracy" in name else f"{tick:.6g}"
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{width - right}"/>'
                     f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for tick in (t for t in xs if t <= last * 1.001):
        parts.append(f'<text x="{at(tick, low)[0]:.1f}" y="{height - 6}" text-anchor="middle">{tick:,.0f}</text>')
    key = []
    for (split, blind), points in lines.items():
        thinned = points[:: max(1, len(points) // 400)]
        thinned += [points[-1]] if thinned[-1] != points[-1] else []
        places = [at(*point) for point in thinned]
        kind = f"{'blind' if blind else 'sighted'}{'' if split == 'train' else ' held'}"
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="{kind}" points="{drawn}"/>')
        if len(places) <= 60 and split != "train" or len(places) == 1:
            parts += [f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>step {s}: {_number(name, v)}'
                      f"</title></circle>" for (x, y), (s, v) in zip(places, thinned, strict=True)]
        label = split + (f", no {_missing(name)}" if blind else "")
        key.append(f'<span class="{kind}"><i></i>{_text(label)} <b>{_number(name, points[-1][1])}</b></span>')
    title = _text(name.replace("_", " "))
    return (f'<figure><h3>{title}</h3><svg viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="{title} over steps">{"".join(parts)}</svg>'
            f'<figcaption class="key">{"".join(key)}</figcaption></figure>')


_COLOURS = ("#1668c7", "#b4431a", "#187a3c", "#8a34b8", "#a3154f", "#0f727d", "#7a5b00", "#4b4f8f")
_WIDTH = 280  # of every picture in its own units, so that lines, letters and hatching look alike


def _picture(card: Card, longest: int = 480) -> str:
    """The image with numbered boxes, and their classes below."""
    image = PIL.Image.fromarray(np.ascontiguousarray(card.image, dtype=np.uint8))
    scale, height = _WIDTH / image.width, _WIDTH * image.height / image.width
    image.thumbnail((longest, longest))  # only makes smaller
    kind = "PNG" if image.width * image.height < 40_000 else "JPEG"  # a small picture is shown enlarged
    file = io.BytesIO()
    image.save(file, kind, quality=88, subsampling=0)
    data = base64.b64encode(file.getvalue()).decode()
    hidden = {region.box for region in card.hidden_regions}
    shapes, tabs, classes = [], [], []
    boxes = np.asarray(card.boxes, np.float64).reshape(-1, 4) * scale
    for i, (x1, y1, x2, y2) in list(enumerate(boxes))[1:]:
        colour = _COLOURS[(i - 1) % len(_COLOURS)]
        fill = "url(#hatch)" if i in hidden else "none"
        tab = 10 + 9 * len(str(i))
        x, y = min(max(x1, 0), _WIDTH - tab), min(max(y1, 0), height - 18)
        shapes.append(f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" fill="{fill}" '
                      f'stroke="{colour}" stroke-width="3"/>')
        tabs.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{tab}" height="18" fill="{colour}"/>'
                    f'<text x="{x + tab / 2:.1f}" y="{y + 14:.1f}">{i}</text>')
        if len(card.box_labels) > i:
            note = " (hidden)" if i in hidden else ""
            classes.append(f'<span><i style="background:{colour}">{i}</i>{_text(card.box_labels[i])}{note}</span>')
    return (f'<figure><svg class="picture" viewBox="0 0 {_WIDTH} {height:.1f}" role="img" '
            f'aria-label="image with {max(len(boxes) - 1, 0)} regions"><image width="{_WIDTH}" height="{height:.1f}" '
            f'href="data:image/{kind.lower()};base64,{data}"/>{"".join(shapes + tabs)}</svg>'
            f'<figcaption class="classes">{"".join(classes)}</figcaption></figure>')


def _hit(guesses: Guesses, truth: str) -> str:
    return "right" if guesses and guesses[0][0] == truth else "wrong"


def _caption(card: Card) -> str:
    """The words; masked ones are marked as guessed right or wrong. WordPieces are joined."""
    masked = {guess.position: guess for guess in card.masked}
    result = ""
    for i, word in enumerate(card.words):
        shown = _text(word.removeprefix("##"))
        if i in masked:
            shown = f'<mark class="{_hit(masked[i].with_image, masked[i].truth)}">{shown}</mark>'
        result += shown if word.startswith("##") or not result else f" {shown}"
    return f'<p class="caption">{result}</p>' if result else ""


def _guess_block(place: str, truth: str, first: Guesses, second: Guesses, heads: tuple[str, str]) -> str:
    columns = ""
    for head, kind, guesses in ((heads[0], "sighted", first), (heads[1], "blind", second)):
        if guesses:
            hit = _hit(guesses, truth)
            items = "".join(
                f'<li class="bar {kind}{" hit" if word == truth else ""}" style="--p:{min(max(p, 0), 1):.1%}">'
                f"<span>{_text(word)}{' ✓' if word == truth else ''}</span><span>{100 * p:.0f} %</span></li>"
                for word, p in guesses)
            columns += (f'<div><h5>{head} <b class="{hit}">{"✓" if hit == "right" else "✗"}</b></h5>'
                        f"<ol>{items}</ol></div>")
    return f'<div class="guess"><h4><b>{_text(truth)}</b> <small>{_text(place)}</small></h4><div>{columns}</div></div>'


_HATCH = (
    '<svg width="0" height="0" style="position:absolute" aria-hidden="true"><pattern id="hatch" width="9" height="9" '
    'patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="9" height="9" fill="#fff" '
    'fill-opacity=".35"/><rect width="4" height="9" fill="#111" fill-opacity=".6"/></pattern></svg>'
)
