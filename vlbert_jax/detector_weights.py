"""The detector's weights and lists: read from what people have, written as a folder of ours, safetensors or PyTorch."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax import nnx

from vlbert_jax import checkpoint, detector_names, export, weights
from vlbert_jax.faster_rcnn import FasterRCNN, Settings
from vlbert_jax.whole_files import written_whole

LISTS = ("objects_vocab.txt", "attributes_vocab.txt")
LIST_FOLDERS = ("", "data/genome/1600-400-20")  # the latter of the original repository


def read(path: str | Path) -> dict[str, np.ndarray]:
    """A detector's tensors with MILVLG's names and in Caffe's order, of a file, folder or hub name.

    Raises FileNotFoundError, or ValueError for what is no such detector, damaged or would run code.
    """
    file = weights.find(str(path))
    try:
        if weights.is_detector_folder(file):
            tensors = detector_names.from_ours(weights.flat(checkpoint.read_weights(file)))
            return {name: np.asarray(array, np.float32) for name, array in tensors.items()}
        raw, _ = weights.read_files(file)
        if not detector_names.is_detector(raw):
            some = ", ".join(list(raw)[:4]) or "none"
            raise ValueError(f"not the bottom-up-attention detector: its tensors ({some}, ...) propose no regions")
        return detector_names.canonical(raw)
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


def summary(path: str | Path, tensors: Mapping[str, np.ndarray], lists: Mapping[str, Path]) -> str:
    """What was read, for people. Raises ValueError where the tensors are not of a whole detector."""
    try:
        sizes = detector_names.sizes(tensors)
        detector_names.match(tensors, _shapes(sizes))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    lines = [f"{path}: bottom-up-attention detector, {sum(sizes.blocks) * 3 + 2} layers, "
             f"{sizes.num_classes - 1:,} classes, {max(sizes.num_attributes - 1, 0):,} attributes"]
    lines.append(f"{'matched':32}{len(tensors):>8,} tensors{sum(a.size for a in tensors.values()):>14,} numbers")
    lines += [f"{name:32}{lists.get(name, 'not there: its entries get numbers for names')}" for name in LISTS]
    return "\n".join(lines)


def _shapes(sizes) -> dict[tuple, tuple[int, ...]]:
    state = nnx.state(nnx.eval_shape(lambda: FasterRCNN(sizes, Settings(), rngs=nnx.Rngs(0))))
    return {tuple(map(str, path)): variable.shape for path, variable in nnx.to_flat_state(state)}


def write(tensors: Mapping[str, np.ndarray], lists: Mapping[str, Path], target: Path, form: str):
    """Writes a folder (orbax) with the lists in it, or a file with MILVLG's names (safetensors, pt), whole or not at
    all."""
    with written_whole(target) as path:
        if form == "pt":
            export.write_torch(path, tensors, wrap=False)
        elif form == "safetensors":
            export.write_safetensors(path, tensors)
        else:
            sizes = detector_names.sizes(tensors)
            nested: dict = {}
            for names, array in detector_names.match(tensors, _shapes(sizes)).items():
                node = nested
                for name in names[:-1]:
                    node = node.setdefault(name, {})
                node[names[-1]] = np.ascontiguousarray(array)
            export.write_orbax(path, nested, {}, dict(detector=dataclasses.asdict(sizes)))
            for name, file in lists.items():
                shutil.copyfile(file, path / name)
