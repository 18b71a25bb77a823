"""What a pre-training example looks like: <Caption, Image> and, beside it, <Text>. NumPy, no model.

A caption and its regions fill one sequence; a text-only sequence has words alone, without [CLS] and [SEP]
(official `ConceptualCaptionsDataset` and `GeneralCorpus`).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Sequence

import ml_dtypes
import numpy as np
from jaxtyping import Bool, Float32

from vlbert_jax import sequence, transforms
from vlbert_jax.batch import NO_IMAGE
from vlbert_jax.geometry import box_geometry
from vlbert_jax.sequence import Tokenizer
from vlbert_jax.transforms import Draws

EVAL_MASKED = 0.15  # of words and of regions, however many training masks
# Fields with an axis n: what a caption and its text-only partner share.
SEQUENCE_FIELDS = (
    *("token_ids", "region_ids", "segment_ids", "position_ids", "element_mask"),
    *("mlm_positions", "mlm_labels", "mlm_mask"),
)

Example = dict[str, np.ndarray]  # by the name of the `Batch` field, without the axis b


@dataclasses.dataclass(frozen=True)
class Layout:
    """What of a config shapes an example; see configs/ for units."""

    precomputed: bool
    image_scale: tuple[int, int]
    orientation: str  # of the canvas: landscape, portrait or square
    flip_probability: float
    max_regions: int
    sequence_length: int
    num_classes: int
    feature_size: int
    mlm: bool
    mrc: bool
    relationship: bool
    region_classes: bool
    mask_words: float
    mask_regions: float
    max_mlm_targets: int
    max_mrc_targets: int
    text_min_words: int
    group_words: frozenset[str]
    geometry_dtype: np.dtype | None  # None = the device computes it

    @classmethod
    def of(cls, config, orientation: str = "landscape", train: bool = True) -> Layout:
        """The layout of a run's config. Evaluation does not flip."""
        d, losses = config.data, config.losses
        dtype = np.dtype({"bfloat16": ml_dtypes.bfloat16}.get(config.compute_dtype, config.compute_dtype))
        same = ("max_regions", "sequence_length", "text_min_words")
        return cls(
            precomputed=is_precomputed(config),
            image_scale=tuple(d.image_scale),
            orientation=orientation,
            flip_probability=d.flip_probability if train else 0.0,
            mask_words=d.mask_words if train else EVAL_MASKED,
            mask_regions=d.mask_regions if train else EVAL_MASKED,
            num_classes=config.model.num_region_classes,
            feature_size=config.model.feature_size,
            region_classes=losses.region > 0,
            group_words=frozenset(d.group_words),
            geometry_dtype=None if d.geometry_on_device else dtype,
            **{name: losses[name] for name in ("mlm", "mrc", "relationship")},
            **{name: d[name] for name in (*same, "max_mlm_targets", "max_mrc_targets")},
        )


def is_precomputed(config) -> bool:
    """Whether region features come with the record. Raises ValueError on an unknown kind."""
    kinds = {"image": False, "precomputed": True}
    if config.data.features not in kinds:
        raise ValueError(f"config.data.features is {config.data.features!r}, not one of {', '.join(kinds)}")
    return kinds[config.data.features]


@functools.cache
def _tokenizer(vocab: str, vocab_size: int) -> Tokenizer:
    return sequence.load_tokenizer(vocab, vocab_size)


def tokenizer_of(config) -> Tokenizer:
    """The run's tokenizer, loaded once."""
    local = os.path.join(config.data.data_dir, config.data.vocab)
    return _tokenizer(local if os.path.exists(local) else config.data.vocab, config.model.encoder.vocab_size)


def word_ids(config, words: Sequence[str]) -> tuple[int, ...]:
    """The piece id of each word. Raises ValueError for a word that is not one piece of the vocabulary."""
    tokenizer = tokenizer_of(config)
    found = [[piece for word in tokenizer.words(text) for piece in word] for text in words]
    unknown = tokenizer.backend.token_to_id("[UNK]")
    bad = [text for text, ids in zip(words, found, strict=True) if len(ids) != 1 or ids[0] == unknown]
    if bad:
        raise ValueError(f"not one piece of {config.data.vocab!r} each: {', '.join(bad)}")
    return tuple(ids[0] for ids in found)


def caption_example(
    record: dict,
    draws: Draws,
    tokenizer: Tokenizer,
    layout: Layout,
    other_caption: Sequence[str] | None = None,
) -> Example:
    """An image with its caption, or with `other_caption` where the relationship task draws so; n = 1.

    `record` has `image` (encoded; empty = the colour of the means), `image_size` (width, height), `caption`
    (words), `boxes` [n, 4], `class_scores` [n, c] and, if precomputed, `features` [n, g]; boxes by descending
    score. Rows of the result are the whole image and the first `max_regions` boxes; further boxes do not
    exist for the model, but count in the mean that is the whole image's precomputed feature. `region_mask` is
    True for rows that the sequence holds. Hidden rows beyond it keep box and `region_hidden`: their pixels
    are blanked as well (official behaviour). Raises ValueError if classes or features are of another number
    than the config's.
    """
    scores = record["class_scores"]  # float16 perhaps: converting all of it costs a millisecond
    _check_width("class scores", scores, "num_region_classes", layout.num_classes)
    num_rows = min(len(scores), layout.max_regions) + 1
    rows = layout.max_regions + 1
    flip = draws.flip < layout.flip_probability
    pixels = None if layout.precomputed else _pixels(record)
    original = tuple(map(int, record["image_size"])) if pixels is None else pixels.shape[1::-1]
    size = transforms.resized_size(original, layout.image_scale)

    asked = hidden = np.zeros(len(scores), bool)
    if layout.mrc:
        asked, hidden = transforms.mask_regions(draws, layout.mask_regions)
    row_hidden = _rows(np.append(False, hidden[: num_rows - 1]), rows)

    own = other_caption is None or not layout.relationship or draws.relationship < 0.5
    caption = record["caption"] if own else other_caption
    words = tokenizer.words(" ".join(caption), layout.sequence_length)
    ids, labels = _masked(words, draws, tokenizer, layout)
    ids = np.concatenate([[tokenizer.cls_id], ids, [tokenizer.sep_id]])
    labels = np.concatenate([[-1], labels, [-1]])
    num_text, kept = sequence.truncate(len(ids), num_rows, layout.sequence_length)
    if num_text < len(ids):  # the last one, [SEP], stays
        ids, labels = (np.append(x[: num_text - 1], x[-1]) for x in (ids, labels))
    zeros = np.zeros(num_text, np.int32)
    length, vocab_size = layout.sequence_length, tokenizer.vocab_size
    packed = sequence.pack(ids, zeros, kept, row_hidden, zeros, length, vocab_size)
    example = _sequence_fields(packed, labels, layout)

    boxes = _rows(transforms.place_boxes(record["boxes"], original, size, flip)[:num_rows], rows)
    example.update(
        boxes=boxes,
        region_mask=np.arange(rows) < kept,
        region_hidden=row_hidden,
        image_size=np.array(size, np.float32),
        relationship=np.int32(own),
        group=np.int32(sum(word.lower() in layout.group_words for word in caption)),
    )
    if pixels is not None:
        canvas = transforms.canvas_size(layout.image_scale, layout.orientation)
        example["image"] = transforms.place_image(pixels, size, canvas, flip)
    if layout.geometry_dtype is not None:
        geometry = box_geometry(boxes[:kept], example["image_size"])  # rows that nothing reads stay 0
        example["box_geometry"] = _rows(geometry.astype(layout.geometry_dtype), rows)
    if layout.mrc:
        k = layout.max_mrc_targets
        targets = np.flatnonzero(asked[: kept - 1])
        targets = targets[_is_distribution(scores[targets])][:k]
        example.update(
            mrc_regions=_rows((targets + 1).astype(np.int32), k),
            mrc_positions=_rows((num_text + targets + 1).astype(np.int32), k),
            mrc_targets=_rows(scores[targets].astype(np.float32), k),
            mrc_mask=np.arange(k) < len(targets),
        )
    if layout.region_classes:
        seen = scores[: kept - 1]
        classes = np.where(_is_distribution(seen), seen.argmax(axis=1), -1)
        example["region_classes"] = _rows(np.append(-1, classes).astype(np.int32), rows, fill=-1)
    if layout.precomputed:
        example["region_features"] = _region_features(record, hidden, layout)
    return example


def text_example(words: list[list[int]], draws: Draws, tokenizer: Tokenizer, layout: Layout) -> Example:
    """A text-only sequence, n = 1: the first pieces of `words`, neither [CLS] nor [SEP], no image."""
    ids, labels = _masked(words, draws, tokenizer, layout)
    none, nowhere = np.zeros(len(ids), np.int32), np.full(len(ids), NO_IMAGE)
    packed = sequence.pack(ids, none, 0, (), nowhere, layout.sequence_length, tokenizer.vocab_size)
    return _sequence_fields(packed, labels, layout)


def empty_example(like: Example) -> Example:
    """What fills up the last batch of an evaluation: shapes of `like`, every mask False, nothing to score."""
    marks = {"region_ids": NO_IMAGE, "region_classes": -1, "image_size": 1}
    return {name: np.full_like(value, marks.get(name, 0)) for name, value in like.items()}


def text_words(lines, number: int, tokenizer: Tokenizer, layout: Layout) -> list[list[int]]:
    """Words of line `number` and, until there are `text_min_words`, of the lines after it, around the end."""
    words: list[list[int]] = []
    limit = max(layout.text_min_words, layout.sequence_length)
    for step in range(layout.text_min_words):  # a line has a word at least
        words += tokenizer.words(lines[(number + step) % len(lines)]["text"], limit)
        if len(words) >= layout.text_min_words:
            break
    return words


def _pixels(record: dict) -> np.ndarray:
    if record["image"]:
        try:
            return transforms.decode_image(record["image"])
        except ValueError as error:  # officially so, too: one broken file must not end a run of days
            logging.warning("record %s: %s; taken as an empty image", record.get("index"), error)
    width, height = record["image_size"]
    return np.full((height, width, 3), transforms.MEAN_RGB, np.uint8)


def _masked(words: list[list[int]], draws: Draws, tokenizer: Tokenizer, layout: Layout):
    """(ids, labels) of the first `sequence_length` pieces: later ones fit no sequence, with any regions."""
    cut, room = [], layout.sequence_length
    for word in words:
        cut.append(word[:room])
        room -= len(cut[-1])
        if room == 0:
            break
    probability = layout.mask_words if layout.mlm else 0.0
    return transforms.mask_words(cut, draws, probability, tokenizer.mask_id)


def _sequence_fields(packed: dict[str, np.ndarray], labels: np.ndarray, layout: Layout) -> Example:
    """The packed sequence and its masked words, with the axis n."""
    m = layout.max_mlm_targets
    positions = np.flatnonzero(labels >= 0)[:m].astype(np.int32)
    words = dict(
        mlm_positions=_rows(positions, m),
        mlm_labels=_rows(labels[positions].astype(np.int32), m),
        mlm_mask=np.arange(m) < len(positions),
    )
    return {name: value[None] for name, value in (packed | words).items()}


def _region_features(record: dict, hidden: np.ndarray, layout: Layout) -> Float32[np.ndarray, "r g"]:
    """The boxes' features behind that of the whole image: the mean over all boxes that are not hidden."""
    features = np.asarray(record["features"], np.float32)
    _check_width("features", features, "feature_size", layout.feature_size)
    out = np.zeros((layout.max_regions + 1, layout.feature_size), np.float32)
    # The official code divides by the number + 1e-5 where regions are masked, and by the number where not.
    count = np.sum(~hidden) + 1e-5 if layout.mrc else max(len(features), 1)
    out[0] = np.einsum("n,ng->g", ~hidden, features) / np.float32(count)  # BLAS would start threads for it
    out[1 : len(features) + 1] = features[: layout.max_regions]
    return out


def _is_distribution(scores: np.ndarray) -> Bool[np.ndarray, "n"]:
    """Whether class scores are a target at all (official test)."""
    return np.abs(scores.sum(axis=1, dtype=np.float32) - 1) < 0.1


def _check_width(what: str, values: np.ndarray, field: str, expected: int) -> None:
    if values.shape[1] != expected:
        raise ValueError(f"a record has {values.shape[1]} {what} per box, config.model.{field} is {expected}")


def _rows(values: np.ndarray, rows: int, fill: int = 0) -> np.ndarray:
    """`values` with `rows` rows, `fill` behind."""
    out = np.full((rows, *values.shape[1:]), fill, values.dtype)
    out[: len(values)] = values
    return out
