"""Files and folders of tensors, read with the names in the source and without running code.

The format of a file is detected by its first bytes: safetensors, PyTorch, pickle or Caffe.
"""

from __future__ import annotations

import collections
import difflib
import io
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from vlbert_jax.files import json_object, read_json_object
from vlbert_jax.weights.caffe import read_caffe
from vlbert_jax.weights.hub import NAME, download_folder
from vlbert_jax.weights.safe_pickle import RECONSTRUCT_SCALAR, check_names, load_pickle, pickle_arrays
from vlbert_jax.weights.shipped import locate_weights, nearest_shipped, shipped_names

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # of a Hugging Face folder
TRAINER = "trainer:"  # prefix for names of tensors that a trainer stored next to the weights
# Where trainers keep the tensors of the model in a PyTorch file.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model")
FILE_SUFFIXES = (".safetensors", ".model", ".pt", ".pth", ".th", ".bin", ".pkl", ".caffemodel")
CONFIG_METADATA = "vlbert_jax.config"  # key of the config in the metadata of a safetensors file
INSTALL_TORCH = "pip install torch --index-url https://download.pytorch.org/whl/cpu"  # the build without CUDA
OLD_PICKLES = 5  # of PyTorch's format before 1.6: magic number, version, system, tensors, keys
MAX_HEADER = 100_000_000  # bytes of a safetensors header, by its specification


def find_weights(given: str, known: Sequence[str] | None = None) -> Path:
    """Return the file or folder at `given`: a path, a shipped model, or a name of the Hugging Face hub, downloaded.

    Args:
        given: What the user named.
        known: Names of the hub that fit, for the message of the error; None = the shipped models fit.

    Raises:
        FileNotFoundError: It is none of them.
    """
    path = locate_weights(given)
    return path if path.exists() else _download(given, known)


def read_files(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """Read a file, or a Hugging Face folder.

    Returns:
        Tensors by their names in the source, and the format: "safetensors", "pytorch", "pickle" or
        "caffe".
    """
    raw, container = {}, ""
    files, listed = _weight_files(path) if path.is_dir() else ([path], ())
    for file in files:
        part, container = _read_file(file)
        raw |= part
    if lacking := [name for name in listed if name not in raw]:
        raise ValueError(f"{path}: the index lists tensors that the files do not contain: {', '.join(lacking[:8])}")
    return raw, container


def stored_in_file(path: Path) -> dict[str, Any] | None:
    """Return the config in the metadata of a safetensors file that `convert` wrote, else None.

    Args:
        path: the file, or a folder with model.safetensors.

    Raises:
        ValueError: The metadata is not a config.
    """
    path = path / WEIGHT_FILES[0] if path.is_dir() else path
    if not path.exists():
        return None
    with safe_open(path, "np") as file:
        text = (file.metadata() or {}).get(CONFIG_METADATA)
    if text is None:
        return None
    place = f"{path}: its metadata {CONFIG_METADATA!r}"
    config = json_object(text, place, "write or download the file again", "model")
    if not isinstance(config["model"], dict):
        raise ValueError(f"{path}: its metadata {CONFIG_METADATA!r} is not a config")
    return config


def _download(name: str, known: Sequence[str] | None) -> Path:
    """Return the folder to which a model of the Hugging Face hub is downloaded."""
    if known is None:
        near, fitting = nearest_shipped(name), f"the models that ship with vlbert_jax are {', '.join(shipped_names())}"
    else:
        near = "".join(difflib.get_close_matches(name, known, n=1, cutoff=0.7))
        fitting = f"the Hugging Face hub has {' and '.join(known) or 'none that is known to fit'}"
    if nearest := near or _nearest_path(name):
        raise FileNotFoundError(f"there are no weights at {name}; did you mean {nearest}? {fitting}")
    if not NAME.fullmatch(name) or Path(name).suffix in FILE_SUFFIXES:
        raise FileNotFoundError(f"there are no weights at {name}; check the path, or name a model: {fitting}")
    try:
        return download_folder(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"there are no weights at {name}, and as a name of the Hugging Face hub {error}; give a file or folder, or "
            f"name a model: {fitting}"
        ) from error


def _nearest_path(name: str) -> str:
    """Return the existing path of which `name` is a probable misspelling of the last part, "" if there is none."""
    path = Path(name)
    try:
        names = [file.name for file in path.parent.iterdir() if file.is_dir() or file.suffix in FILE_SUFFIXES]
    except OSError:
        return ""
    nearest = difflib.get_close_matches(path.name, names, n=1, cutoff=0.75)
    return str(path.with_name(nearest[0])) if nearest else ""


def _weight_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the weight files of a Hugging Face folder and the tensors that their index lists."""
    for name in WEIGHT_FILES:
        if (folder / name).exists():
            return [folder / name], []
        index = folder / f"{name}.index.json"
        if index.exists():
            file_of = read_json_object(index, "download it again", "weight_map")["weight_map"]
            # Only the names count, so that an index cannot point outside the folder.
            parts = [folder / Path(part).name for part in sorted(set(file_of.values()))]
            if absent := [part.name for part in parts if not part.exists()]:
                raise FileNotFoundError(f"{index} lists {', '.join(absent)}, which the folder does not contain")
            return parts, list(file_of)
    raise FileNotFoundError(
        f"{folder} contains neither a vlbert_jax checkpoint nor {' or '.join(WEIGHT_FILES)}{_remedy(folder)}"
    )


def _remedy(folder: Path) -> str:
    """Return what a user may mean by a folder without weights: a run before its first checkpoint, or a folder in it."""
    if (folder / "versions.json").exists():
        return ": the run has not saved a checkpoint yet; continue it"
    runs = sorted(path.parent for path in folder.glob("*/checkpoints") if any(path.iterdir()))
    return f"; models are in {', '.join(map(str, runs[:3]))}" if runs else "; give the folder of a model"


def _read_file(path: Path) -> tuple[dict[str, np.ndarray], str]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
    if len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < MAX_HEADER:
        try:
            return load_file(path), "safetensors"
        except SafetensorError as error:
            raise ValueError(f"{path} is a damaged safetensors file of {size:,} bytes: {error}") from error
    if start[:2] == b"PK":
        return _read_torch(path), "pytorch"
    if start[:1] == b"\x80":
        tree = load_pickle(path)
        # A PyTorch file of the old format begins with a pickle of its magic number.
        return (_read_torch(path), "pytorch") if isinstance(tree, int) else (pickle_arrays(tree), "pickle")
    return read_caffe(path), "caffe"


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a PyTorch file.

    Tensors outside the dict in which a trainer keeps those of the model (`WRAPPERS`) get the prefix `TRAINER`.
    """
    loaded = _load_torch(path)
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a dict of tensors")
    states, others = loaded, {}
    while wrapper := next((name for name in WRAPPERS if isinstance(states.get(name), Mapping)), None):
        others |= {name: value for name, value in states.items() if name != wrapper}
        states = states[wrapper]
    tensors = {}
    for prefix, tree in (("", states), (TRAINER, others)):
        for name, value in _tensors_in(tree):
            tensors[prefix + name] = _as_numpy(value)
    return tensors


def _load_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path} is a PyTorch file, but PyTorch is not installed; run {INSTALL_TORCH}"
        ) from error
    # Types of the values that trainers store next to the weights; they hold no code.
    harmless = [(RECONSTRUCT_SCALAR, "numpy.core.multiarray.scalar"), RECONSTRUCT_SCALAR, np.dtype]
    harmless += [np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType, collections.defaultdict, dict]
    try:
        # Given a path, torch.load would choose the format by the suffix, so it is given an open
        # file.
        with torch.serialization.safe_globals(harmless), path.open("rb") as file:
            _check_pickles(file)
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and storage raise errors of different classes
        asked = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        if asked:
            raise ValueError(f"{path} would run code ({asked.group(1)}) when read, which is refused") from error
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is not a PyTorch checkpoint, or it is cut short: {reason}") from error


def _check_pickles(file: io.BufferedIOBase) -> None:
    """Check the pickles of a PyTorch file by `check_names`, and return to its start."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    with archive.open(name) as inside:
                        check_names(inside)
    else:
        file.seek(0)
        for _ in range(OLD_PICKLES):
            check_names(file)
    file.seek(0)


def _tensors_in(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the tensors in nested dicts with their dotted names."""
    if hasattr(tree, "numpy"):
        yield prefix.removesuffix("."), tree
    elif isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _tensors_in(value, f"{prefix}{name}.")


def _as_numpy(tensor) -> np.ndarray:
    """Return a PyTorch tensor as an array, floating-point types as float32."""
    other_float = tensor.dtype.is_floating_point and tensor.dtype.itemsize != 4
    return (tensor.detach().float() if other_float else tensor.detach()).numpy()
