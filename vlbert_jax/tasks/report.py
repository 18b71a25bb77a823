"""The report page of a fine-tuning run: scores, curves, and some texts with the image and the model's answers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from vlbert_jax.batch import Batch
from vlbert_jax.data.images import as_rgb
from vlbert_jax.data.tables import Split
from vlbert_jax.visualization import report
from vlbert_jax.visualization.cards import Card, answer_cards

NUM_CARDS = 12  # at least half of them wrong answers, if there are that many


def write_report(
    directory: Path,
    title: str,
    model: nnx.Module,
    config,
    history: list[dict],
    parts: Callable[[], list[Iterator[Batch]]],
    predict: Callable,
    card: Callable[..., Card | None],
) -> Path:
    """Write `directory`/index.html and return its path.

    Args:
        directory: Folder of the report.
        title: Heading of the page.
        model: The trained model.
        config: Config of the run.
        history: Rows of metrics.jsonl.
        parts: Returns the evaluation batches of each orientation.
        predict: (model, batch, config) -> arrays [b, ...].
        card: (record, shown, row, config) -> the card of an example, as `TextImageTask.card`.
    """
    validation = [row for row in history if row["split"] == "val"]
    about = f"{config.total_steps:,} updates of {config.batch_size} examples of {config.data.texts}."
    sections = [("", report.paragraph(about))]
    if validation:
        sections.append((f"Scores on {config.data.eval_split}", report.scores(validation[-1])))
    sections.append(("Training", report.curves(history)))
    if config.data.features == "image" and (cards := _cards(model, config, parts(), predict, card)):
        sections.append((f"Examples of {config.data.eval_split}, right and wrong", answer_cards(cards)))
    return report.write_page(directory, title, sections)


def _cards(model: nnx.Module, config, parts: list[Iterator[Batch]], predict: Callable, card: Callable) -> list[Any]:
    """Return cards of the first batch of each orientation, right answers before wrong ones."""
    graphdef, state = nnx.split(model)
    predicted = jax.jit(lambda state, batch: predict(nnx.merge(graphdef, state), batch, config))
    records, right, wrong = Split(config, config.data.eval_split), [], []
    for batches in parts:
        batch = next(batches)
        rows = jax.device_get(predicted(state, batch))
        for i, index in enumerate(batch.index):
            if index < 0:
                continue
            width, height = batch.image_size[i, 0].astype(int)
            pixels = as_rgb(np.asarray(batch.pixels[i, 0, :height, :width]))
            shown = dict(image=pixels, boxes=batch.boxes[i, : batch.region_mask[i].sum()])
            row = {name: array[i] for name, array in rows.items()}
            made = card(records[int(index)], shown, row, config)
            if made is not None:
                (right if made.answers and made.answers[0].score > 0 else wrong).append(made)
    half = NUM_CARDS // 2
    some = _spread(wrong, max(half, NUM_CARDS - len(right)))
    return _spread(right, NUM_CARDS - len(some)) + some


def _spread(cards: list, number: int) -> list:
    """Return `number` of the cards at even distances."""
    step = max(len(cards) / max(number, 1), 1)
    return [cards[int(i * step)] for i in range(min(number, len(cards)))]
