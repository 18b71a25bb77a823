"""Which words of a caption name which regions, and what the probes remove (NumPy).

A word names a region if it is part of a name of the region's class that the caption holds: of "the red ball and the
red box", the first two words name a region of class "red ball", and "red" alone names none. The class of a region is
the best one of its detector. In the synthetic scenes this is exact: each thing has a class, "COLOR CATEGORY", which the
caption holds once, and the true class has the best score. On photographs it finds the regions of Visual Genome's
classes that a caption names, in place of the annotations of Flickr30k Entities.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from vlbert_jax.batch import Batch
from vlbert_jax.data.streams import stream_seed
from vlbert_jax.data.tokenizer import Tokenizer, tokenizer_of
from vlbert_jax.files import read_lines
from vlbert_jax.tasks.pretrain.batches import EVAL_SEED, eval_captions
from vlbert_jax.tasks.pretrain.targets import ProbeTargets

SHARES = (0.25, 0.5, 0.75)
# What is removed of one modality while the other is predicted. aligned: what names a target, or is named by it;
# others: all but that; N %: each element with that probability, those of a smaller share among those of a larger one.
LEVELS = ("none", "aligned", "others", *(f"{share:.0%}" for share in SHARES), "all")
COVERED = 0.5  # a box is removed with a region of whose area it covers more than this part (Frank et al., 2021)

Name = tuple[int, ...]  # token ids


def probe_batches(config, process_index: int, process_count: int) -> Iterator[Batch]:
    """Return this process's part of the captions of the evaluation split, each batch with `ProbeTargets`.

    The masks are those of evaluation. What is removed depends on the number of the example alone.

    Raises:
        ValueError: The classes of the regions have no names.
    """
    names, tokenizer = class_names_of(config), tokenizer_of(config)
    seed = stream_seed(EVAL_SEED, "probe")
    parts = eval_captions(config, process_index, process_count, region_classes=True)
    for part, batches in enumerate(parts):
        for k, batch in enumerate(batches):
            b = len(batch.token_ids)
            first = (k * process_count + process_index) * b
            draws = [np.random.default_rng([seed, part, first + row]) for row in range(b)]
            yield with_levels(batch, names, tokenizer, draws)


def class_names_of(config) -> list[list[Name]]:
    """Return the names of each class of regions as token ids; the background, class 0, has none.

    Raises:
        ValueError: There is no list, or it has another number of classes than the config.
    """
    path, tokenizer = Path(config.data.data_dir, config.data.class_names), tokenizer_of(config)
    if not config.data.class_names or not path.is_file():
        raise ValueError(
            f"{path} (config.data.class_names) is not a file; the probes need the names of the detector's classes, one "
            "line for each, to find which words name which regions."
        )
    lines = read_lines(path)
    if len(lines) != config.model.num_region_classes - 1:
        raise ValueError(
            f"{path} has {len(lines)} lines; config.model.num_region_classes={config.model.num_region_classes} needs "
            "one less than that, without the background."
        )
    names = [[tuple(sum(tokenizer.words(name), [])) for name in line.split(",")] for line in lines]
    return [[], *([name for name in of_class if name] for of_class in names)]


def with_levels(
    batch: Batch, names: list[list[Name]], tokenizer: Tokenizer, draws: list[np.random.Generator]
) -> Batch:
    """Return a batch of captions with what names what, and with what each level removes.

    Args:
        batch: Captions with one sequence for each, and the classes of the regions.
        names: Names of each class.
        tokenizer: Tokenizer of the run.
        draws: Source of randomness of each row.
    """
    targets = batch.targets
    b, s, r = len(batch.token_ids), batch.token_ids.shape[2], batch.region_mask.shape[1]
    named = np.zeros((b, s, r), bool)
    removed_regions, removed_words = np.zeros((b, len(LEVELS), r), bool), np.zeros((b, len(LEVELS), s), bool)
    continues = np.array([token.startswith("##") for token in _tokens(tokenizer)])
    for row, rng in enumerate(draws):
        ids = batch.token_ids[row, 0].copy()
        asked = targets.mlm_positions[row, 0, targets.mlm_mask[row, 0]]
        ids[asked] = targets.mlm_labels[row, 0, targets.mlm_mask[row, 0]]
        real = batch.region_mask[row].copy()
        real[0] = False  # the whole image
        classes = np.where(real, targets.region_classes[row], 0)
        if targets.relationship[row] == 1:
            named[row] = names_in(ids, classes, names, continues)
        covering = covers(batch.boxes[row]) & real
        of_words = (named[row][asked].any(0) @ covering) & real
        removed_regions[row] = _levels(of_words, real, rng)
        removed_regions[row, -1] = True  # with the whole image
        if targets.mrc_mask is None:
            continue
        is_word = (ids < tokenizer.vocab_size) & ~np.isin(ids, (tokenizer.cls_id, tokenizer.sep_id))
        is_word &= batch.element_mask[row, 0]
        hidden = np.zeros(r, bool)
        hidden[targets.mrc_regions[row, targets.mrc_mask[row]]] = True
        of_regions = (named[row] @ covering)[:, hidden].any(1)
        removed_words[row] = _levels(of_regions, is_word, rng)
    fields = {name: getattr(targets, name) for name in targets.names()}
    probes = ProbeTargets(**fields, named=named, removed_regions=removed_regions, removed_words=removed_words)
    return batch.replace(targets=probes)


def _tokens(tokenizer: Tokenizer) -> list[str]:
    """Return the tokens of the vocabulary by number, and empty texts for the elements that are no words."""
    return [tokenizer.backend.id_to_token(i) or "" for i in range(tokenizer.vocab_size)] + [""] * 3


def _levels(aligned: Bool[np.ndarray, "e"], real: Bool[np.ndarray, "e"], rng: np.random.Generator):
    """Return what each level removes of the real elements, [levels, e]."""
    uniform = rng.random(len(real))
    others = real & ~aligned & aligned.any()
    return np.stack([real & False, aligned, others, *(real & (uniform < share) for share in SHARES), real])


def names_in(
    ids: Int[np.ndarray, "s"], classes: Int[np.ndarray, "r"], names: list[list[Name]], continues: Bool[np.ndarray, "v"]
) -> Bool[np.ndarray, "s r"]:
    """Return which tokens are part of a name of the class of which region.

    Args:
        ids: Token ids of the caption without masks.
        classes: Class of each region; below 1 = none.
        names: Names of each class.
        continues: Whether a token continues a word.
    """
    found = np.zeros((len(ids), len(classes)), bool)
    text = ids.tolist()
    for number in np.unique(classes[classes > 0]):
        of_class = np.zeros(len(ids), bool)
        for name in names[number]:
            for start in range(len(text) - len(name) + 1):
                end = start + len(name)
                if tuple(text[start:end]) == name and not (end < len(text) and continues[text[end]]):
                    of_class[start:end] = True
        found |= of_class[:, None] & (classes == number)
    return found


def covers(boxes: Float[np.ndarray, "r 4"]) -> Bool[np.ndarray, "r r"]:
    """Return whether each region (first axis) is itself, or is covered by, another one: by more than `COVERED`."""
    low, high = np.maximum(boxes[:, None, :2], boxes[None, :, :2]), np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = np.maximum(high - low + 1, 0).prod(-1)
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(-1)
    return (shared > COVERED * areas[:, None]) | np.eye(len(boxes), dtype=bool)
