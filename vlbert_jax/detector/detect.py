"""The bottom-up-attention detector (Anderson et al., 2018): images in, regions out.

    detector = load_detector("detector/")  # or a .caffemodel, .pth, .pkl, Hugging Face name
    regions, = detector.detect([image])  # uint8 RGB
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
from jaxtyping import UInt8

from vlbert_jax.data.images import caffe_pixels, caffe_scale, caffe_size
from vlbert_jax.detector import huggingface
from vlbert_jax.detector.fingerprint import extractor_fingerprint, extractor_id
from vlbert_jax.detector.network import FasterRCNN, Proposals
from vlbert_jax.detector.options import RULES, SELECTIONS, HuggingFaceSettings, NetworkSettings, Selection
from vlbert_jax.detector.proposals import select_regions
from vlbert_jax.detector.regions import Regions
from vlbert_jax.detector.weights import detector_sizes, find_lists, read_detector, rules_of
from vlbert_jax.files import is_address, user_path
from vlbert_jax.model.structure import structure_of
from vlbert_jax.weights import detector_names
from vlbert_jax.weights.shipped import locate_weights

CANVASES = 10  # sizes to which a side of the network's input is rounded up; each pair of sizes is compiled once
SOURCES = {"caffe": "the detector with Caffe's rules", "huggingface": "the detector with Hugging Face's rules"}
MIN_ATTRIBUTE_SCORE = 0.2  # probability from which an attribute is reported


class Detector:
    """The detector network with its weights and its names of classes and attributes.

    `class_names[0]` and `attribute_names[0]` stand for "no object" and "no attribute".
    """

    def __init__(
        self,
        tensors: Mapping[str, np.ndarray],
        lists: tuple[Sequence[str] | None, Sequence[str] | None] = (None, None),
        settings: NetworkSettings | None = None,
        selection: Selection | None = None,
        *,
        batch_size: int = 1,
        dtype=jnp.float32,
    ):
        """Build the network from tensors.

        Args:
            tensors: weights with the names and the order of `detector_names.to_milvlg`.
            lists: names of the classes and of the attributes, without an entry for "none". Without
                a list the names are "class 7" and "attribute 7".
            settings: options of the network, None = those of the published extraction. Their class decides between
                Caffe's rules and Hugging Face's (`huggingface.py`); None and a `NetworkSettings` itself have those
                that the weights were made for (`rules_of`).
            selection: options that decide which proposals become regions, None = those of VL-BERT, or of the
                demonstration of LXMERT with Hugging Face's rules.
            batch_size: images of one shape that are computed together.
            dtype: type of the convolutions; the heads are float32.

        Raises:
            ValueError: The tensors are not a complete detector, or a list has the wrong length.
        """
        sizes, dtype = detector_sizes(tensors), jnp.dtype(dtype)
        self.settings = settings or NetworkSettings()
        if type(self.settings) is NetworkSettings:
            self.settings = RULES[rules_of(tensors)](**dataclasses.asdict(self.settings))
        self.rules = next(name for name, kind in RULES.items() if type(self.settings) is kind)
        self.selection = selection or SELECTIONS[self.rules]
        self.sizes, self.batch_size = sizes, batch_size
        chosen = dataclasses.asdict(self.settings) | dataclasses.asdict(self.selection) | dict(dtype=dtype.name)
        del chosen["roi_chunk"]  # it changes only the speed
        if self.rules != "caffe":
            chosen["rules"] = self.rules
        self.fingerprint = extractor_fingerprint(tensors, chosen)
        self.class_names = _add_none("class", "__background__", lists[0], sizes.num_classes)
        self.attribute_names = _add_none("attribute", "__no_attribute__", lists[1], sizes.num_attributes)
        network_class = FasterRCNN if self.rules == "caffe" else huggingface.HuggingFaceRCNN
        network = structure_of(lambda rngs: network_class(sizes, self.settings, dtype=dtype, rngs=rngs))
        graphdef, state = nnx.split(network)
        variables = {tuple(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}
        shapes = {path: variable.shape for path, variable in variables.items()}
        parameters = detector_names.match_detector(tensors, shapes)
        for path, variable in variables.items():
            variable.set_value(jnp.asarray(parameters[path]))
        self.graphdef, self.state = graphdef, state
        cells = -(-self.selection.image_scale[1] // 16) + 1
        self._propose = jax.jit(functools.partial(_propose, graphdef, cells))
        self._describe = jax.jit(functools.partial(_describe, graphdef))

    def detect(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[Regions]:
        """Return the regions of each RGB image, `selection.fewest` to `selection.most` of them.

        An image on which the network makes fewer proposals has fewer regions, but at least one.
        """
        found: dict[int, Regions] = {}
        waiting: dict[tuple[int, int], list] = {}
        for number, image in enumerate(images):
            prepared = PreparedImage(image, self.selection.image_scale, self.rules)
            group = waiting.setdefault(prepared.canvas, [])
            group.append((number, prepared))
            if len(group) == self.batch_size:
                found |= self._detect_group(waiting.pop(prepared.canvas))
        for group in waiting.values():
            found |= self._detect_group(group)
        return [found[number] for number in range(len(images))]

    def propose(self, prepared: Sequence[PreparedImage]) -> Proposals:
        """Return the proposals for at most `batch_size` images of one canvas, on the device."""
        rows = [*prepared, *[prepared[-1]] * (self.batch_size - len(prepared))]  # always one shape: no recompilation
        pixels = np.zeros((len(rows), *rows[0].canvas, 3), np.float32)
        for row, image in zip(pixels, rows, strict=True):
            row[: image.size[1], : image.size[0]] = image.pixels
        size = np.array([image.size for image in rows], np.int32)
        scale = np.array([image.scale[0] for image in rows], np.float32)
        with jax.default_matmul_precision("highest"):  # accelerators would otherwise round float32 to 8 or 10 bits
            feature_map, boxes, mask = self._propose(self.state, pixels, size, scale)
            return self._describe(self.state, feature_map, size, boxes, mask, scale)

    def _detect_group(self, group: list[tuple[int, PreparedImage]]) -> dict[int, Regions]:
        proposals = self.propose([prepared for _, prepared in group])
        proposals = jax.device_get(dataclasses.replace(proposals, deltas=None))  # the largest array, not needed here
        return {number: self._select(proposals, row, prepared) for row, (number, prepared) in enumerate(group)}

    def _select(self, proposals: Proposals, row: int, prepared: PreparedImage) -> Regions:
        """Return the regions of one image of a batch."""
        s, found, confidence = self.selection, proposals.region_boxes[row], proposals.confidence[row]
        mask = proposals.mask[row]
        if isinstance(self.settings, HuggingFaceSettings):
            overlaps = self.settings.region_overlaps
            kept = huggingface.select_regions(found, mask, confidence, overlaps, s.fewest, s.most)
        else:
            kept = select_regions(confidence[: int(mask.sum())], s.threshold, s.fewest, s.most)
        boxes = found[kept] / np.tile(prepared.scale, 2)
        classes, attributes = proposals.classes[row][kept], None
        class_ids, scores = _best_column(classes)
        named = ("",) * len(kept)
        if proposals.attributes is not None:
            attributes = proposals.attributes[row][kept]
            best = zip(*_best_column(attributes), strict=True)
            named = tuple(self.attribute_names[i] if score >= MIN_ATTRIBUTE_SCORE else "" for i, score in best)
        return Regions(
            boxes=np.minimum(boxes, np.tile(np.float32(prepared.original), 2)),  # without the padding of a thin image
            source=SOURCES[self.rules],
            labels=tuple(self.class_names[i] for i in class_ids),
            scores=tuple(map(float, scores)),
            attributes=named,
            features=proposals.features[row][kept],
            extractor=extractor_id(self.fingerprint),
            class_probabilities=classes,
            attribute_probabilities=attributes,
        )


class PreparedImage:
    """An image as the network sees it.

    `pixels` have `size` (width, height), which is `scale` (x, y) times the `original` size. `canvas`
    (height, width) is the padded shape that is compiled.
    """

    def __init__(self, image: UInt8[np.ndarray, "y x 3"], image_scale: tuple[int, int], rules: str = "caffe"):
        self.original = size = image.shape[1::-1]
        if rules == "caffe":
            factor = caffe_scale(size, image_scale)
            self.size, self.scale = caffe_size(size, factor), np.full(2, factor, np.float32)
            self.pixels = caffe_pixels(image, factor)
        else:
            self.size = huggingface.resized_size(size, image_scale)
            self.scale = (np.array(self.size) / size).astype(np.float32)
            self.pixels = huggingface.resized_pixels(image, self.size)
        step = -(-image_scale[1] // CANVASES)
        self.canvas = tuple(-(-side // step) * step for side in reversed(self.size))


def _best_column(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (column, probability) of the best column of each row, except column 0 ("none")."""
    best = 1 + probabilities[:, 1:].argmax(1)
    return best, np.take_along_axis(probabilities, best[:, None], 1)[:, 0]


# There are two programs: the second takes most of the time to compile and to run, and has one shape
# for all canvases.


def _propose(graphdef, cells: int, state, pixels, size, scale):
    """Return the feature map padded to cells x cells, the proposals and which are real."""
    network = nnx.merge(graphdef, state)
    feature_map = network.backbone(pixels, size)
    boxes, mask, _ = network.proposals(*network.propose_scores(feature_map, size), size, scale)
    padding = [(0, cells - side) for side in feature_map.shape[1:3]]
    return jnp.pad(feature_map, ((0, 0), *padding, (0, 0))), boxes, mask


def _describe(graphdef, state, feature_map, size, boxes, mask, scale) -> Proposals:
    """Return the proposals with features, classes and attributes."""
    network = nnx.merge(graphdef, state)
    features = network.region_features(feature_map, size, boxes, mask)
    return network.describe(boxes, mask, features, size, scale)


# --- Loading --------------------------------------------------------------------------------------


def load_detector(
    path: str | Path,
    settings: NetworkSettings | None = None,
    selection: Selection | None = None,
    *,
    lists: str | Path | None = None,
    batch_size: int = 1,
    dtype=jnp.float32,
) -> Detector:
    """Load a detector from a converted folder or from any source that `vlbert_jax.convert` knows.

    Args:
        path: folder, file, address (gs://, s3://), or name at Hugging Face.
        settings: options of the network, as for `Detector`.
        selection: options that decide which proposals become regions, as for `Detector`.
        lists: folder of objects_vocab.txt and attributes_vocab.txt, None = the folder of the
            weights.
        batch_size: images of one shape that are computed together.
        dtype: type of the convolutions; the heads are float32.

    Raises:
        FileNotFoundError: Nothing is at `path`, or `lists` lacks a file.
        ValueError: The source is not a detector, or its parts do not fit together.
    """
    path = str(locate_weights(str(path))) if is_address(path) else user_path(str(path))
    tensors, names = read_detector(path), find_lists(path, None if lists is None else user_path(str(lists)))
    try:
        return Detector(tensors, names, settings, selection, batch_size=batch_size, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _add_none(kind: str, none: str, names: Sequence[str] | None, number: int) -> tuple[str, ...]:
    """Return `number` names of a kind, "class" or "attribute", of which `none` is the first."""
    if not number:
        return ()
    if names is not None and len(names) != number - 1:
        raise ValueError(
            f"the list of {kind} names has {len(names)} lines, but the weights have {number - 1}; give the folder of "
            "the right lists"
        )
    return (none, *(names or (f"{kind} {i}" for i in range(1, number))))
