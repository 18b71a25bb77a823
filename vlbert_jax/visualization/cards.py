"""Cards of the report page: an image with its regions, and what a model answered about it."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real

import numpy as np
import PIL.Image

from vlbert_jax.visualization.templates import Html, join, load_templates

COLORS = ("#1668c7", "#b4431a", "#187a3c", "#8a34b8", "#a3154f", "#0f727d", "#7a5b00", "#4b4f8f")
WIDTH = 280  # of every image in SVG units, so that lines and letters have the same size in all of them
LONGEST = 480  # pixels of the longest side of an embedded image
MAX_PNG = 40_000  # pixels up to which an image is embedded as PNG: it is shown enlarged

Guesses = Sequence[tuple[str, Real]]  # (word or class, probability), most probable first


@dataclasses.dataclass(frozen=True)
class Guess:
    """A model's guesses of a masked word."""

    position: int  # index in Card.words
    truth: str
    with_image: Guesses
    blind: Guesses = ()  # guesses of the same word without the image


@dataclasses.dataclass(frozen=True)
class HiddenRegion:
    """A model's guesses of a region whose appearance was hidden."""

    box: int  # row of Card.boxes
    truth: str
    guesses: Guesses
    blind: Guesses = ()  # guesses of the same region without the caption


@dataclasses.dataclass(frozen=True)
class RankedAnswer:
    """One of the answers from which a model chose."""

    text: str
    probability: Real
    score: Real  # 1 = right, 0 = wrong, between = given by some people


@dataclasses.dataclass(frozen=True)
class Card:
    """An image with its caption or a question about it, and what a model answered."""

    image: np.ndarray  # uint8 [height, width, 3], RGB, without padding
    boxes: np.ndarray  # float [r, 4], x1 y1 x2 y2 in its pixels; row 0 is the whole image and is not drawn
    box_labels: Sequence[str] = ()  # r labels or none; the first is not read
    words: Sequence[str] = ()  # caption without masks, as words or WordPieces
    masked: Sequence[Guess] = ()
    hidden_regions: Sequence[HiddenRegion] = ()
    title: str = ""
    question: str = ""
    answers: Sequence[RankedAnswer] = ()  # most probable first


def record_cards(cards: Iterable[Card]) -> Html:
    """Return HTML that shows records: image, numbered boxes, caption, classes."""
    templates = load_templates("report.html")
    items = (
        templates["image_card"].fill(
            heading=_heading(templates, card), image=_image(templates, card), caption=_caption(templates, card)
        )
        for card in cards
    )
    return templates["gallery"].fill(cards=join(items))


def prediction_cards(cards: Iterable[Card]) -> Html:
    """Return HTML that shows the guesses of masked words and hidden regions next to the image."""
    templates, items = load_templates("report.html"), []
    for card in cards:
        guesses = [
            _guess(templates, f"word {word.position + 1}", word.truth, "with image", word.with_image, word.blind)
            for word in card.masked
        ]
        guesses += [
            _guess(templates, f"hidden region {one.box}", one.truth, "with caption", one.guesses, one.blind)
            for one in card.hidden_regions
        ]
        parts = dict(heading=_heading(templates, card), image=_image(templates, card))
        caption = _caption(templates, card)
        items.append(templates["prediction_card"].fill(**parts, caption=caption, guesses=join(guesses)))
    how = "Marked words were masked; the hatched regions were hidden. Guesses are the most probable first."
    return join([templates["paragraph"].fill(text=how), templates["cards"].fill(cards=join(items))])


def answer_cards(cards: Iterable[Card]) -> Html:
    """Return HTML that shows questions and the model's scored answers next to the image."""
    templates, items, partly = load_templates("report.html"), [], False
    for card in cards:
        bars = [
            _bar(templates, "sighted", f"{one.text} {_score_mark(one.score)}", one.probability, one.score > 0)
            for one in card.answers
        ]
        best = card.answers[0].score if card.answers else 0
        partly |= any(0 < answer.score < 1 for answer in card.answers)
        items.append(
            templates["answer_card"].fill(
                image=_image(templates, card),
                question=card.question,
                hit="right" if best > 0 else "wrong",
                mark=_score_mark(best) or "✗",
                answers=join(bars),
                title=card.title,
            )
        )
    how = "The most probable answers come first; ✓ is right."
    how += " In brackets: the score of an answer that only some people gave." if partly else ""
    return join([templates["paragraph"].fill(text=how), templates["cards"].fill(cards=join(items))])


def _heading(templates: Mapping, card: Card) -> Html:
    return templates["heading3"].fill(text=card.title) if card.title else Html()


def _score_mark(score: Real) -> str:
    return "✓" if score >= 1 else f"({score:.1g})" if score > 0 else ""


def _hit(guesses: Guesses, truth: str) -> str:
    return "right" if guesses and guesses[0][0] == truth else "wrong"


def _bar(templates: Mapping, kind: str, text: str, probability: Real, hit: bool) -> Html:
    """Return an answer as an item of a list, its background a bar as long as its probability."""
    share = f"{min(max(probability, 0), 1):.1%}"
    kind = f"{kind} hit" if hit else kind
    return templates["bar"].fill(kind=kind, share=share, text=text, percent=f"{100 * probability:.0f} %")


def _guess(templates: Mapping, place: str, truth: str, head: str, sighted: Guesses, blind: Guesses) -> Html:
    """Return the guesses of a word or a region in two columns, full model and blind."""
    columns = []
    for title, kind, guesses in ((head, "sighted", sighted), ("without", "blind", blind)):
        if guesses:
            hit = _hit(guesses, truth)
            bars = [
                _bar(templates, kind, f"{word}{' ✓' if word == truth else ''}", probability, word == truth)
                for word, probability in guesses
            ]
            mark = "✓" if hit == "right" else "✗"
            columns.append(templates["guess_column"].fill(head=title, hit=hit, mark=mark, bars=join(bars)))
    return templates["guess"].fill(truth=truth, place=place, columns=join(columns))


def _caption(templates: Mapping, card: Card) -> Html:
    """Return the words, the masked ones marked as guessed right or wrong; WordPieces are joined."""
    masked = {guess.position: guess for guess in card.masked}
    words: list[str] = []
    for i, word in enumerate(card.words):
        shown = word.removeprefix("##")
        if i in masked:
            hit = _hit(masked[i].with_image, masked[i].truth)
            shown = templates["masked_word"].fill(hit=hit, word=shown)
        words += [shown] if word.startswith("##") or not words else [" ", shown]
    return templates["caption"].fill(words=join(words)) if "".join(words) else Html()


def _image(templates: Mapping, card: Card) -> Html:
    """Return the image with numbered boxes, and their classes below."""
    height, width = card.image.shape[:2]
    scale, height = WIDTH / width, WIDTH * height / width
    hidden = {region.box for region in card.hidden_regions}
    boxes = np.asarray(card.boxes, np.float64).reshape(-1, 4) * scale
    shapes, tabs, classes = [], [], []
    for i, (x1, y1, x2, y2) in list(enumerate(boxes))[1:]:
        color = COLORS[(i - 1) % len(COLORS)]
        size = dict(width=f"{x2 - x1:.1f}", height=f"{y2 - y1:.1f}")
        fill = "url(#hatch)" if i in hidden else "none"
        shapes.append(templates["box"].fill(x=f"{x1:.1f}", y=f"{y1:.1f}", fill=fill, color=color, **size))
        tabs.append(_tab(templates, i, (x1, y1), color, height))
        if len(card.box_labels) > i:
            note = " (hidden)" if i in hidden else ""
            name = card.box_labels[i]
            classes.append(templates["class_name"].fill(color=color, number=i, name=name, note=note))
    return templates["image"].fill(
        width=WIDTH,
        height=f"{height:.1f}",
        count=max(len(boxes) - 1, 0),
        data=_data_address(card.image),
        boxes=join(shapes),
        tabs=join(tabs),
        classes=join(classes),
    )


def _tab(templates: Mapping, number: int, corner: tuple[float, float], color: str, height: float) -> Html:
    """Return the number of a box at its top left corner, moved inside the image."""
    width = 10 + 9 * len(str(number))
    x, y = min(max(corner[0], 0), WIDTH - width), min(max(corner[1], 0), height - 18)
    place = dict(x=f"{x:.1f}", y=f"{y:.1f}", center=f"{x + width / 2:.1f}", baseline=f"{y + 14:.1f}")
    return templates["tab"].fill(width=width, color=color, number=number, **place)


def _data_address(pixels: np.ndarray) -> str:
    """Return an image as a data: address, reduced to `LONGEST`."""
    image = PIL.Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8))
    image.thumbnail((LONGEST, LONGEST))  # never enlarges
    kind = "PNG" if image.width * image.height < MAX_PNG else "JPEG"
    file = io.BytesIO()
    image.save(file, kind, quality=88, subsampling=0)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
