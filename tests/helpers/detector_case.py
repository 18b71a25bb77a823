"""Provide a tiny detector with random weights, and images for it."""

import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vlbert_jax.detector.detect import Detector
from vlbert_jax.detector.network import FasterRCNN, Sizes
from vlbert_jax.detector.options import Selection, Settings
from vlbert_jax.weights import detector_names

SIZES = Sizes(
    stem_width=4,
    widths=(4, 4, 8, 8),
    blocks=(1, 1, 1, 1),
    rpn_width=8,
    num_classes=9,
    num_attributes=5,
    embedding_size=3,
    attribute_width=6,
)
SCALE = (96, 160)  # short side and limit of the long side in pixels; 600 and 1000 in the released model
SETTINGS = Settings(proposals_before=200, proposals_after=24, roi_chunk=12)


@functools.cache
def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Return weights with MILVLG's names and order; scores differ between boxes."""
    state = nnx.state(FasterRCNN(SIZES, Settings(), rngs=nnx.Rngs(seed)))
    flat = {tuple(map(str, path)): np.array(v[...]) for path, v in nnx.to_flat_state(state)}
    rng = np.random.default_rng(seed)
    for path, array in flat.items():
        if path[-1] == "bias":
            array += rng.normal(0, 0.1, array.shape).astype(np.float32)
        elif path[0] in ("objectness", "classes", "attributes"):
            array *= 3
    return detector_names.parameters_to_milvlg(flat)


@functools.cache
def shared_detector() -> Detector:
    """Return the detector that all tests share, so that it is compiled once."""
    return detector()


def detector(seed: int = 0, settings: Settings = SETTINGS, **options) -> Detector:
    selection = Selection(**{"image_scale": SCALE, "fewest": 3, "most": 8} | options.pop("selection", {}))
    return Detector(tensors(seed), settings=settings, selection=selection, dtype=jnp.float32, **options)


def image(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Return an image of colored blocks."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    return np.ascontiguousarray(np.repeat(np.repeat(blocks, 8, 0), 8, 1)[:height, :width])
