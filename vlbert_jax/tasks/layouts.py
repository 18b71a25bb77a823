"""From the architecture of a model to the layout of its sequences."""

from collections.abc import Mapping
from typing import Any

from vlbert_jax.data.packing import RegionLayout
from vlbert_jax.data.tokenizer import Tokenizer
from vlbert_jax.model.architectures import VLBERT
from vlbert_jax.model.config import architecture_of

WORDS_CARRY = {"before_norm": "all", "after_norm": "named", "none": "none"}
POSITIONS = {"shared": "shared", "running": "running", "own": "zero", "none": "zero"}


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
    )


def names_of_regions(record: Mapping[str, Any], tokenizer: Tokenizer, layout: RegionLayout) -> list[int]:
    """Return the ids of the names of the regions in their order, where the text has them; [] where none is known."""
    return sum(tokenizer.words(" ".join(record.get("labels", ()))), []) if layout.names else []


def require_vlbert(config, title: str) -> None:
    """Raise ValueError where the config has another architecture than the one that a task is made for."""
    if architecture_of(config) is not VLBERT:
        raise ValueError(
            f"config.model.architecture is {config.model.architecture!r}, but {title} runs with {VLBERT.name!r} only: "
            "set it to that."
        )
