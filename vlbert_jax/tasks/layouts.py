"""From the architecture of a model to the layout of its sequences."""

from vlbert_jax.data.packing import RegionLayout
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
        geometry_size=architecture.geometry_size,
    )


def require_vlbert(config, title: str) -> None:
    """Raise ValueError where the config has another architecture than the one that a task is made for."""
    if architecture_of(config) is not VLBERT:
        raise ValueError(
            f"config.model.architecture is {config.model.architecture!r}, but {title} runs with {VLBERT.name!r} only: "
            "set it to that."
        )
