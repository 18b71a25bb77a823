"""The bottom-up-attention detector (Anderson et al., 2018): images in, regions out.

    detector = load("detector/")                # or a .caffemodel, .pth, .pkl, Hugging Face folder or name
    regions, = detector.detect([image])         # uint8 RGB
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float32, Int32, UInt8

from vlbert_jax.data.images import caffe_pixels, caffe_scale, caffe_size
from vlbert_jax.detector.fingerprint import extractor_fingerprint
from vlbert_jax.detector.network import FasterRCNN, Proposals
from vlbert_jax.detector.options import Selection, Settings
from vlbert_jax.detector.proposals import select_regions
from vlbert_jax.detector.weights import detector_sizes, find_lists, read_detector
from vlbert_jax.weights import detector_names

CANVASES = 10  # steps into which a side of the network's input is rounded up: each shape is compiled once


@dataclasses.dataclass(frozen=True)
class Regions:
    """What was found in one image: r regions in the detector's order, c classes and a attributes.

    Class and attribute 0 are "no object" and "no attribute"; ids and scores are of the best one beside these.
    """

    boxes: Float32[np.ndarray, "r 4"]  # x1 y1 x2 y2, pixels of the given image
    class_ids: Int32[np.ndarray, "r"]
    class_scores: Float32[np.ndarray, "r"]
    features: Float32[np.ndarray, "r g"]  # 2048, the mean over the last feature map of the region
    attribute_ids: Int32[np.ndarray, "r"] | None  # None where the weights know no attributes
    attribute_scores: Float32[np.ndarray, "r"] | None
    class_probabilities: Float32[np.ndarray, "r c"] | None
    attribute_probabilities: Float32[np.ndarray, "r a"] | None


class Detector:
    """The network with its weights and lists. `class_names[class_id]` names a class; likewise attributes.

    Where no list was found beside the weights, names are "class 7" and "attribute 7". `tensors` have the names and
    order of `detector_names.canonical`. Raises ValueError where tensors or lists do not fit together.
    """

    def __init__(
        self,
        tensors: Mapping[str, np.ndarray],
        lists: tuple[Sequence[str] | None, Sequence[str] | None] = (None, None),
        settings: Settings | None = None,
        selection: Selection | None = None,
        *,
        batch_size: int = 1,
        dtype=jnp.float32,
    ):
        settings, self.selection, dtype = settings or Settings(), selection or Selection(), jnp.dtype(dtype)
        self.batch_size = batch_size
        sizes = self.sizes = detector_sizes(tensors)
        chosen = dataclasses.asdict(settings) | dataclasses.asdict(self.selection) | dict(dtype=dtype.name)
        del chosen["roi_chunk"]  # changes speed alone
        self.fingerprint = extractor_fingerprint(tensors, chosen)
        self.class_names = _named("class", "__background__", lists[0], sizes.num_classes)
        self.attribute_names = _named("attribute", "__no_attribute__", lists[1], sizes.num_attributes)
        network = nnx.eval_shape(lambda: FasterRCNN(sizes, settings, dtype=dtype, rngs=nnx.Rngs(0)))
        graphdef, abstract = nnx.split(network)
        flat = {tuple(map(str, path)): variable for path, variable in nnx.to_flat_state(abstract)}
        ours = detector_names.match_detector(tensors, {path: variable.shape for path, variable in flat.items()})
        for path, variable in flat.items():
            variable.set_value(jnp.asarray(ours[path]))
        self.graphdef, self.state = graphdef, abstract
        cells = -(-self.selection.image_scale[1] // 16) + 1
        self._propose = jax.jit(functools.partial(_propose, graphdef, cells))
        self._describe = jax.jit(functools.partial(_describe, graphdef))

    def detect(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[Regions]:
        """Regions of each RGB image, 10 to 100 by default; where the network proposes fewer, these, at least one."""
        found: dict[int, Regions] = {}
        waiting: dict[tuple[int, int], list] = {}
        for number, image in enumerate(images):
            prepared = Prepared(image, self.selection.image_scale)
            group = waiting.setdefault(prepared.canvas, [])
            group.append((number, prepared))
            if len(group) == self.batch_size:
                found |= self._batch(waiting.pop(prepared.canvas))
        for group in waiting.values():
            found |= self._batch(group)
        return [found[number] for number in range(len(images))]

    def propose(self, prepared: Sequence[Prepared]) -> Proposals:
        """All proposals of images of one canvas, `batch_size` at most, on the device."""
        rows = [*prepared, *[prepared[-1]] * (self.batch_size - len(prepared))]  # one shape, whatever there is
        pixels = np.zeros((len(rows), *rows[0].canvas, 3), np.float32)
        for row, image in zip(pixels, rows, strict=True):
            row[: image.size[1], : image.size[0]] = image.pixels
        size = np.array([image.size for image in rows], np.int32)
        scale = np.array([image.scale for image in rows], np.float32)
        with jax.default_matmul_precision("highest"):  # float32 is meant: accelerators would round to 8 or 10 bits
            feature_map, boxes, mask = self._propose(self.state, pixels, size, scale)
            return self._describe(self.state, feature_map, size, boxes, mask, scale)

    def _batch(self, group: list[tuple[int, Prepared]]) -> dict[int, Regions]:
        proposals = self.propose([prepared for _, prepared in group])
        proposals = jax.device_get(dataclasses.replace(proposals, deltas=None))  # the largest array, of no use here
        return {number: self._regions(proposals, row, prepared) for row, (number, prepared) in enumerate(group)}

    def _regions(self, proposals: Proposals, row: int, prepared: Prepared) -> Regions:
        count = int(proposals.mask[row].sum())
        s = self.selection
        kept = select_regions(proposals.confidence[row, :count], s.threshold, s.fewest, s.most)
        probabilities = proposals.classes[row][kept]
        attributes = attribute_ids = attribute_scores = None
        if proposals.attributes is not None:
            attributes = proposals.attributes[row][kept]
            attribute_ids, attribute_scores = _best(attributes)
        boxes = proposals.boxes[row][kept] / np.float32(prepared.scale)
        return Regions(
            np.minimum(boxes, np.tile(np.float32(prepared.original), 2)),  # a line's padding is not of the image
            *_best(probabilities),
            proposals.features[row][kept],
            attribute_ids,
            attribute_scores,
            probabilities,
            attributes,
        )


class Prepared:
    """An image as the network sees it: `pixels` of `size` (width, height), `scale` times as large as given."""

    def __init__(self, image: UInt8[np.ndarray, "y x 3"], image_scale: tuple[int, int]):
        self.original = size = image.shape[1::-1]
        self.scale = caffe_scale(size, image_scale)
        self.size = caffe_size(size, self.scale)
        self.pixels = caffe_pixels(image, self.scale)
        step = -(-image_scale[1] // CANVASES)
        self.canvas = tuple(-(-side // step) * step for side in reversed(self.size))  # (height, width)


def _best(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(id, probability) of the best column of each row, the first left out."""
    best = 1 + probabilities[:, 1:].argmax(1)
    return best.astype(np.int32), np.take_along_axis(probabilities, best[:, None], 1)[:, 0]


# Two programs: the second, which is most of the work to compile and to run, has one shape for all canvases.


def _propose(graphdef, cells: int, state, pixels, size, scale):
    network = nnx.merge(graphdef, state)
    feature_map = network.backbone(pixels, size)
    boxes, mask, _ = network.proposals(*network.propose_scores(feature_map, size), size, scale)
    room = [(0, cells - side) for side in feature_map.shape[1:3]]
    return jnp.pad(feature_map, ((0, 0), *room, (0, 0))), boxes, mask


def _describe(graphdef, state, feature_map, size, boxes, mask, scale) -> Proposals:
    network = nnx.merge(graphdef, state)
    return network.describe(boxes, mask, network.region_features(feature_map, size, boxes, mask), scale)


# --- Loading -----------------------------------------------------------------------------------------------------


def load_detector(
    path: str | Path,
    settings: Settings | None = None,
    selection: Selection | None = None,
    *,
    lists: str | Path | None = None,
    batch_size: int = 1,
    dtype=jnp.float32,
) -> Detector:
    """A detector from a converted folder or any source file that `vlbert_jax.convert` knows.

    `lists` is the folder of objects_vocab.txt and attributes_vocab.txt if they are not beside the weights. Raises
    FileNotFoundError, or ValueError for what is no detector or does not fit together.
    """
    tensors, names = read_detector(path), find_lists(path, lists)
    try:
        return Detector(tensors, names, settings, selection, batch_size=batch_size, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _named(kind: str, none: str, names: Sequence[str] | None, number: int) -> tuple[str, ...]:
    if not number:
        return ()
    if names is not None and len(names) != number - 1:
        raise ValueError(f"the list of {kind} names has {len(names)} lines, the weights have {number - 1}")
    return (none, *(names or (f"{kind} {i}" for i in range(1, number))))
