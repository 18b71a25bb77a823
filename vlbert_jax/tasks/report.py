"""The report page of a run, and the examples of tasks whose model answers a text about an image."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlbert_jax.batch import Batch
from vlbert_jax.data.images import as_rgb
from vlbert_jax.data.tables import Split
from vlbert_jax.visualization import report
from vlbert_jax.visualization.cards import Card, answer_cards
from vlbert_jax.visualization.drawing import draw_regions
from vlbert_jax.visualization.selection import choose_at_rate
from vlbert_jax.visualization.templates import Html

NUM_CARDS = 12
GAP = 8  # pixels between the images of an example
NUM_DRAWINGS = 4  # examples that trackers get as images


@dataclasses.dataclass(frozen=True)
class About:
    """What the page says about the run itself."""

    status: str  # one sentence: how far it is
    facts: Mapping[str, str]  # name -> value
    commands: Sequence[tuple[str, str]]  # (what it does, the command), what to run next
    config: Mapping[str, object]  # field by dotted name -> value


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of the report."""

    sections: Sequence[tuple[str, Html]] = ()
    cards: Sequence[Card] = ()

    def drawings(self) -> list[tuple[str, np.ndarray]]:
        """Return the first examples as texts and images (uint8 [height, width, 3]) that hold them."""
        result = []
        for card in self.cards[:NUM_DRAWINGS]:
            text, lines = _lines(card)
            labels = list(card.box_labels[1:]) or [str(i) for i in range(1, len(card.boxes))]
            boxes = np.asarray(card.boxes[1:], np.float32)
            drawing = draw_regions(np.ascontiguousarray(card.image), boxes, labels, {}, [text, *lines])
            result.append((text, np.asarray(drawing)))
        return result


def _lines(card: Card) -> tuple[str, list[str]]:
    """Return the text of an example, and the model's answers as indented lines."""
    if card.question:
        best = "   ".join(f"{a.text} {a.probability:.0%}{' ✓' if a.score >= 1 else ''}" for a in card.answers[:4])
        return card.question, [f"  {best}"]
    hidden = {guess.position for guess in card.masked}
    words = (f"[{word}]" if i in hidden else word for i, word in enumerate(card.words))
    asked = [*card.masked, *card.hidden_regions]
    guesses = (getattr(one, "with_image", None) or getattr(one, "guesses", ()) for one in asked)
    return " ".join(words).replace(" ##", ""), [
        f"  {one.truth}: " + "   ".join(f"{word} {probability:.0%}" for word, probability in best[:4])
        for one, best in zip(asked, guesses, strict=True)
    ]


def newest_scores(history: list[dict]) -> Mapping:
    """Return the newest evaluation among the rows of metrics.jsonl; empty if there is none."""
    return next((row for row in reversed(history) if row["split"] == "val"), {})


def write_report(
    directory: Path, title: str, labels: report.Labels, examples: Examples, config, history: list[dict], about: About
) -> None:
    """Write `directory`/index.html.

    Args:
        directory: Folder of the report.
        title: Heading of the page.
        labels: Labels of the metrics (`Task.metric_labels`).
        examples: Examples of the model's answers.
        config: Config of the run.
        history: Rows of metrics.jsonl.
        about: What the page says about the run.
    """
    scores = newest_scores(history)
    sections = [("", report.paragraph(about.status))]
    if scores:
        heading = f"Scores on {config.data.get('eval_split', 'val')}, step {scores['step']:,}"
        sections.append((heading, report.scores(scores, labels)))
    sections += [("Training", report.curves(history, labels=labels)), *examples.sections]
    fields = [(name, "", [("", repr(value))]) for name, value in about.config.items()]
    sections += [
        ("What to run next", report.command_list(about.commands)),
        ("This run", report.fact_list(about.facts)),
        ("", report.fold(f"All {len(fields)} fields of the config", report.plain_table([("", "value")], fields))),
    ]
    report.write_page(directory, title, sections)


def shown_images(batch: Batch, example: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of an example side by side (uint8 [y, x, 3]) and the boxes of their regions.

    Row 0 of the boxes is the whole of what is shown.
    """
    sizes = batch.image_size[example].astype(int)
    rows = len(batch.boxes[example]) // len(sizes)
    height, width = sizes[:, 1].max(), sizes[:, 0].sum() + GAP * (len(sizes) - 1)
    shown, boxes, left = np.full((height, width, 3), 255, np.uint8), [], 0
    for image, (x, y) in enumerate(sizes):
        shown[:y, left : left + x] = as_rgb(np.asarray(batch.pixels[example, image, :y, :x]))
        real = slice(image * rows, (image + 1) * rows)
        found = batch.boxes[example, real][batch.region_mask[example, real]]
        boxes.append(found + np.array([left, 0, left, 0], found.dtype))
        left += x + GAP
    if len(sizes) == 1:
        return shown, boxes[0]
    whole = np.array([[0, 0, width - 1, height - 1]], np.float32)
    return shown, np.concatenate([whole, *(found[1:] for found in boxes)])


def answer_examples(
    shown: list[tuple[Batch, dict]],
    config,
    card: Callable[..., Card | None],
    rate: float | None,
    records: Sequence[Any] | None = None,
) -> Examples:
    """Return some examples of the batches, of which the same share is right as of the split.

    Args:
        shown: Batches and their rows; see `Task.report_examples`.
        config: Config of the run.
        card: (record, shown, row, config) -> the card of an example, as `TextImageTask.card`.
        rate: Measured accuracy; None = not measured.
        records: The record of each index; None = those of the evaluation split.
    """
    found: Any = Split(config, config.data.eval_split) if records is None else records
    cards = []
    for batch, rows in shown:
        for i, index in enumerate(batch.index):
            if index < 0:
                continue
            pixels, boxes = shown_images(batch, i)
            fields = dict(image=pixels, boxes=boxes)
            made = card(found[int(index)], fields, {name: array[i] for name, array in rows.items()}, config)
            if made is not None:
                cards.append(made)
    if not cards:
        return Examples()
    right = np.array([[made.answers[0].score if made.answers else 0.0] for made in cards])
    rates = np.array([np.nan if rate is None else rate])
    chosen = choose_at_rate(right, np.ones_like(right), rates, NUM_CARDS)
    text = f"The mean score of these {len(chosen)} answers is {100 * right[chosen].mean():.0f} %"
    if rate is not None:
        text += f"; that of the whole split is {100 * rate:.1f} %"
    text += f". They were chosen among {len(cards)} so that the two are near each other."
    cards = [cards[i] for i in chosen]
    return Examples([(f"Examples of {config.data.eval_split}", report.note(text) + answer_cards(cards))], cards)
