"""The detector's weights and lists of names.

They are read from every source, and written as a folder, safetensors or PyTorch.
"""

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
from vlbert_jax.files import atomic_write, is_address, read_lines
from vlbert_jax.model.structure import structure_of
from vlbert_jax.weights import detector_names, export
from vlbert_jax.weights.containers import find_weights, read_files
from vlbert_jax.weights.model_card import write_detector_card
from vlbert_jax.weights.orbax import read_checkpoint
from vlbert_jax.weights.read import flatten_tree, is_detector_folder
from vlbert_jax.weights.shipped import locate_weights

PUBLISHED = ("unc-nlp/frcnn-vg-finetuned",)  # detectors at the Hugging Face hub
LISTS = ("objects_vocab.txt", "attributes_vocab.txt")
LIST_FOLDERS = ("", "data/genome/1600-400-20")  # relative to the weights; the second is that of the original repository


def read_detector(path: str | Path) -> dict[str, np.ndarray]:
    """Read a detector's tensors from a file, a folder, an address or a name at Hugging Face.

    Returns:
        Tensors with the names and the order of `detector_names.to_milvlg`, float32.

    Raises:
        FileNotFoundError: Nothing is at `path`.
        ValueError: The source is not such a detector, is damaged, or would run code.
    """
    file = find_weights(str(locate_weights(path) if is_address(path) else path), PUBLISHED)
    try:
        if is_detector_folder(file):
            tensors = detector_names.parameters_to_milvlg(flatten_tree(read_checkpoint(file)))
            return {name: np.asarray(array, np.float32) for name, array in tensors.items()}
        raw, _ = read_files(file)
        if not detector_names.is_detector(raw):
            some = ", ".join(list(raw)[:4]) or "none"
            raise ValueError(f"not the bottom-up-attention detector: no layer proposes regions (its tensors: {some})")
        return detector_names.to_milvlg(raw, base_anchors())
    except ValueError as error:
        reason = str(error)
        raise ValueError(reason if str(file) in reason else f"{path}: {reason}") from error


def rules_of(tensors: Mapping[str, np.ndarray]) -> str:
    """Return the rules (`options.RULES`) that a detector's weights, as `read_detector` returns them, were made for."""
    return "huggingface" if detector_names.is_hugging_face(tensors) else "caffe"


def find_lists(
    path: str | Path, folder: str | Path | None = None
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Return the names of the classes and of the attributes, None for a list without a file.

    The files are those of `list_files`.

    A line holds synonyms, separated by commas; the first is the name. The lists have no entry for
    "none".
    """
    files = list_files(path, folder)
    names = []
    for name in LISTS:
        lines = read_lines(files[name]) if name in files else ()
        names.append(tuple(line.partition(",")[0].strip() for line in lines) or None)
    return names[0], names[1]


def list_files(path: str | Path, folder: str | Path | None = None) -> dict[str, Path]:
    """Return the files of the lists that belong to weights at `path`, by file name.

    The files are those in `folder`, or without it those next to the weights. Raises
    FileNotFoundError if `folder` is given and lacks one.
    """
    path = locate_weights(path)
    home = path if path.is_dir() else path.parent
    folders = [home / name for name in LIST_FOLDERS] if folder is None else [Path(folder)]
    found = {}
    for name in LISTS:
        files = [folder / name for folder in folders if (folder / name).is_file()]
        if not files and folder is not None:
            raise FileNotFoundError(f"there is no {name} in {folder}")
        if files:
            found[name] = files[0]
    return found


def detector_summary(path: str | Path, tensors: Mapping[str, np.ndarray], lists: Mapping[str, Path]) -> str:
    """Return a description of a detector to print.

    Raises ValueError if the tensors are not a complete detector.
    """
    try:
        sizes = detector_sizes(tensors)
        detector_names.match_detector(tensors, _parameter_shapes(sizes))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    lines = [f"{path}: bottom-up-attention detector, {sum(sizes.blocks) * 3 + 2} layers, "
             f"{sizes.num_classes - 1:,} classes, {max(sizes.num_attributes - 1, 0):,} attributes"]
    lines.append(f"{'matched':32}{len(tensors):>8,} tensors{sum(a.size for a in tensors.values()):>14,} values")
    lines += [f"{name:32}{lists.get(name, 'not found: numbers are used in place of names')}" for name in LISTS]
    return "\n".join(lines)


def detector_sizes(tensors: Mapping[str, np.ndarray]) -> Sizes:
    """Return the network's sizes from the shapes of its tensors.

    Raises ValueError if the tensors are not those of the detector.
    """
    stages = ["backbone.res2", "backbone.res3", "backbone.res4", "roi_heads.res5"]
    rpn = f"{detector_names.RPN}.conv"
    needed = ["backbone.stem.conv1", rpn, *(f"{stage}.0.conv1" for stage in stages)]
    if lacking := [name for name in needed if f"{name}.weight" not in tensors]:
        raise ValueError(f"not the bottom-up-attention detector with its ResNet: it lacks {', '.join(lacking)}")

    def outputs(name: str) -> int:
        return len(tensors[f"{name}.weight"])

    return Sizes(
        stem_width=outputs("backbone.stem.conv1"),
        widths=tuple(outputs(f"{stage}.0.conv1") for stage in stages),
        blocks=tuple(len({n.split(".")[2] for n in tensors if n.startswith(f"{stage}.")}) for stage in stages),
        rpn_width=outputs(rpn),
        num_anchors=outputs(detector_names.DELTAS) // 4,
        num_classes=outputs(detector_names.CLASSES),
        **_attribute_sizes(tensors),
    )


def _attribute_sizes(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    layers = (detector_names.EMBEDDING, detector_names.HIDDEN, detector_names.ATTRIBUTES)
    found = [f"{name}.weight" in tensors for name in layers]
    if not any(found):
        return dict(num_attributes=0)
    if not all(found):
        raise ValueError("the attribute layers (cls_embedding, fc_attr, attr_score) are incomplete")
    embedding, hidden, attributes = (tensors[f"{name}.weight"] for name in layers)
    return dict(num_attributes=len(attributes), embedding_size=embedding.shape[1], attribute_width=len(hidden))


def _parameter_shapes(sizes: Sizes) -> dict[tuple, tuple[int, ...]]:
    state = nnx.state(structure_of(lambda rngs: FasterRCNN(sizes, Settings(), rngs=rngs)))
    return {tuple(map(str, path)): variable.shape for path, variable in nnx.to_flat_state(state)}


def write_detector(tensors: Mapping[str, np.ndarray], lists: Mapping[str, Path], target: Path, form: str):
    """Write a detector atomically.

    Args:
        tensors: weights as `read_detector` returns them.
        lists: files of names as `list_files` returns them; only a folder holds them.
        target: file or folder to write.
        form: "orbax" for a folder, "safetensors" or "pt" for a file with MILVLG's names.
    """
    with atomic_write(target, replaces_folder=True) as path:
        if form == "pt":
            export.write_torch(path, tensors, wrap=False)
        elif form == "safetensors":
            export.write_safetensors(path, tensors)
        else:
            _write_folder(tensors, lists, path)
            write_detector_card(path, target.name, dataclasses.asdict(detector_sizes(tensors)))


def _write_folder(tensors: Mapping[str, np.ndarray], lists: Mapping[str, Path], path: Path):
    sizes = detector_sizes(tensors)
    nested: dict = {}
    for names, array in detector_names.match_detector(tensors, _parameter_shapes(sizes)).items():
        node = nested
        for name in names[:-1]:
            node = node.setdefault(name, {})
        node[names[-1]] = np.ascontiguousarray(array)
    export.write_orbax(path, nested, {}, dict(detector=dataclasses.asdict(sizes)))
    for name, file in lists.items():
        shutil.copyfile(file, path / name)
