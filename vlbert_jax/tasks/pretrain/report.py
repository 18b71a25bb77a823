"""The report page of pre-training: scores, curves, and guesses with and without the image."""

import itertools
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from vlbert_jax.batch import Batch
from vlbert_jax.data.images import as_rgb
from vlbert_jax.data.tokenizer import masking_ids, tokenizer_of
from vlbert_jax.files import read_lines
from vlbert_jax.model.visual_linguistic import without_words
from vlbert_jax.tasks.pretrain import predict
from vlbert_jax.tasks.pretrain.batches import eval_parts
from vlbert_jax.tasks.pretrain.predict import guess_words
from vlbert_jax.visualization import report
from vlbert_jax.visualization.cards import Card, Guess, HiddenRegion, prediction_cards, record_cards

NUM_CARDS = 12


def write_report(directory: Path, model, config, history: list[dict]) -> Path:
    """Write `directory`/index.html; `history` are the rows of metrics.jsonl."""
    validation = [row for row in history if row["split"] == "val"]
    about = (
        f"{config.total_steps:,} updates of {config.batch_size} sequences; captions from {config.data.captions}. "
        "“Blind” means without the image for words, and without the caption for hidden regions."
    )
    if config.opening.steps:
        about += f" The first {config.opening.steps} updates train the region head alone, so the loss jumps after them."
    sections = [("", report.paragraph(about))]
    if validation:
        sections.append(("Scores on the validation split", report.scores(validation[-1])))
    sections.append(("Training", report.curves(history)))
    predicted = predicted_cards(model, config)
    if predicted:
        sections.append(("Masked words and hidden regions", prediction_cards(predicted)))
        sections.append(("The data", record_cards([_plain(card) for card in predicted])))
    return report.write_page(directory, "VL-BERT pre-training", sections)


def predicted_cards(model, config) -> list[Card]:
    """Return cards of the first validation images with something to guess, both orientations; none without pixels."""
    if config.data.features != "image":
        return []
    graphdef, state = nnx.split(model)
    guess = jax.jit(lambda state, batch: _guess(nnx.merge(graphdef, state), batch, config))
    batches = [next(part) for part in eval_parts(config, 0, 1)["captions"]]
    cards = [_cards(batch, jax.device_get(guess(state, batch)), config) for batch in batches]
    # In turn, so that both orientations are seen.
    mixed = [card for group in itertools.zip_longest(*cards) for card in group if card is not None]
    return mixed[:NUM_CARDS]


def _guess(model, batch: Batch, config) -> dict:
    """Return probabilities and ids of the best words and classes, with and without the other modality."""
    region_states = model.region_states(batch, model.appearance(batch))
    seen = model.encode(batch, region_states)
    words = guess_words(model, batch, seen, config)
    found = {name: tuple(array[:, 0] for array in best) for name, best in words.items()}
    if not config.losses.mrc:
        return found
    wordless = model.encode(without_words(batch, *masking_ids(config)), region_states)
    return found | dict(
        classes=predict.guesses(model.mrc_logits(seen, batch.targets.mrc_positions)),
        classes_blind=predict.guesses(model.mrc_logits(wordless, batch.targets.mrc_positions)),
    )


def _cards(batch: Batch, guesses: dict, config) -> list[Card]:
    tokenizer, names = tokenizer_of(config), class_names(config)

    def ranked(which, names, row, i):
        probabilities, ids = guesses[which]
        return [(names(int(k)), float(p)) for p, k in zip(probabilities[row, i], ids[row, i], strict=True)]

    cards = []
    for row in range(len(batch.pixels)):
        masked_words = np.flatnonzero(batch.targets.mlm_mask[row, 0])
        hidden = np.flatnonzero(batch.targets.mrc_mask[row]) if config.losses.mrc else []
        hidden = [i for i in hidden if batch.region_hidden[row, batch.targets.mrc_regions[row, i]]]
        if not len(masked_words) or not batch.element_mask[row].any():
            continue
        ids = batch.token_ids[row, 0].copy()
        ids[batch.targets.mlm_positions[row, 0, masked_words]] = batch.targets.mlm_labels[row, 0, masked_words]
        is_text = (batch.element_mask[row, 0]) & (ids < tokenizer.vocab_size)
        width, height = batch.image_size[row, 0].astype(int)
        count = int(batch.region_mask[row].sum())
        classes = None if batch.targets.region_classes is None else batch.targets.region_classes[row, :count]
        labels = [""] * count if classes is None else [names(int(number)) for number in classes]
        cards.append(
            Card(
                image=as_rgb(np.asarray(batch.pixels[row, 0, :height, :width])),
                boxes=np.asarray(batch.boxes[row, :count]),
                box_labels=labels,
                words=[tokenizer.backend.id_to_token(int(i)) for i in ids[is_text]][1:-1],  # without [CLS] and [SEP]
                masked=[
                    Guess(
                        position=int(batch.targets.mlm_positions[row, 0, i]) - 1,
                        truth=tokenizer.backend.id_to_token(int(batch.targets.mlm_labels[row, 0, i])),
                        with_image=ranked("words", tokenizer.backend.id_to_token, row, i),
                        blind=ranked("words_blind", tokenizer.backend.id_to_token, row, i),
                    )
                    for i in masked_words
                ],
                hidden_regions=[
                    HiddenRegion(
                        box=int(batch.targets.mrc_regions[row, i]),
                        truth=names(int(batch.targets.mrc_targets[row, i].argmax())),
                        guesses=ranked("classes", names, row, i),
                        blind=ranked("classes_blind", names, row, i),
                    )
                    for i in hidden
                ],
            )
        )
    return cards


def class_names(config):
    """Return the function number -> name, from the detector's list (synonyms after commas, background not listed)."""
    listed = Path(config.data.data_dir, config.data.class_names)
    lines = read_lines(listed) if config.data.class_names and listed.exists() else []

    def name(number: int) -> str:
        if number <= 0:
            return "background" if number == 0 else ""
        return lines[number - 1].split(",")[0] if number <= len(lines) else f"class {number}"

    return name


def _plain(card: Card) -> Card:
    return Card(image=card.image, boxes=card.boxes, box_labels=card.box_labels, words=card.words)
