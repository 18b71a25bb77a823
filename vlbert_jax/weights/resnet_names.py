"""Names of ResNet-101 tensors (torchvision, Caffe)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from vlbert_jax.weights.vlbert_names import BACKBONE_NAME, C5_NAME


def resnet_to_official(name: str) -> str:
    """Return the region head's name for torchvision's ResNet name; layer4 is its C5."""
    return name.replace("layer4", C5_NAME) if name.startswith("layer4.") else f"{BACKBONE_NAME}.{name}"


def official_to_resnet(tensors: Mapping[str, np.ndarray], counters: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return the region head's convolutions and norms with torchvision's names.

    `counters` are the batch counters of norms; they are included.
    """
    found, tensors = {}, {**tensors, **{name: np.asarray(n, np.int64) for name, n in counters.items()}}
    for official, array in tensors.items():
        if official.startswith(f"{C5_NAME}."):
            found[official.replace(C5_NAME, "layer4")] = array
        elif official.startswith(f"{BACKBONE_NAME}."):
            found[official.removeprefix(f"{BACKBONE_NAME}.")] = array
    return found


CAFFE_LAYER = re.compile(r"(res|bn|scale)(?:([2-5])([a-z])(\d*)_branch(1|2[abc])|_conv1)|conv1")


def caffe_to_resnet(layer: str, blobs: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Convert a layer of the detector's ResNet to tensors with torchvision's names.

    Caffe stores batch statistics as sums with a common factor, and gain and offset in a separate
    layer. Layers outside the ResNet give no tensors.
    """
    found = CAFFE_LAYER.fullmatch(layer)
    if not found:
        return {}
    kind, stage, letter, number, branch = found.groups()
    if stage is None:
        prefix, convolution, norm = "", "conv1", "bn1"
    else:
        prefix = f"layer{int(stage) - 1}.{int(number) if number else ord(letter) - ord('a')}."
        index = " abc".index(branch[-1]) if branch != "1" else 0
        convolution, norm = (f"conv{index}", f"bn{index}") if index else ("downsample.0", "downsample.1")
    if kind == "bn":
        mean, variance, factor = blobs
        scale = np.float32(1 / factor.item() if factor.item() else 0)
        return {
            f"{prefix}{norm}.running_mean": mean.reshape(-1) * scale,
            f"{prefix}{norm}.running_var": variance.reshape(-1) * scale,
        }
    if kind == "scale":
        return {f"{prefix}{norm}.{leaf}": b.reshape(-1) for leaf, b in zip(("weight", "bias"), blobs, strict=True)}
    weight, *_ = blobs
    return {f"{prefix}{convolution}.weight": weight}
