"""From the architecture of a model to its options and to the layout of its sequences."""

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from vlbert_jax.data.class_scores import read_class_names
from vlbert_jax.data.examples import ImageLayout
from vlbert_jax.data.packing import RegionLayout
from vlbert_jax.data.tokenizer import Tokenizer
from vlbert_jax.model.architectures import get_architecture
from vlbert_jax.model.config import EncoderConfig, RegionHeadConfig, architecture_of, model_options
from vlbert_jax.model.two_stream_config import TwoStreamConfig, two_stream_options

log = logging.getLogger(__name__)

WORDS_CARRY = {"before_norm": "all", "after_norm": "named", "none": "none"}
POSITIONS = {"shared": "shared", "running": "running", "own": "zero", "none": "zero"}


def trunk_options(config) -> tuple[EncoderConfig | TwoStreamConfig, RegionHeadConfig]:
    """Return the options of the trunk, of one stream or of two, and of the region head of a run's config."""
    return two_stream_options(config) if architecture_of(config).streams == 2 else model_options(config)


def region_layout(config) -> RegionLayout:
    """Return how regions enter the sequences of the config's architecture."""
    architecture = architecture_of(config)
    return RegionLayout(
        whole_image=architecture.whole_image,
        words_carry=WORDS_CARRY[architecture.word_visual],
        segment=architecture.region_segment_id,
        positions=POSITIONS[architecture.region_position],
        end_token=architecture.end_token,
        names=architecture.region_names,
        geometry_size=architecture.geometry_size,
        apart=architecture.streams == 2,
    )


def names_of_regions(record: Mapping[str, Any], tokenizer: Tokenizer, layout: ImageLayout) -> list[int]:
    """Return the ids of the names of the regions in their order, where the text has them; [] where none is known.

    The regions of a prediction have names (`labels`), those of a table numbers of classes (`best_class`), which
    `config.data.class_names` names. Of a table, those beyond `max_regions` are left out with their regions.

    Raises:
        ValueError: There is no list of the names of the classes, or it is too short.
    """
    if not layout.regions.names:
        return []
    names = record.get("labels", ())
    if layout.class_names and "labels" not in record:
        classes = [int(number) for number in record.get("best_class", ())[: layout.max_regions]]
        names = _names_of_classes(classes, layout.class_names)
    return sum(tokenizer.words(" ".join(names)), [])


def _names_of_classes(classes: Sequence[int], path: str) -> list[str]:
    """Return the names of classes by their number, from 1. Raises ValueError."""
    if not classes:
        _warn_of_no_names()
        return []
    remedy = "give the list objects_vocab.txt of the detector, or set config.data.class_names='' to read no names."
    if not os.path.isfile(path):
        raise ValueError(
            f"{path} (config.data.class_names) is not a file, but the text has the names of the regions: {remedy}"
        )
    listed = read_class_names(path)
    if max(classes) > len(listed):
        raise ValueError(
            f"{path} (config.data.class_names) has {len(listed)} lines, but a region is of class {max(classes)}: "
            f"{remedy}"
        )
    return [listed[number - 1] for number in classes]


@functools.cache
def _warn_of_no_names() -> None:
    """Log once that the text has no names of regions although the model reads them."""
    log.warning(
        "the table of images has no classes of regions, so the text has no names of them, which this model reads: "
        "build the table with --classes"
    )


def closed(ids: Sequence[int], room: int, tokenizer: Tokenizer) -> list[int]:
    """Return as many ids as there is room for with [SEP] behind them; [] where that is none."""
    kept = ids[: max(room - 1, 0)]
    return [*kept, tokenizer.sep_id] if kept else []


def text_length(config) -> int:
    """Return the most text elements of a sequence: `config.data.text_length`, or as many as a sequence holds."""
    return config.data.get("text_length", 0) or config.data.sequence_length


def sequence_length(config) -> int:
    """Return the length of the sequences, without [END]: words and regions, or words alone if regions are apart."""
    return text_length(config) if architecture_of(config).streams == 2 else config.data.sequence_length


def lengths_of_family(
    architecture: str, shapes: Mapping[str, tuple[int, ...]], regions: int, words: int, number: int
) -> dict[str, int]:
    """Return the fields of a config, by dotted name, for the lengths of a published recipe of a sibling.

    Args:
        architecture: Name of the architecture.
        shapes: Name of a tensor -> shape; they say whether the model is 12-in-1.
        regions: Most regions of an image.
        words: Most elements of a text.
        number: Number of the task in 12-in-1.
    """
    fields = {"data.max_regions": regions, "data.sequence_length": regions + 1 + words}
    if get_architecture(architecture).streams == 2:
        fields["data.text_length"] = words
    if shapes.get("embeddings.task_embeddings.weight"):
        fields["model.two_stream.task_number"] = number
    return fields
