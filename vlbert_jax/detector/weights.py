"""The detector's weights and lists: read from what people have, written as a folder of ours, safetensors or PyTorch."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax import nnx

from vlbert_jax.detector.network import FasterRCNN, Sizes
from vlbert_jax.detector.options import Settings
from vlbert_jax.detector.proposals import base_anchors
from vlbert_jax.files import atomic_write
from vlbert_jax.weights import detector_names, export
from vlbert_jax.weights.orbax import read_checkpoint
from vlbert_jax.weights.read import find_weights, flatten_tree, is_detector_folder, read_files

LISTS = ("objects_vocab.txt", "attributes_vocab.txt")
LIST_FOLDERS = ("", "data/genome/1600-400-20")  # the latter of the original repository


def read_detector(path: str | Path) -> dict[str, np.ndarray]:
    """A detector's tensors with MILVLG's names and in Caffe's order, of a file, folder or hub name.

    Raises FileNotFoundError, or ValueError for what is no such detector, damaged or would run code.
    """
    file = find_weights(str(path))
    try:
        if is_detector_folder(file):
            tensors = detector_names.detector_to_official(flatten_tree(read_checkpoint(file)))
            return {name: np.asarray(array, np.float32) for name, array in tensors.items()}
        raw, _ = read_files(file)
        if not detector_names.is_detector(raw):
            some = ", ".join(list(raw)[:4]) or "none"
            raise ValueError(f"not the bottom-up-attention detector: its tensors ({some}, ...) propose no regions")
        return detector_names.canonical(raw, base_anchors())
    except ValueError as error:
        told = str(error)
        raise ValueError(told if str(file) in told else f"{path}: {told}") from error


def find_lists(
    path: str | Path, folder: str | Path | None = None
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """The names of classes and attributes, without those for none, from the files of `list_files`; None without one.

    A line is a name with its synonyms, between commas; the first counts.
    """
    files = list_files(path, folder)
    names = []
    for name in LISTS:
        lines = files[name].read_text(encoding="utf-8").splitlines() if name in files else ()
        names.append(tuple(line.partition(",")[0].strip() for line in lines) or None)
    return names[0], names[1]


def list_files(path: str | Path, folder: str | Path | None = None) -> dict[str, Path]:
    """The lists that belong to weights at `path`, by name: those in `folder`, else those beside the weights.

    Raises FileNotFoundError if `folder` is given and lacks one.
    """
    path = Path(path).expanduser()
    beside = path if path.is_dir() else path.parent
    folders = [beside / name for name in LIST_FOLDERS] if folder is None else [Path(folder).expanduser()]
    found = {}
    for name in LISTS:
        files = [folder / name for folder in folders if (folder / name).is_file()]
        if not files and folder is not None:
            raise FileNotFoundError(f"no {name} in {folder}")
        if files:
            found[name] = files[0]
    return found


def detector_summary(path: str | Path, tensors: Mapping[str, np.ndarray], lists: Mapping[str, Path]) -> str:
    """What was read, for people. Raises ValueError where the tensors are not of a whole detector."""
    try:
        sizes = detector_sizes(tensors)
        detector_names.match_detector(tensors, _shapes(sizes))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    lines = [f"{path}: bottom-up-attention detector, {sum(sizes.blocks) * 3 + 2} layers, "
             f"{sizes.num_classes - 1:,} classes, {max(sizes.num_attributes - 1, 0):,} attributes"]
    lines.append(f"{'matched':32}{len(tensors):>8,} tensors{sum(a.size for a in tensors.values()):>14,} numbers")
    lines += [f"{name:32}{lists.get(name, 'not there: its entries get numbers for names')}" for name in LISTS]
    return "\n".join(lines)


def detector_sizes(tensors: Mapping[str, np.ndarray]) -> Sizes:
    """The network's sizes, read off its tensors. Raises ValueError where they are not of such a network."""
    stages = ["backbone.res2", "backbone.res3", "backbone.res4", "roi_heads.res5"]
    blocks = [len({n.split(".")[2] for n in tensors if n.startswith(f"{stage}.")}) for stage in stages]
    wanted = ["backbone.stem.conv1", f"{detector_names.RPN}.conv", *(f"{stage}.0.conv1" for stage in stages)]
    if lacking := [name for name in wanted if f"{name}.weight" not in tensors]:
        raise ValueError(f"lacks {', '.join(lacking)}: not the bottom-up-attention detector with its ResNet")
    rows = {name: len(tensors[f"{name}.weight"]) for name in wanted}
    found = dict(
        stem_width=rows[wanted[0]],
        widths=tuple(rows[f"{stage}.0.conv1"] for stage in stages),
        blocks=tuple(blocks),
        rpn_width=rows[f"{detector_names.RPN}.conv"],
        num_anchors=len(tensors[f"{detector_names.DELTAS}.weight"]) // 4,
        num_classes=len(tensors[f"{detector_names.CLASSES}.weight"]),
    )
    layers = (detector_names.EMBEDDING, detector_names.HIDDEN, detector_names.ATTRIBUTES)
    attributes = [f"{name}.weight" in tensors for name in layers]
    if not any(attributes):
        return Sizes(**found, num_attributes=0)
    if not all(attributes):
        raise ValueError("has a part of the attribute layers only (cls_embedding, fc_attr, attr_score)")
    return Sizes(
        **found,
        num_attributes=len(tensors[f"{detector_names.ATTRIBUTES}.weight"]),
        embedding_size=tensors[f"{detector_names.EMBEDDING}.weight"].shape[1],
        attribute_width=len(tensors[f"{detector_names.HIDDEN}.weight"]),
    )


def _shapes(sizes) -> dict[tuple, tuple[int, ...]]:
    state = nnx.state(nnx.eval_shape(lambda: FasterRCNN(sizes, Settings(), rngs=nnx.Rngs(0))))
    return {tuple(map(str, path)): variable.shape for path, variable in nnx.to_flat_state(state)}


def write_detector(tensors: Mapping[str, np.ndarray], lists: Mapping[str, Path], target: Path, form: str):
    """Writes a folder (orbax) with the lists in it, or a file with MILVLG's names (safetensors, pt), whole or not at
    all."""
    with atomic_write(target) as path:
        if form == "pt":
            export.write_torch(path, tensors, wrap=False)
        elif form == "safetensors":
            export.write_safetensors(path, tensors)
        else:
            sizes = detector_sizes(tensors)
            nested: dict = {}
            for names, array in detector_names.match_detector(tensors, _shapes(sizes)).items():
                node = nested
                for name in names[:-1]:
                    node = node.setdefault(name, {})
                node[names[-1]] = np.ascontiguousarray(array)
            export.write_orbax(path, nested, {}, dict(detector=dataclasses.asdict(sizes)))
            for name, file in lists.items():
                shutil.copyfile(file, path / name)
