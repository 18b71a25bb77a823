"""The page of a fine-tuning run: scores, curves, and some questions with the image and the model's answers."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from vlbert_jax.data.images import as_rgb
from vlbert_jax.data.tables import ExampleMaker, Split, eval_parts
from vlbert_jax.visualization import report

NUM_CARDS = 12  # half of them wrong ones, if there are so many


def write_report(
    directory: Path,
    title: str,
    model: nnx.Module,
    config,
    history: list[dict],
    maker: ExampleMaker,
    predict: Callable,
    card: Callable[..., report.Card | None],
) -> Path:
    """Writes `directory`/index.html; `history` are the rows of metrics.jsonl.

    `predict(model, batch, config)` gives arrays [b, ...]; `card(record, picture, row)` makes a card of an example's
    record, the fields `image` and `boxes` of its card, and its row of each of these arrays; None where nobody knows
    what is right.
    """
    validation = [row for row in history if row["split"] == "val"]
    about = f"{config.total_steps:,} updates of {config.batch_size} examples of {config.data.texts}."
    sections = [("", report.paragraph(about))]
    if validation:
        sections.append((f"Scores on {config.data.eval_split}", report.scores(validation[-1])))
    sections.append(("Training", report.curves(history)))
    if cards := _cards(model, config, maker, predict, card):
        sections.append((f"Examples of {config.data.eval_split}, right and wrong", report.answers(cards)))
    return report.write_page(directory, title, sections)


def _cards(model, config, maker, predict, card) -> list[report.Card]:
    """From the first batch of each orientation; none without pixels."""
    if config.data.features != "image":
        return []
    graphdef, state = nnx.split(model)
    predicted = jax.jit(lambda state, batch: predict(nnx.merge(graphdef, state), batch, config))
    records, right, wrong = Split(config, config.data.eval_split), [], []
    for batches in eval_parts(config, maker, 0, 1):
        batch = next(batches)
        rows = jax.device_get(predicted(state, batch))
        for i, index in enumerate(batch.index):
            if index < 0:
                continue
            width, height = batch.image_size[i].astype(int)
            pixels = as_rgb(np.asarray(batch.image[i, :height, :width]))
            picture = dict(image=pixels, boxes=batch.boxes[i, : batch.region_mask[i].sum()])
            made = card(records[int(index)], picture, {name: array[i] for name, array in rows.items()})
            if made is None:
                continue
            (right if made.answers and made.answers[0].score > 0 else wrong).append(made)
    half = NUM_CARDS // 2
    some = _spread(wrong, max(half, NUM_CARDS - len(right)))
    return _spread(right, NUM_CARDS - len(some)) + some


def _spread(cards: list, number: int) -> list:
    """So many of them, evenly."""
    step = max(len(cards) / max(number, 1), 1)
    return [cards[int(i * step)] for i in range(min(number, len(cards)))]
