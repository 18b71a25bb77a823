"""The bottom-up-attention detector (Anderson et al., 2018): images in, regions out.

    detector = load("detector/")                # or a .caffemodel, .pth, .pkl, Hugging Face folder
    regions, = detector.detect([image])         # uint8 RGB
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float32, Int32, UInt8
from numpy import ndarray


@dataclasses.dataclass(frozen=True)
class Regions:
    """What was found in one image: r regions in the detector's order, c classes and a attributes.

    Class and attribute 0 are "no object" and "no attribute"; ids and scores are of the best one beside these.
    """

    boxes: Float32[ndarray, "r 4"]  # x1 y1 x2 y2, pixels of the given image
    class_ids: Int32[ndarray, "r"]
    class_scores: Float32[ndarray, "r"]
    features: Float32[ndarray, "r g"]  # 2048, the mean over the last feature map of the region
    attribute_ids: Int32[ndarray, "r"] | None  # None where the weights know no attributes
    attribute_scores: Float32[ndarray, "r"] | None
    class_probabilities: Float32[ndarray, "r c"] | None
    attribute_probabilities: Float32[ndarray, "r a"] | None


class Detector:
    """The network with its weights and lists. `class_names[class_id]` names a class; likewise attributes.

    Where no list was found beside the weights, names are "class 7" and "attribute 7".
    """

    class_names: tuple[str, ...]
    attribute_names: tuple[str, ...]

    def detect(self, images: Sequence[UInt8[ndarray, "y x 3"]]) -> list[Regions]:
        """Regions of each RGB image, 10 to 100 by default, at least one."""
        raise NotImplementedError


def load(path: str | Path) -> Detector:
    """A detector from a converted folder or any source file that `vlbert_jax.convert` knows.

    Raises FileNotFoundError, or ValueError for what is no detector.
    """
    raise NotImplementedError
