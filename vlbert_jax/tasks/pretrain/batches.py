"""Pre-training batches: captions mixed 1:1 with text, the part of one process."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import ClassVar

import ml_collections
import numpy as np

from vlbert_jax.batch import Batch, Example, abstract_batch, empty_example
from vlbert_jax.data import streams
from vlbert_jax.data.class_scores import are_distributions, class_scores
from vlbert_jax.data.examples import is_precomputed, remembered_images
from vlbert_jax.data.masking import Samples, draw_samples, swapped_regions
from vlbert_jax.data.records import Records, Source, open_split
from vlbert_jax.data.streams import (
    batch_bytes,
    batches_of,
    chosen,
    in_order,
    log_ahead,
    mixed,
    paired,
    per_host,
    stream_seed,
)
from vlbert_jax.data.tables import require_usable
from vlbert_jax.data.tokenizer import Tokenizer, tokenizer_of
from vlbert_jax.tasks.answer_lists import AnswerVocabulary, answers_of
from vlbert_jax.tasks.pretrain.examples import (
    SEQUENCE_FIELDS,
    CaptionLayout,
    answers_of_record,
    caption_example,
    pair_shapes,
    text_example,
    text_words,
)
from vlbert_jax.tasks.pretrain.objectives import objective_at
from vlbert_jax.tasks.pretrain.objectives import shares as objectives_of
from vlbert_jax.tasks.pretrain.questions import sampled_answer
from vlbert_jax.tasks.pretrain.targets import VISUAL_LOSSES, PretrainTargets

EVAL_SEED = 20_200_115  # masks of evaluation do not depend on the seed of the run


@dataclasses.dataclass(frozen=True)
class _Corpus:
    """Records and how they become examples; `numbers` are the records that may share a batch."""

    records: Records
    numbers: range
    tokenizer: Tokenizer
    layout: CaptionLayout
    answers: AnswerVocabulary | None = None  # where questions are learned
    eval_stream: ClassVar[str]  # name of the random stream of evaluation; another name changes every score

    def example(self, number: int, rng: np.random.Generator) -> Example:
        raise NotImplementedError

    def evaluate(self, number: int) -> Example:
        seed = stream_seed(EVAL_SEED, self.eval_stream)
        return self.example(number, np.random.default_rng([seed, number]))


class _Captions(_Corpus):
    eval_stream = "_Captions"

    def example(self, number: int, rng: np.random.Generator) -> Example:
        record = self.records[number]
        draws = draw_samples(rng, self.layout.num_draws, len(record["boxes"]), self.tokenizer.ordinary_ids)
        caption = scores = None
        if self.layout.relationship and draws.relationship >= 0.5 and len(self.records) > 1:
            other = self._another(number, draws.other)
            if other["image_id"] != record["image_id"]:  # another caption of the same image belongs to it
                caption = other["caption"]
                scores = class_scores(other, slice(self.layout.max_regions)) if self.layout.wrong_names else None
        swaps = self._swaps(number, draws) if self.layout.swapped_share and self.layout.mrc else None
        return caption_example(record, draws, self.tokenizer, self.layout, caption, self.answers, swaps, scores)

    def _another(self, number: int, fraction: float) -> dict:
        """Return a record other than `number`, of at least two; the whole record is read, whatever is used of it."""
        other = int(fraction * (len(self.records) - 1))
        return self.records[other + (other >= number)]

    def _swaps(self, number: int, draws: Samples) -> dict[int, np.ndarray]:
        """Return for each swapped box the feature of a box of another record (LXMERT)."""
        layout, found = self.layout, {}
        for box in swapped_regions(draws, layout.mask_regions, layout.hidden_share, layout.swapped_share):
            features = self._another(number, draws.swaps[box, 0])["features"] if len(self.records) > 1 else ()
            if len(features):
                found[int(box)] = features[int(draws.swaps[box, 1] * len(features))]
        return found


class _Text(_Corpus):
    eval_stream = "_Text"

    def example(self, number: int, rng: np.random.Generator) -> Example:
        draws = draw_samples(rng, self.layout.num_draws, 0, self.tokenizer.ordinary_ids)
        words = text_words(self.records, number, self.tokenizer, self.layout)
        return text_example(words, draws, self.tokenizer, self.layout)


def _captions(config, split: str, train: bool, **options) -> list[_Captions]:
    """Return the captions of a split, by orientation where canvases differ; `options` change their layout."""
    d = config.data
    landscape, portrait = (
        open_split(d.data_dir, d.captions, f"{split}_{orientation}", optional=True)
        for orientation in ("landscape", "portrait")
    )
    remembered = dict(remembered=d.remember_records, prepared=remembered_images(config))
    records, edge = Records(landscape, portrait, **remembered), len(landscape)
    if not len(records):
        raise ValueError(f"{d.captions} has neither {split}_landscape nor {split}_portrait")
    _check_captions(config, records, split)
    answers = answers_of(config) if config.losses.get("answers", False) else None
    parts = {"landscape": range(edge), "portrait": range(edge, len(records))}
    if is_precomputed(config) or not d.one_orientation:
        parts = {"square": range(len(records))}
    tokenizer = tokenizer_of(config)

    def layout(orientation: str) -> CaptionLayout:
        return dataclasses.replace(CaptionLayout.of(config, orientation, train), **options)

    return [
        _Captions(records, numbers, tokenizer, layout(orientation), answers)
        for orientation, numbers in parts.items()
        if numbers
    ]


def _check_captions(config, records: Source, split: str) -> None:
    """Raise ValueError where the captions of a split leave nothing to learn for one of the losses."""
    d, losses, tokenizer = config.data, config.losses, tokenizer_of(config)
    if losses.mlm:
        missing, remedy = f"captions of {split} in {d.captions} has a word of the vocabulary", f"Check {d.vocab}."
        require_usable(records, lambda record: _has_words(tokenizer, " ".join(record["caption"])), missing, remedy)
    if any(losses.get(name, False) for name in ("mrc", "region", "regression", *VISUAL_LOSSES)):
        missing, remedy = f"records of {split} in {d.captions} has a region", "Build it again with regions."
        require_usable(records, lambda record: len(record["boxes"]) > 0, missing, remedy)
    if losses.get("answers", False):
        known, place = answers_of(config), config.data.answers
        missing = f"question of {split} in {d.captions} has an answer of {place}"

        def is_usable(record: dict) -> bool:
            return sampled_answer(*answers_of_record(record), known, 0.0) >= 0

        remedy = "Choose the list of these answers, or set config.losses.answers=False."
        require_usable(records, is_usable, missing, remedy)
    if losses.get("mrc", True) or losses.get("region", 0) or losses.get("objects", False):
        missing = f"records of {split} in {d.captions} has class scores that sum to 1, the targets of regions"
        remedy = "Extract regions with a detector of classes, or set config.losses.mrc=False (region=0, objects=False)."
        require_usable(records, lambda record: bool(are_distributions(class_scores(record)).any()), missing, remedy)


def _has_words(tokenizer: Tokenizer, text: str) -> bool:
    """Return whether the vocabulary has a word of a text."""
    unknown = tokenizer.backend.token_to_id("[UNK]")
    return any(piece != unknown for word in tokenizer.words(text) for piece in word)


def _text(config, split: str, train: bool) -> _Text:
    d, tokenizer = config.data, tokenizer_of(config)
    lines = Records(open_split(d.data_dir, d.text, split), remembered=d.remember_records)
    if config.losses.mlm:
        missing, remedy = f"lines of {split} in {d.text} has a word of the vocabulary", f"Check {d.vocab}."
        require_usable(lines, lambda record: _has_words(tokenizer, record["text"]), missing, remedy)
    return _Text(lines, range(len(lines)), tokenizer, CaptionLayout.of(config, train=train))


def _share(config, process_index: int, process_count: int) -> dict[str, int]:
    """Return which part of a global batch a process loads. Images are all of its sequences, or half with text."""
    if config.losses.text_only and config.batch_size % 2:
        raise ValueError(f"batch_size {config.batch_size} is odd: half are captions, half text")
    images = config.batch_size // 2 if config.losses.text_only else config.batch_size
    share = per_host(images, process_count)
    return dict(batch_size=share, process_index=process_index, process_count=process_count)


def with_text(captions: Example, text: Example) -> Example:
    """Join a caption and a text: sequence 0 is the caption, sequence 1 an unrelated text."""
    both = {name: np.concatenate([captions[name], text[name]], axis=1) for name in SEQUENCE_FIELDS}
    return captions | both


def batch_shapes(config) -> Batch:
    """Return the global batch of an update as shapes alone; this needs no data."""
    return abstract_batch(_share(config, 0, 1)["batch_size"], pair_shapes(config), PretrainTargets)


def train_batches(config, start_step: int, process_index: int, process_count: int) -> Iterator[Batch]:
    """Iterate without end over this process's part of global batches start_step, start_step + 1, ...

    Batch k depends on the config and k alone, and so does the objective that it is for (objectives.py). With
    `one_orientation` a batch has landscape or portrait images, chosen by k, in proportion to the split.
    """
    share = _share(config, process_index, process_count)

    def shuffled(corpus: _Corpus, stream: str):
        seed = stream_seed(config.seed, stream)
        return streams.shuffled(corpus.numbers, seed, corpus.example, **share, even=config.data.even_regions)

    parts = _captions(config, config.data.train_split, train=True)

    def captions(objective: str):
        layouts = [CaptionLayout.of(config, part.layout.orientation, True, objective) for part in parts]
        changed = [dataclasses.replace(part, layout=layout) for part, layout in zip(parts, layouts, strict=True)]
        return mixed([shuffled(x, x.layout.orientation) for x in changed], [len(part.numbers) for part in parts])

    if objectives := objectives_of(config):
        batches = chosen({name: captions(name) for name in objectives}, lambda k: objective_at(config, k))
    else:
        batches = captions("")
    if config.losses.text_only:
        batches = paired(batches, shuffled(_text(config, config.data.train_split, train=True), "text"), with_text)
    nbytes = _bytes(config, process_count)
    log_ahead(config, nbytes)
    return batches_of(batches[start_step:], config, PretrainTargets, nbytes)


def eval_batches(config, process_index: int, process_count: int) -> dict[str, Iterator[Batch]]:
    """Return this process's part of the evaluation split, every record once: `captions`, and `text` if mixed in."""
    parts = eval_parts(config, process_index, process_count)
    return {name: itertools.chain.from_iterable(part) for name, part in parts.items()}


def eval_parts(config, process_index: int, process_count: int) -> dict[str, list[Iterator[Batch]]]:
    """Return the same, with the captions of each orientation separate.

    Masks depend on the number of the record alone. All processes get the same number of batches, filled up
    with padding.
    """
    found = {"captions": eval_captions(config, process_index, process_count)}
    if config.losses.text_only:
        text = _text(config, config.data.eval_split, train=False)
        found["text"] = [_in_batches(text, config, process_index, process_count)]
    return found


def eval_captions(config, process_index: int, process_count: int, **options) -> list[Iterator[Batch]]:
    """Return the captions of `eval_parts`; `options` change their layout, and no text is read."""
    parts = _captions(config, config.data.eval_split, train=False, **options)
    return [_in_batches(part, config, process_index, process_count) for part in parts]


def _in_batches(corpus: _Corpus, config, process_index: int, process_count: int) -> Iterator[Batch]:
    """Return this process's part of the batches that hold every record once."""
    share, nbytes = _share(config, process_index, process_count), _bytes(config, process_count)
    return batches_of(in_order(corpus.numbers, corpus.evaluate, _empty, **share), config, PretrainTargets, nbytes)


def _empty(like: Example) -> Example:
    return empty_example(like, PretrainTargets)


def _bytes(config, process_count: int) -> int:
    """Return the bytes of one process's part of a batch."""
    images = dict(batch_size=_share(config, 0, 1)["batch_size"])
    return batch_bytes(ml_collections.ConfigDict(images), pair_shapes(config), process_count)
