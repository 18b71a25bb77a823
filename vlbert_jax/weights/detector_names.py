"""Names of the detector's weights: Caffe, bottom-up-attention.pytorch (MILVLG), detectron2 and Hugging Face, and ours.

Everything is brought to MILVLG's names, which follow Caffe's order: class 0 is no object, attribute 0 none, and there
are two objectness scores an anchor. Of detectron2's conventions (airsplay, Hugging Face's `frcnn`) the class without an
object comes last and has no box, the attribute that is none comes last, and one score an anchor goes through a sigmoid.
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
MODULES = {  # ours: (MILVLG's, layout of its kernel)
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
    """Whether tensors with these names, plain or as `caffe.read` gives them, are a detector's."""
    return "rpn_cls_score[0]" in names or any(plain_name(name) == f"{OBJECTNESS}.weight" for name in names)


def plain_name(name: str) -> str:
    """A name without the wrappers of data parallelism and of a checkpoint."""
    return re.sub(r"^(model\.|module\.)+", "", name)


def from_resnet(name: str) -> str:
    """torchvision's name of a tensor of the detector's ResNet, as MILVLG's."""
    if found := TORCHVISION.fullmatch(name):
        stage, block, kind, number, shortcut, leaf = found.groups()
        part = "shortcut" if shortcut else f"conv{number}"
        norm = "norm." if kind == "bn" or shortcut == "1" else ""
        room = "roi_heads" if stage == "4" else "backbone"
        return f"{room}.res{int(stage) + 1}.{block}.{part}.{norm}{leaf}"
    return next((new + name.removeprefix(old) for old, new in STEM.items() if name.startswith(old)), name)


def to_resnet(name: str) -> str | None:
    """The reverse; None for what is not of the ResNet."""
    name = plain_name(name)
    if found := DETECTRON_BLOCK.fullmatch(name):
        stage, block, number, norm, leaf = found.groups()
        kind = f"{'bn' if norm else 'conv'}{number}" if number else f"downsample.{1 if norm else 0}"
        return f"layer{int(stage) - 1}.{block}.{kind}.{leaf}"
    longest_first = sorted(STEM.items(), key=lambda names: -len(names[1]))
    return next((old + name.removeprefix(new) for old, new in longest_first if name.startswith(new)), None)


def canonical(raw: Mapping[str, np.ndarray], anchors: Shaped[np.ndarray, "a 4"]) -> dict[str, np.ndarray]:
    """A detector's tensors, of any of the sources, with MILVLG's names and in Caffe's order, float32.

    `anchors` are those of a source that stores none.
    Raises ValueError where they are not of such a detector.
    """
    tensors = {}
    for name, array in raw.items():
        layer, _, blob = name.removesuffix("]").partition("[")
        if layer in CAFFE and blob:
            # Blobs of old files have four sides, the first of them 1.
            convolution = layer.startswith("rpn")
            shape = array.shape if convolution else (int(np.prod(array.shape[:-1])), array.shape[-1])
            array = array.reshape(-1) if blob == "1" else array.reshape(shape)
            tensors[f"{CAFFE[layer]}.{'weight' if blob == '0' else 'bias'}"] = array
        elif not blob:
            tensors[_milvlg(from_resnet(plain_name(name)))] = array
    tensors = {name: array for name, array in tensors.items() if not name.endswith(".num_batches_tracked")}
    lacking = [f"{name}.weight" for name in (OBJECTNESS, DELTAS, CLASSES, BOXES) if f"{name}.weight" not in tensors]
    if lacking:
        raise ValueError(f"lacks {', '.join(lacking)}: not the bottom-up-attention detector")
    _to_caffe_order(tensors)
    tensors.setdefault(ANCHORS, anchors)
    return {name: np.asarray(array, np.float32) for name, array in tensors.items()}


def _milvlg(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    prefix, _, last = module.rpartition(".")
    return f"{DETECTRON[last]}.{leaf}" if prefix == PREDICTOR and last in DETECTRON else name


def _to_caffe_order(tensors: dict[str, np.ndarray]):
    """Changes detectron2's conventions, where these are, in place."""
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
        for name in (f"{CLASSES}.weight", f"{CLASSES}.bias", f"{EMBEDDING}.weight"):
            if name in tensors:
                tensors[name] = np.roll(tensors[name], 1, axis=0)
        for name in (f"{ATTRIBUTES}.weight", f"{ATTRIBUTES}.bias"):
            if name in tensors:
                tensors[name] = np.roll(tensors[name], 1, axis=0)


def detector_table(paths: list[tuple]) -> Iterator[Entry]:
    """MILVLG's tensor for every array of a `FasterRCNN`."""
    for path in paths:
        module, _, leaf = "/".join(path).rpartition("/")
        if path == ("anchors",):
            yield Entry(ANCHORS, path)
        elif module in MODULES:
            official, layout = MODULES[module]
            bias = leaf == "bias"
            yield Entry(f"{official}.{'bias' if bias else 'weight'}", path, "same" if bias else layout)
        else:
            official = "backbone.stem.conv1"
            if found := BLOCK.fullmatch(module):
                stage, block, part = found.groups()
                room = "roi_heads.res5" if stage is None else f"backbone.res{int(stage) + 2}"
                official = f"{room}.{block}.{part}"
            if leaf == "kernel":
                yield Entry(f"{official}.weight", path, "conv")
            else:
                yield Entry(f"{official}.norm.{NORM_LEAVES[leaf]}", path)


def match_detector(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[tuple, tuple[int, ...]]
) -> dict[tuple, Shaped[np.ndarray, "..."]]:
    """Our arrays, as views of the tensors. Raises ValueError for what is lacking, of another shape or left over."""
    tensors = dict(tensors)
    ours, lacking = {}, []
    for entry in detector_table(list(shapes)):
        if entry.official not in tensors:
            lacking.append(entry.official)
            continue
        array = tensors.pop(entry.official)
        if array.ndim == len(shapes[entry.path]):
            ours[entry.path] = entry.to_ours(array)
        if entry.path not in ours or ours[entry.path].shape != shapes[entry.path]:
            raise ValueError(f"{entry.official} has shape {array.shape}, which does not fit {shapes[entry.path]} here")
    if lacking:
        more = f" and {len(lacking) - 6} more" if len(lacking) > 6 else ""
        raise ValueError(f"lacks {', '.join(lacking[:6])}{more}: not a whole bottom-up-attention detector")
    if tensors:
        raise ValueError(f"has {', '.join(list(tensors)[:6])}, for which the detector has no place")
    return ours


def detector_to_official(ours: Mapping[tuple, np.ndarray]) -> dict[str, np.ndarray]:
    """MILVLG's tensors of a model of ours, as views."""
    return {entry.official: entry.to_official(ours[entry.path]) for entry in detector_table(list(ours))}
