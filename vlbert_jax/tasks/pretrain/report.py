"""The examples of a pre-training report: guesses with and without the image."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vlbert_jax.batch import Batch
from vlbert_jax.data.class_scores import read_class_names
from vlbert_jax.data.images import as_rgb
from vlbert_jax.data.tokenizer import masking_ids, tokenizer_of
from vlbert_jax.model.visual_linguistic import without_words
from vlbert_jax.tasks.pretrain import predict
from vlbert_jax.tasks.pretrain.batches import eval_parts
from vlbert_jax.tasks.pretrain.predict import guess_words
from vlbert_jax.tasks.report import Examples
from vlbert_jax.visualization import report
from vlbert_jax.visualization.cards import Card, Guess, HiddenRegion, prediction_cards, record_cards
from vlbert_jax.visualization.selection import choose_at_rate

NUM_CARDS = 12


def report_batches(config) -> list[Batch]:
    """Return the first batch of captions of each orientation; none where the images are not stored."""
    return [next(part) for part in eval_parts(config, 0, 1)["captions"]] if config.data.features == "image" else []


def report_rows(model, batch: Batch, config) -> dict:
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


def report_examples(shown: list[tuple[Batch, dict]], config, scores: Mapping) -> Examples:
    """Return images with something to guess, of both orientations, with as many right guesses as in the split."""
    # In turn, so that both orientations are seen.
    groups = itertools.zip_longest(*(_cards(batch, rows, config) for batch, rows in shown))
    cards = [card for group in groups for card in group if card is not None]
    if not cards:
        return Examples()
    names = ("mlm_caption_accuracy", "mrc_accuracy")
    hits = [[[g.truth == g.with_image[0][0] for g in card.masked], _region_hits(card)] for card in cards]
    right, total = (np.array([[f(kind) for kind in card] for card in hits], np.float64) for f in (sum, len))
    rates = np.array([scores.get(name, np.nan) for name in names], np.float64)
    chosen = choose_at_rate(right, total, rates, NUM_CARDS)
    shares = right[chosen].sum(0), total[chosen].sum(0)
    texts = [
        f"{good:.0f} of {count:.0f} {what} are guessed right"
        + ("" if np.isnan(rate) else f" ({100 * rate:.1f} % of all)")
        for good, count, rate, what in zip(*shares, rates, ("masked words", "hidden regions"), strict=True)
        if count
    ]
    cards = [cards[i] for i in chosen]
    guessed = report.note(f"{'; '.join(texts)}.") + prediction_cards(cards)
    data = record_cards([_plain(card) for card in cards])
    return Examples([("Masked words and hidden regions", guessed), ("The data", data)], cards)


def _region_hits(card: Card) -> list[bool]:
    return [region.truth == region.guesses[0][0] for region in card.hidden_regions]


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
    names = read_class_names(str(listed)) if config.data.class_names and listed.exists() else ()

    def name(number: int) -> str:
        if number <= 0:
            return "background" if number == 0 else ""
        return names[number - 1] if number <= len(names) else f"class {number}"

    return name


def _plain(card: Card) -> Card:
    return Card(image=card.image, boxes=card.boxes, box_labels=card.box_labels, words=card.words)
