"""Pre-training examples: a caption with its image, and a text alone. NumPy, without the model.

A caption and its regions are one sequence; a text-only sequence has words alone, without [CLS] and
[SEP] (`ConceptualCaptionsDataset` and `GeneralCorpus` of the official code).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from vlbert_jax.batch import NO_IMAGE, Example, Shapes
from vlbert_jax.data import masking
from vlbert_jax.data.class_scores import (
    are_distributions,
    class_scores,
    number_of_classes,
    widened,
)
from vlbert_jax.data.examples import (
    ImageLayout,
    check_stored,
    check_width,
    image_fields,
    image_shapes,
    is_precomputed,
    usual_orientation,
)
from vlbert_jax.data.masking import Samples
from vlbert_jax.data.packing import pack, padded, sequence_shapes, truncate
from vlbert_jax.data.tokenizer import Tokenizer, tokenizer_of
from vlbert_jax.tasks.answer_lists import AnswerVocabulary
from vlbert_jax.tasks.layouts import closed, names_of_regions, region_layout, sequence_length, text_length
from vlbert_jax.tasks.pretrain.questions import sampled_answer
from vlbert_jax.tasks.pretrain.second_texts import cut_together, names_of_classes, two_captions

MOST_SWAPS = 8  # swapped regions of an image: LXMERT swaps 0.54 on average
EVAL_MASKED = 0.15  # share of words and of regions that evaluation masks, whatever training does
# Fields with an axis n, which a caption and its text-only partner share.
SEQUENCE_FIELDS = (
    *("token_ids", "region_ids", "segment_ids", "position_ids", "element_mask"),
    *("mlm_positions", "mlm_labels", "mlm_mask"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionLayout(ImageLayout):
    """Fields of a config that determine an example; see configs/ for units."""

    flip_probability: float
    sequence_length: int
    text_length: int
    num_draws: int  # words for which random numbers are drawn, the same number in every arrangement
    num_classes: int
    mlm: bool
    mrc: bool
    relationship: bool
    wrong_names: bool = False  # whether half of the wrong pairs have the names of another image's regions instead
    second_caption: bool = False
    region_classes: bool
    mask_words: float
    mask_regions: float
    mask_tokens: bool = False
    mask_least_one: bool = False
    hidden_share: float = 0.9
    swapped_share: float = 0.0
    max_mlm_targets: int
    max_mrc_targets: int
    text_min_words: int
    group_words: frozenset[str]
    objects: bool = False
    attributes: bool = False
    num_attributes: int = 0
    answers: bool = False

    @classmethod
    def of(
        cls, config, orientation: str = "landscape", train: bool = True, objective: str = ""
    ) -> CaptionLayout:
        """Return the layout of a config.

        With an `objective` (objectives.py) the example has the targets of this one alone: words or regions are masked,
        or the caption may be that of another image. Its shapes are the same.
        """
        d, losses = config.data, config.losses
        mask_words, mask_regions = (d.mask_words, d.mask_regions) if train else (EVAL_MASKED, EVAL_MASKED)
        swapped = d.get("swapped_share", 0.0)
        if swapped and not is_precomputed(config):
            raise ValueError(
                f"config.data.swapped_share is {swapped}, but regions of images have no stored features to swap: "
                "set config.data.features=precomputed, or config.data.swapped_share=0."
            )
        if (hidden := d.get("hidden_share", 0.9)) + swapped > 1:
            raise ValueError(
                f"config.data.hidden_share is {hidden} and config.data.swapped_share {swapped}: both are shares of the "
                "regions that are predicted, so their sum must be at most 1."
            )
        options = cls.options(config, orientation, region_layout(config))
        if (second := d.get("second_caption", False)) and options["class_names"]:
            raise ValueError(
                f"config.data.second_caption is True, but config.model.architecture={config.model.architecture} reads "
                "names of regions as its second text: set config.data.second_caption=False, or class_names=''."
            )
        return cls(
            **options,
            second_caption=second,
            flip_probability=d.flip_probability if train else 0.0,  # evaluation does not mirror
            mask_words=mask_words if objective in ("", "mlm") else 0.0,
            mask_regions=mask_regions if objective in ("", "mrc", "regression") else 0.0,
            mask_tokens=train and d.get("mask_tokens", False),
            mask_least_one=train and d.get("mask_least_one", False),
            hidden_share=d.get("hidden_share", 0.9) if train else 0.9,
            swapped_share=swapped if train else 0.0,
            num_classes=config.model.num_region_classes,
            region_classes=losses.region > 0,
            **{name: losses.get(name, False) for name in ("objects", "attributes", "answers")},
            num_attributes=config.model.get("num_attributes", 0),
            group_words=frozenset(d.group_words),
            mrc=any(losses.get(name, False) for name in ("mrc", "regression", "features")),
            mlm=losses.mlm,
            relationship=losses.relationship and objective in ("", "relationship"),
            wrong_names=config.model.get("relationship_classes", 2) == 3 and bool(options["class_names"]),
            sequence_length=sequence_length(config),
            text_length=text_length(config),
            num_draws=max(d.sequence_length, text_length(config)),
            **{name: d[name] for name in ("text_min_words", "max_mlm_targets", "max_mrc_targets")},
        )


def word_ids(config, words: Sequence[str]) -> tuple[int, ...]:
    """Return the token id of each word; raise ValueError for a word that is not one token of the vocabulary."""
    tokenizer = tokenizer_of(config)
    found = [[piece for word in tokenizer.words(text) for piece in word] for text in words]
    unknown = tokenizer.backend.token_to_id("[UNK]")
    bad = [text for text, ids in zip(words, found, strict=True) if len(ids) != 1 or ids[0] == unknown]
    if bad:
        raise ValueError(f"not one piece of {config.data.vocab!r} each: {', '.join(bad)}")
    return tuple(ids[0] for ids in found)


def caption_example(
    record: dict,
    draws: Samples,
    tokenizer: Tokenizer,
    layout: CaptionLayout,
    other_caption: Sequence[str] | None = None,
    vocabulary: AnswerVocabulary | None = None,
    swaps: Mapping[int, np.ndarray] | None = None,
    other_scores: Float[np.ndarray, "k c"] | None = None,
) -> Example:
    """Return an image with its caption, or with `other_caption` where the relationship is sampled as wrong; n = 1.

    Where the architecture reads names of regions, those of the best classes follow the caption, and are masked as words
    are. With `layout.wrong_names` half of the wrong pairs keep the caption and have the names of `other_scores`: their
    relationship is 2 (Oscar). With `layout.second_caption` the image keeps its caption, and a second one follows, which
    is another of its own or, where the relationship is sampled as wrong, `other_caption` (VisualBERT).

    Boxes beyond `max_regions` are not regions of the model, but count in the mean that is the precomputed
    feature of the whole image. `region_mask` is True for rows that the sequence holds. Hidden rows beyond
    it keep box and `region_hidden`: their pixels are zeroed too, as in the official code.

    Args:
        record: As for `image_fields`, with `caption` (words), `boxes` [n, 4] and class scores (`class_scores.py`),
            in order of descending score; (0, 0) without a detector. With `layout.second_caption` also `other_captions`,
            the further captions of the image; where there is none, the sequence has one caption.
        draws: Random numbers of the example.
        tokenizer: Tokenizer of the run.
        layout: Shapes and options.
        other_caption: Caption of another record.
        vocabulary: Answers by number, where `layout.answers`.
        swaps: Box -> feature of another image's box that the model sees in its place.
        other_scores: Class scores of the regions of `other_caption`'s record, at most `max_regions`.

    Raises:
        ValueError: Classes or features differ in number from the config, or the records lack a field.
    """
    if not record["class_scores"].size:  # the regions are a grid, whose classes nobody knows
        record = record | dict(class_scores=np.zeros((len(record["boxes"]), layout.num_classes), np.float16))
    check_width("class scores", number_of_classes(record), "num_region_classes", layout.num_classes)
    rows = layout.max_regions + 1
    asked, hidden = np.zeros(len(record["boxes"]), bool), None
    if layout.mrc:
        rule = layout.hidden_share, layout.mask_least_one and layout.mask_regions > 0
        asked, hidden = masking.mask_regions(draws, layout.mask_regions, *rule)

    own = other_caption is None or not layout.relationship or draws.relationship < 0.5
    renamed = not own and layout.wrong_names and draws.relationship < 0.75
    caption, text = record["caption"] if own or renamed else other_caption, ""
    if layout.second_caption:
        caption, text = two_captions(record, caption, draws)
    limit = None if text else layout.sequence_length  # of two captions the first loses its beginning
    words = tokenizer.words(" ".join(caption), limit)  # pyright: ignore[reportCallIssue]
    second = []
    if layout.class_names:
        scores = other_scores if renamed else class_scores(record, slice(layout.max_regions))
        second = [[name] for name in names_of_classes(scores, tokenizer, layout)]
    elif text:
        words, second = cut_together(words, tokenizer.words(text), layout.text_length)
    num_words = min(sum(map(len, words)), layout.sequence_length)
    ids, labels = _masked([*words, *second], draws, tokenizer, layout)
    flip = draws.flip < layout.flip_probability
    (ids, second), (labels, of_second) = (np.split(x, [num_words]) for x in (ids, labels))
    example, num_text = _with_image(record, ids, labels, flip, hidden, tokenizer, layout, second, of_second)
    kept = int(example["region_mask"].sum())
    example.update(
        relationship=np.int32(2 if renamed else own),
        group=np.int32(sum(word.lower() in layout.group_words for word in caption)),
    )
    if layout.mrc:
        k = layout.max_mrc_targets
        targets = np.flatnonzero(asked[: kept - 1])
        scores = widened(class_scores(record, targets))
        usable = np.flatnonzero(are_distributions(scores))[:k]
        targets, scores = targets[usable], scores[usable]
        example.update(
            mrc_regions=padded((targets + 1).astype(np.int32), k),
            mrc_positions=padded(
                layout.regions.place_of(targets + 1, num_text, layout.sequence_length).astype(np.int32), k
            ),
            mrc_targets=padded(scores, k),
            mrc_mask=np.arange(k) < len(targets),
        )
    if layout.swapped_share:
        example |= _swapped({box + 1: feature for box, feature in (swaps or {}).items() if box + 1 < kept}, layout)
    if layout.region_classes:
        seen = class_scores(record, slice(kept - 1))
        classes = np.where(are_distributions(seen), seen.argmax(axis=1), -1)
        example["region_classes"] = padded(np.append(-1, classes).astype(np.int32), rows, fill=-1)
    if layout.objects:
        example |= _best("object", class_scores(record, slice(kept - 1))[:, 1:], rows)  # without the background
    if layout.attributes:
        check_stored(record, "attribute_scores", "attributes", "losses.attributes")
        given = record["attribute_scores"]
        check_width("attribute scores", given.shape[1], "num_attributes", layout.num_attributes)
        example |= _best("attribute", given[: kept - 1], rows)
    if layout.answers:
        answer = -1
        if own and vocabulary is not None:  # then no other record is chosen, so its random number is free
            answer = sampled_answer(*answers_of_record(record), vocabulary, draws.other)
        example["answer"] = np.int32(answer)
    return example


def _swapped(features: Mapping[int, np.ndarray], layout: CaptionLayout) -> Example:
    """Return the rows and the features of swapped regions; beyond MOST_SWAPS, rows keep their own."""
    rows = sorted(features)[:MOST_SWAPS]
    filled = np.zeros((MOST_SWAPS, layout.feature_size), np.float32)
    for place, row in enumerate(rows):
        filled[place] = features[row]
    return dict(swap_rows=padded(np.array(rows, np.int32), MOST_SWAPS), swap_features=filled)


def answers_of_record(record: dict) -> tuple[Sequence[str], Sequence[float]]:
    """Return the answers of a record and their scores; raise ValueError where the records have no such fields."""
    check_stored(record, "answers", "answers", "losses.answers", " to train on captions alone")
    return record["answers"], record["answer_scores"].tolist()


def _best(name: str, scores: Float[np.ndarray, "k c"], rows: int) -> Example:
    """Return the most probable class of each region and its score, after the row of the whole image."""
    scores = widened(scores)
    return {
        f"{name}s": padded(np.append(-1, scores.argmax(axis=1)).astype(np.int32), rows, fill=-1),
        f"{name}_scores": padded(np.append(0, scores.max(axis=1)).astype(np.float32), rows),
    }


def fill_example(record: dict, tokenizer: Tokenizer, layout: CaptionLayout) -> Example:
    """Return an image with a `caption` (one string) whose [MASK] are predicted, n = 1; no region is hidden."""
    ids = np.array(sum(tokenizer.words(record["caption"]), []), np.int32)
    labels = np.where(ids == tokenizer.mask_id, ids, -1)
    names = names_of_regions(record, tokenizer, layout)
    return _with_image(record, ids, labels, False, None, tokenizer, layout, names)[0]


def _with_image(
    record: dict,
    ids: Int[np.ndarray, "p"],
    labels: Int[np.ndarray, "p"],
    flip: bool,
    hidden: Bool[np.ndarray, "n"] | None,
    tokenizer: Tokenizer,
    layout: CaptionLayout,
    second: Sequence[int] | Int[np.ndarray, "q"] = (),
    labels_of_second: Int[np.ndarray, "q"] | None = None,
) -> tuple[Example, int]:
    """Return `[CLS] caption [SEP]` and the regions, as many of both as fit, and the number of text elements.

    `second`, the names of the regions or a second caption, follows as a second part of the text, as far as there is
    room; `labels_of_second` are its tokens where they are masked, else -1.
    """
    ids = np.concatenate([[tokenizer.cls_id], ids, [tokenizer.sep_id]])
    labels = np.concatenate([[-1], labels, [-1]])
    num_rows = min(len(record["boxes"]), layout.max_regions) + 1
    first = layout.regions.first_row
    num_text, kept = min(len(ids), layout.text_length), num_rows
    if not layout.regions.apart:
        num_text, kept = truncate(num_text, num_rows - first, layout.sequence_length)
        kept = min(kept + first, num_rows)
    if num_text < len(ids):  # [SEP], the last one, stays
        ids, labels = (np.append(x[: num_text - 1], x[-1]) for x in (ids, labels))
    image = image_fields(record, record["boxes"], layout, flip, kept, hidden)
    regions = 0 if layout.regions.apart else kept - first
    room = min(layout.sequence_length - regions, layout.text_length) - num_text
    part = np.array(closed(np.asarray(second, np.int32).tolist(), room, tokenizer), np.int32)
    labels_of_part = np.full(len(part), -1)
    if labels_of_second is not None and len(part):
        labels_of_part[:-1] = labels_of_second[: len(part) - 1]
    ids, labels = np.concatenate([ids, part]), np.concatenate([labels, labels_of_part])
    segments = np.repeat(np.array([0, 1], np.int32), [num_text, len(part)])
    num_text = len(ids)
    zeros = np.zeros(num_text, np.int32)
    length, vocab_size = layout.sequence_length, tokenizer.vocab_size
    packed = pack(ids, segments, kept, image["region_hidden"], zeros, length, vocab_size, layout=layout.regions)
    return _sequence_fields(packed, labels, layout) | image, num_text


def pair_shapes(config) -> Shapes:
    """Return shapes of a caption's example, with its text-only partner where the recipe has one."""
    layout, n = CaptionLayout.of(config, usual_orientation(config)), 2 if config.losses.text_only else 1
    m, k, rows = layout.max_mlm_targets, layout.max_mrc_targets, layout.max_regions + 1
    shapes = sequence_shapes(n, layout.sequence_length, layout.regions) | image_shapes(layout)
    shapes |= dict.fromkeys(("mlm_positions", "mlm_labels"), ((n, m), np.int32)) | dict(mlm_mask=((n, m), bool))
    shapes |= dict.fromkeys(("relationship", "group"), ((), np.int32))
    if layout.mrc:
        shapes |= dict.fromkeys(("mrc_regions", "mrc_positions"), ((k,), np.int32)) | dict(mrc_mask=((k,), bool))
        shapes["mrc_targets"] = (k, layout.num_classes), np.float32
    if layout.swapped_share:
        shapes |= dict(swap_rows=((MOST_SWAPS,), np.int32))
        shapes |= dict(swap_features=((MOST_SWAPS, layout.feature_size), np.float32))
    if layout.region_classes:
        shapes["region_classes"] = (rows,), np.int32
    if layout.answers:
        shapes["answer"] = (), np.int32
    for name in (name for name in ("object", "attribute") if getattr(layout, f"{name}s")):
        shapes |= {f"{name}s": ((rows,), np.int32), f"{name}_scores": ((rows,), np.float32)}
    return shapes


def text_example(words: list[list[int]], draws: Samples, tokenizer: Tokenizer, layout: CaptionLayout) -> Example:
    """Return a text-only sequence, n = 1: the first tokens of `words`, without [CLS], [SEP] and image."""
    ids, labels = _masked(words, draws, tokenizer, layout)
    none, nowhere = np.zeros(len(ids), np.int32), np.full(len(ids), NO_IMAGE)
    length, vocab_size = layout.sequence_length, tokenizer.vocab_size
    packed = pack(ids, none, 0, (), nowhere, length, vocab_size, layout=layout.regions)
    return _sequence_fields(packed, labels, layout)


def text_words(lines, number: int, tokenizer: Tokenizer, layout: CaptionLayout) -> list[list[int]]:
    """Return words of line `number` and of the following lines, until there are `text_min_words`."""
    words: list[list[int]] = []
    limit = max(layout.text_min_words, layout.sequence_length)
    for step in range(layout.text_min_words):  # a line has at least one word
        words += tokenizer.words(lines[(number + step) % len(lines)]["text"], limit)
        if len(words) >= layout.text_min_words:
            break
    return words


def _masked(words: list[list[int]], draws: Samples, tokenizer: Tokenizer, layout: CaptionLayout):
    """Return (ids, labels) of the first `sequence_length` tokens; later ones never fit."""
    cut, room = [], layout.sequence_length
    for word in words:
        cut.append(word[:room])
        room -= len(cut[-1])
        if room == 0:
            break
    if layout.mask_tokens:
        cut = [[token] for word in cut for token in word]
    probability = layout.mask_words if layout.mlm else 0.0
    return masking.mask_words(cut, draws, probability, tokenizer.mask_id, layout.mask_least_one and probability > 0)


def _sequence_fields(packed: dict[str, np.ndarray], labels: np.ndarray, layout: CaptionLayout) -> Example:
    """Return the packed sequence and its masked words, with the axis n."""
    m = layout.max_mlm_targets
    positions = np.flatnonzero(labels >= 0)[:m].astype(np.int32)
    words = dict(
        mlm_positions=padded(positions, m),
        mlm_labels=padded(labels[positions].astype(np.int32), m),
        mlm_mask=np.arange(m) < len(positions),
    )
    return {name: value[None] for name, value in (packed | words).items()}
