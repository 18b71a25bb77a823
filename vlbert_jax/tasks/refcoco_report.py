"""The page of a run on referring expressions: scores, curves, and which region was chosen for which expression."""

import itertools
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from vlbert_jax import report
from vlbert_jax.batch import Batch
from vlbert_jax.tasks import refcoco
from vlbert_jax.tasks.examples import tokenizer_of

NUM_CARDS = 12


def write_report(directory: Path, model, config, history: list[dict]) -> Path:
    """Writes `directory`/index.html; `history` are the rows of metrics.jsonl."""
    validation = [row for row in history if row["split"] == "val"]
    about = (
        f"{config.total_steps:,} updates of {config.batch_size} expressions of {config.data.texts}. “Blind” knows the "
        "words and where the regions are, not what they look like; “wordless” sees everything and has every word "
        "masked; “chance” chooses any region, “possible” the best one there is."
    )
    sections = [("", report.paragraph(about))]
    if validation:
        sections.append(("Scores on the validation split", report.scores(validation[-1])))
    sections.append(("Training", report.curves(history)))
    sections.append(("What was chosen", report.gallery(chosen_cards(model, config))))
    return report.write(directory, "VL-BERT on referring expressions", sections)


def chosen_cards(model, config) -> list[report.Card]:
    """Cards of the first evaluation examples of both orientations, in turn."""
    graphdef, state = nnx.split(model)
    predict = jax.jit(lambda state, batch: refcoco.predict(nnx.merge(graphdef, state), batch, config))
    groups = [_cards(batch, jax.device_get(predict(state, batch)), config) for batch in _first_batches(config)]
    mixed = [card for cards in itertools.zip_longest(*groups) for card in cards if card is not None]
    return mixed[:NUM_CARDS]


def _first_batches(config):
    """The first evaluation batch of each orientation."""
    orientations = set()
    for batch in refcoco.eval_batches(config, 0, 1)["expressions"]:
        if batch.image.shape[1:3] not in orientations:
            orientations.add(batch.image.shape[1:3])
            yield batch
        if len(orientations) == 2:
            return


def _cards(batch: Batch, predicted: dict, config) -> list[report.Card]:
    tokenizer, cards = tokenizer_of(config), []
    for row in range(min(NUM_CARDS, int(batch.region_mask.any(1).sum()))):
        width, height = batch.image_size[row].astype(int)
        count, chosen = int(batch.region_mask[row].sum()), int(predicted["region"][row])
        labels = [""] * count
        for region in np.flatnonzero(batch.region_hits[row]):
            labels[region] = "meant"
        probability = f"chosen, {100 * predicted['probability'][row]:.0f} %"
        labels[chosen] = f"{labels[chosen]}, {probability}" if labels[chosen] else probability
        hit = bool(batch.region_hits[row, chosen])
        ids = batch.token_ids[row, 0][batch.element_mask[row, 0]]
        words = ids[ids < tokenizer.vocab_size][1:-1]  # without [CLS] and [SEP]
        title = "right" if hit else "wrong"
        cards.append(
            report.Card(
                image=np.asarray(batch.image[row, :height, :width]),
                boxes=np.asarray(batch.boxes[row, :count]),
                box_labels=labels,
                words=[tokenizer.backend.id_to_token(int(i)) for i in words],
                title=title if chosen else f"{title}: the whole image was chosen",
            )
        )
    return cards
