"""Names of the detector's weights in the formats of Caffe, MILVLG, detectron2 and vlbert_jax.

MILVLG is the organization of the repository bottom-up-attention.pytorch.

Every source is converted to MILVLG's names, which follow Caffe's order: class 0 is "no object",
attribute 0 is "no attribute", and each anchor has two objectness scores. detectron2's conventions
(airsplay, Hugging Face's `frcnn`) differ: "no object" is the last class and has no box, "no
attribute" is the last attribute, and each anchor has one score, which goes through a sigmoid.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Shaped

from vlbert_jax.weights.entry import NORM_LEAVES, Entry

ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
RPN, PREDICTOR = "proposal_generator.rpn_head", "roi_heads.box_predictor"
OBJECTNESS, DELTAS = f"{RPN}.objectness_logits", f"{RPN}.anchor_deltas"
CLASSES, BOXES, EMBEDDING = f"{PREDICTOR}.cls_score", f"{PREDICTOR}.bbox_pred", f"{PREDICTOR}.cls_embed"
HIDDEN, ATTRIBUTES = f"{PREDICTOR}.attr_linear1", f"{PREDICTOR}.attr_linear2"
MODULES = {  # name in the vlbert_jax format: (MILVLG's name, layout of the kernel)
    "rpn": (f"{RPN}.conv", "conv"),
    "objectness": (OBJECTNESS, "conv"),
    "anchor_deltas": (DELTAS, "conv"),
    "classes": (CLASSES, "linear"),
    "boxes": (BOXES, "linear"),
    "class_embedding": (EMBEDDING, "same"),
    "attribute_hidden": (HIDDEN, "linear"),
    "attributes": (ATTRIBUTES, "linear"),
}
CAFFE = {
    "rpn_conv/3x3": f"{RPN}.conv",
    "rpn_cls_score": OBJECTNESS,
    "rpn_bbox_pred": DELTAS,
    "cls_score": CLASSES,
    "bbox_pred": BOXES,
    "cls_embedding": EMBEDDING,
    "fc_attr": HIDDEN,
    "attr_score": ATTRIBUTES,
}
DETECTRON = {"cls_embedding": EMBEDDING, "fc_attr": HIDDEN, "attr_score": ATTRIBUTES}
BLOCK = re.compile(r"(?:backbone/stages/(\d+)|c5)/blocks/(\d+)/(conv\d|shortcut)")
TORCHVISION = re.compile(r"layer(\d)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.([01]))\.(.*)")
DETECTRON_BLOCK = re.compile(r"(?:backbone|roi_heads)\.res(\d)\.(\d+)\.(?:conv(\d)|shortcut)\.(norm\.)?(.*)")
STEM = {"conv1.": "backbone.stem.conv1.", "bn1.": "backbone.stem.conv1.norm."}


def is_detector(names: Mapping[str, object]) -> bool:
    """Return whether tensors with these names, from any source, are a detector's."""
    return "rpn_cls_score[0]" in names or any(strip_wrappers(name) == f"{OBJECTNESS}.weight" for name in names)


def is_hugging_face(tensors: Mapping[str, np.ndarray]) -> bool:
    """Return whether tensors, as `to_milvlg` returns them, are of Hugging Face's `frcnn`.

    Of the sources, only its files have one score for each anchor (the other half is 0) and store anchors, which are
    centered on the corner of a cell. A conversion keeps both.
    """
    scores, anchors = tensors[f"{OBJECTNESS}.weight"], tensors[ANCHORS]
    return not scores[: len(scores) // 2].any() and bool((np.abs(anchors[:, :2] + anchors[:, 2:]) < 1).all())


def strip_wrappers(name: str) -> str:
    """Return a name without the prefixes of data parallelism and of a checkpoint."""
    return re.sub(r"^(model\.|module\.)+", "", name)


def resnet_to_milvlg(name: str) -> str:
    """Return MILVLG's name for torchvision's name; other names than the ResNet's are unchanged."""
    if found := TORCHVISION.fullmatch(name):
        stage, block, kind, number, shortcut, leaf = found.groups()
        part = "shortcut" if shortcut else f"conv{number}"
        norm = "norm." if kind == "bn" or shortcut == "1" else ""
        parent = "roi_heads" if stage == "4" else "backbone"
        return f"{parent}.res{int(stage) + 1}.{block}.{part}.{norm}{leaf}"
    return next((new + name.removeprefix(old) for old, new in STEM.items() if name.startswith(old)), name)


def milvlg_to_resnet(name: str) -> str | None:
    """Return torchvision's name for MILVLG's name, None if the tensor is not the ResNet's."""
    name = strip_wrappers(name)
    if found := DETECTRON_BLOCK.fullmatch(name):
        stage, block, number, norm, leaf = found.groups()
        kind = f"{'bn' if norm else 'conv'}{number}" if number else f"downsample.{1 if norm else 0}"
        return f"layer{int(stage) - 1}.{block}.{kind}.{leaf}"
    longest_first = sorted(STEM.items(), key=lambda names: -len(names[1]))
    return next((old + name.removeprefix(new) for old, new in longest_first if name.startswith(new)), None)


def to_milvlg(raw: Mapping[str, np.ndarray], anchors: Shaped[np.ndarray, "a 4"]) -> dict[str, np.ndarray]:
    """Convert a detector's tensors from any source to MILVLG's names and Caffe's order.

    Args:
        raw: tensors with the names of their source; Caffe's are `layer[blob]`.
        anchors: anchors of cell (0, 0), for a source that does not store them.

    Returns:
        float32 tensors by name.

    Raises:
        ValueError: The tensors are not those of such a detector.
    """
    tensors = {}
    for name, array in raw.items():
        layer, _, blob = name.removesuffix("]").partition("[")
        if layer in CAFFE and blob:
            tensors[f"{CAFFE[layer]}.{'weight' if blob == '0' else 'bias'}"] = _caffe_array(array, layer, blob)
        elif not blob:
            tensors[_detectron_to_milvlg(resnet_to_milvlg(strip_wrappers(name)))] = array
    tensors = {name: array for name, array in tensors.items() if not name.endswith(".num_batches_tracked")}
    needed = [f"{name}.weight" for name in (OBJECTNESS, DELTAS, CLASSES, BOXES)]
    if lacking := [name for name in needed if name not in tensors]:
        raise ValueError(f"not the bottom-up-attention detector: it lacks {', '.join(lacking)}")
    _to_caffe_order(tensors)
    tensors.setdefault(ANCHORS, anchors)
    return {name: np.asarray(array, np.float32) for name, array in tensors.items()}


def _caffe_array(array: np.ndarray, layer: str, blob: str) -> np.ndarray:
    """Return a blob in the shape of a bias, a convolution or a matrix.

    Blobs of old files always have four dimensions.
    """
    if blob == "1":
        return array.reshape(-1)
    convolution = layer.startswith("rpn")
    return array if convolution else array.reshape(int(np.prod(array.shape[:-1])), array.shape[-1])


def _detectron_to_milvlg(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    prefix, _, last = module.rpartition(".")
    return f"{DETECTRON[last]}.{leaf}" if prefix == PREDICTOR and last in DETECTRON else name


def _to_caffe_order(tensors: dict[str, np.ndarray]):
    """Convert tensors in detectron2's conventions to Caffe's in place."""
    anchors = len(tensors[f"{DELTAS}.weight"]) // 4
    if len(tensors[f"{OBJECTNESS}.weight"]) == anchors:  # sigmoid(x) is softmax(0, x)
        for leaf in ("weight", "bias"):
            scores = tensors[f"{OBJECTNESS}.{leaf}"]
            tensors[f"{OBJECTNESS}.{leaf}"] = np.concatenate([np.zeros_like(scores), scores])
    num_classes = len(tensors[f"{CLASSES}.weight"])
    if len(tensors[f"{BOXES}.weight"]) == 4 * (num_classes - 1):
        for leaf in ("weight", "bias"):
            boxes = tensors[f"{BOXES}.{leaf}"]
            tensors[f"{BOXES}.{leaf}"] = np.concatenate([np.zeros_like(boxes[:4]), boxes])
        last_to_first = (f"{CLASSES}.weight", f"{CLASSES}.bias", f"{EMBEDDING}.weight",
                         f"{ATTRIBUTES}.weight", f"{ATTRIBUTES}.bias")  # fmt: skip
        for name in last_to_first:
            if name in tensors:
                tensors[name] = np.roll(tensors[name], 1, axis=0)


def detector_entries(paths: list[tuple]) -> Iterator[Entry]:
    """Yield MILVLG's tensor for each parameter of a `FasterRCNN`, given the parameters' paths."""
    for path in paths:
        module, _, leaf = "/".join(path).rpartition("/")
        if path == ("anchors",):
            yield Entry(ANCHORS, path)
        elif module in MODULES:
            official, layout = MODULES[module]
            bias = leaf == "bias"
            yield Entry(f"{official}.{'bias' if bias else 'weight'}", path, "same" if bias else layout)
        else:
            official = _official_convolution(module)
            if leaf == "kernel":
                yield Entry(f"{official}.weight", path, "conv")
            else:
                yield Entry(f"{official}.norm.{NORM_LEAVES[leaf]}", path)


def _official_convolution(module: str) -> str:
    found = BLOCK.fullmatch(module)
    if not found:
        return "backbone.stem.conv1"
    stage, block, part = found.groups()
    parent = "roi_heads.res5" if stage is None else f"backbone.res{int(stage) + 2}"
    return f"{parent}.{block}.{part}"


def match_detector(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[tuple, tuple[int, ...]]
) -> dict[tuple, Shaped[np.ndarray, "..."]]:
    """Return the parameters of a `FasterRCNN` as views of MILVLG's tensors.

    Args:
        tensors: tensors as `to_milvlg` returns them.
        shapes: shape of each parameter by its path.

    Raises:
        ValueError: A tensor is missing, has another shape, or belongs to no parameter.
    """
    tensors = dict(tensors)
    parameters, lacking = {}, []
    for entry in detector_entries(list(shapes)):
        if entry.official not in tensors:
            lacking.append(entry.official)
            continue
        array = tensors.pop(entry.official)
        if array.ndim == len(shapes[entry.path]):
            parameters[entry.path] = entry.to_parameter(array)
        if entry.path not in parameters or parameters[entry.path].shape != shapes[entry.path]:
            raise ValueError(
                f"{entry.official} has shape {array.shape}, which does not fit the parameter of shape "
                f"{shapes[entry.path]}"
            )
    if lacking:
        more = f" and {len(lacking) - 6} more" if len(lacking) > 6 else ""
        raise ValueError(f"not a complete bottom-up-attention detector: it lacks {', '.join(lacking[:6])}{more}")
    if tensors:
        raise ValueError(f"the detector has no parameter for the tensors {', '.join(list(tensors)[:6])}")
    return parameters


def parameters_to_milvlg(parameters: Mapping[tuple, np.ndarray]) -> dict[str, np.ndarray]:
    """Return MILVLG's tensors of a `FasterRCNN` as views of its parameters."""
    entries = detector_entries(list(parameters))
    return {entry.official: entry.to_official(parameters[entry.path]) for entry in entries}
