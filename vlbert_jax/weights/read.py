"""Reading weights: what kind a file is, told by its content, and its tensors, without running code from it.

Everything read comes out with the official VL-BERT names (names.py), half precision widened to float32.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from vlbert_jax.tasks import PRETRAINING, task_of_names
from vlbert_jax.weights import detector_names, vlbert_names
from vlbert_jax.weights.bert_names import bert_to_official
from vlbert_jax.weights.caffe import read_caffe
from vlbert_jax.weights.orbax import newest_step, read_checkpoint
from vlbert_jax.weights.resnet_names import resnet_to_official
from vlbert_jax.weights.safe_pickle import load_pickle, pickle_arrays

OTHER_FLOATS = (np.float16, np.float64, ml_dtypes.bfloat16)  # what becomes float32
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
TRAINER = "trainer:"  # goes before names of tensors that a trainer saved beside the weights
FILE_SUFFIXES = (".safetensors", ".model", ".pt", ".pth", ".bin", ".pkl", ".caffemodel")
TIED = (f"{vlbert_names.C5_AGAIN}.", "vlbert.mlm_head.predictions.decoder.")
MOST_HEADER = 100_000_000  # bytes of a safetensors header, by its specification
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclasses.dataclass
class Weights:
    """Weights of one source, with official names."""

    path: str
    kind: str  # bert | vlbert | resnet
    container: str  # of the source: pytorch | safetensors | caffe | pickle | orbax
    tensors: dict[str, np.ndarray]
    dropped: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)  # reason -> name -> size
    counters: dict[str, int] = dataclasses.field(default_factory=dict)  # of batch norm
    segments: int = 2  # of a BERT
    config: dict[str, Any] | None = None  # of our checkpoints, as nested dicts
    new: tuple[str, ...] = ()  # what a conversion drew, for want of it in its source
    num_heads: int | None = None  # where the source says
    task: str = PRETRAINING

    @property
    def description(self) -> str:
        kind = {"bert": "BERT", "resnet": "ResNet", "vlbert": f"VL-BERT, {self.task}"}[self.kind]
        return f"{kind} in {self.container}"


def read_weights(path: str | Path) -> Weights:
    """Weights of a file, folder or hub name; the kind is told by content.

    Raises FileNotFoundError, or ValueError for a file that is no weights, would run code, is cut short, is of none of
    the kinds, or has a decoder of its own.
    """
    try:
        return _read(str(path))
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # each library has errors of its own for a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if str(path) in reason:
            raise ValueError(reason) from error
        raise ValueError(f"{path} cannot be read: {type(error).__name__}: {reason[:200]}") from error


def find_weights(given: str) -> Path:
    """The file or folder, downloaded where `given` is a name of the hub. Raises FileNotFoundError if it is neither."""
    path = Path(given).expanduser()
    return path if path.exists() else _from_hub(given)


def _read(given: str) -> Weights:
    path = find_weights(given)
    if is_detector_folder(path):
        return _recognise(given, detector_names.parameters_to_milvlg(flatten_tree(read_checkpoint(path))), "orbax")
    if path.is_dir() and ((path / "state").exists() or newest_step(path) is not None):
        config = _read_config(path.absolute())
        encoder = config["model"]["encoder"]
        raw = vlbert_names.to_official(flatten_tree(read_checkpoint(path)), encoder["vocab_size"])
        raw |= {name: np.asarray(count) for name, count in config.get("batch_counters", {}).items()}
        new = tuple(config.get("newly_initialised", ()))
        weights = _recognise(given, raw, "orbax")
        segments = config.get("bert_segments", 2)
        return dataclasses.replace(weights, config=config, num_heads=encoder["num_heads"], new=new, segments=segments)
    raw, container = read_files(path)
    weights = _recognise(given, raw, container)
    beside = (path if path.is_dir() else path.parent) / "config.json"
    if weights.kind == "bert" and beside.exists():
        weights.num_heads = _check_bert_config(beside, weights.tensors)
    return weights


def is_detector_folder(path: Path) -> bool:
    """Whether a folder is a detector that `convert` wrote."""
    config = path / "config.json"
    return (path / "state").exists() and config.exists() and "detector" in json.loads(config.read_text())


def read_files(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """The tensors of a file, or of a folder of Hugging Face's, with their own names, and what kind of file it is."""
    raw, container = {}, ""
    files, listed = _files_of(path) if path.is_dir() else ([path], ())
    for file in files:
        part, container = _read_file(file)
        raw |= part
    if lacking := [name for name in listed if name not in raw]:
        raise ValueError(f"{path}: its index lists {', '.join(lacking[:8])}, which the parts do not hold")
    return raw, container


def _check_bert_config(file: Path, tensors: Mapping[str, np.ndarray]) -> int | None:
    """The number of heads that a Hugging Face config names. Raises ValueError where it is of another model."""
    config = json.loads(file.read_text())
    words = tensors[vlbert_names.WORDS].shape
    found = dict(
        model_type="bert",
        hidden_act="gelu",
        position_embedding_type="absolute",
        vocab_size=words[0],
        hidden_size=words[1],
        num_hidden_layers=sum(name.endswith("intermediate.dense.weight") for name in tensors),
    )
    for field, ours in found.items():
        if config.get(field, ours) != ours:
            raise ValueError(f"{file} says {field} {config[field]}; the weights beside it, read as BERT's, have {ours}")
    return config.get("num_attention_heads")


def _from_hub(name: str) -> Path:
    """The folder that a name at Hugging Face is downloaded to. Raises FileNotFoundError, offline too."""
    if not HUB_NAME.fullmatch(name) or Path(name).suffix in FILE_SUFFIXES:
        raise FileNotFoundError(f"no weights at {name}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        patterns = ["config.json", "model.safetensors*", "model-*.safetensors"]
        folder = Path(snapshot_download(name, allow_patterns=patterns))
        if not list(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=["config.json", "pytorch_model*"]))
        return folder
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise FileNotFoundError(
            f"no weights at {name}, and as a Hugging Face name it could not be downloaded "
            f"({type(error).__name__}): give a file or folder"
        ) from error


def _files_of(folder: Path) -> tuple[list[Path], list[str]]:
    """The weight files of a Hugging Face folder, one or those its index lists, and the tensors the index names."""
    for name in WEIGHT_FILES:
        if (folder / name).exists():
            return [folder / name], []
        index = folder / f"{name}.index.json"
        if index.exists():
            where = json.loads(index.read_text())["weight_map"]
            parts = sorted(set(where.values()))
            absent = [part for part in parts if not (folder / Path(part).name).exists()]
            if absent:
                raise FileNotFoundError(f"{index} lists {', '.join(absent)}, absent from the folder")
            return [folder / Path(part).name for part in parts], list(where)  # never out of the folder
    raise FileNotFoundError(f"{folder} holds no checkpoint of ours and none of {', '.join(WEIGHT_FILES)}")


def _read_file(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """Tensors with the names in the file, and what kind of file it is, told by its first bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
    if len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < MOST_HEADER:
        try:
            return load_file(path), "safetensors"
        except SafetensorError as error:
            raise ValueError(f"{path} is a damaged safetensors file of {size:,} bytes: {error}") from error
    if start[:2] == b"PK":
        return _read_torch(path), "pytorch"
    if start[:1] == b"\x80":
        tree = load_pickle(path)  # of an old PyTorch file, a number that says so
        return (_read_torch(path), "pytorch") if isinstance(tree, int) else (pickle_arrays(tree), "pickle")
    return read_caffe(path), "caffe"


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ValueError(f"{path} is a PyTorch file: pip install 'vlbert_jax[convert]' to read it") from error
    # Numbers that trainers keep beside the weights; they hold no code.
    harmless = [(np._core.multiarray.scalar, "numpy.core.multiarray.scalar"), np._core.multiarray.scalar, np.dtype]
    harmless += [np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType, collections.defaultdict, dict]
    try:
        with torch.serialization.safe_globals(harmless), path.open("rb") as file:  # by name, torch would go by suffix
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip, storage: each module raises its own kinds
        asked = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        if asked:
            raise ValueError(f"{path} would run code ({asked.group(1)}) when read, which is refused") from error
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is no PyTorch checkpoint, or is cut short: {reason}") from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a dict of tensors")
    states = loaded.get("state_dict", loaded)
    others = {} if states is loaded else {name: value for name, value in loaded.items() if name != "state_dict"}
    tensors = {}
    for prefix, tree in (("", states), (TRAINER, others)):
        for name, value in _tensors_in(tree):
            tensors[prefix + name] = _as_numpy(value)
    return tensors


def _tensors_in(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if hasattr(tree, "numpy"):
        yield prefix.removesuffix("."), tree
    elif isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _tensors_in(value, f"{prefix}{name}.")


def _as_numpy(tensor) -> np.ndarray:
    half = tensor.dtype.is_floating_point and tensor.dtype.itemsize != 4
    return (tensor.detach().float() if half else tensor.detach()).numpy()


def _read_config(path: Path) -> dict[str, Any]:
    """The config beside a checkpoint of ours: of a converted folder, a workdir, or one step in it."""
    for file in (path / "config.json", path.parent.parent / "config.json"):
        if file.exists():
            config = json.loads(file.read_text())
            if "model" in config:
                return config
    raise FileNotFoundError(f"no config.json beside the checkpoint in {path}: it tells the sizes")


def flatten_tree(tree: Mapping, prefix: tuple = ()) -> dict[tuple, np.ndarray]:
    """Paths to arrays, of the nested dicts under "params" and "constants"."""
    if not prefix:
        return {path[1:]: a for name in tree for path, a in flatten_tree(tree[name], (name,)).items()}
    arrays = {}
    for name, value in tree.items():
        path = (*prefix, str(name))
        arrays |= flatten_tree(value, path) if isinstance(value, Mapping) else {path: np.asarray(value)}
    return arrays


def _recognise(path: str, raw: Mapping[str, np.ndarray], container: str) -> Weights:
    plain = {vlbert_names.plain_name(name): name for name in raw}
    if any(name.startswith(("vlbert.", "image_feature_extractor.")) for name in plain):
        kind, rename = "vlbert", str
    elif any(name.removeprefix("bert.") == "embeddings.word_embeddings.weight" for name in plain):
        kind, rename = "bert", bert_to_official
    elif "layer1.0.conv1.weight" in plain:
        kind, rename = "resnet", resnet_to_official
    elif detector_names.is_detector(raw):
        kind, rename = "resnet", lambda name: resnet_to_official(detector_names.milvlg_to_resnet(name) or "")
    else:
        raise ValueError(
            f"{path} holds no weights of BERT, VL-BERT or ResNet; its tensors: {', '.join(list(raw)[:4]) or 'none'}"
        )
    weights = Weights(path, kind, container, {})
    for name, original in plain.items():
        official, array = rename(name), np.asarray(raw[original])
        reason = ""
        if name.startswith(TRAINER):
            reason = "optimizer state"
        elif kind == "resnet" and (official == f"{vlbert_names.BACKBONE_NAME}." or "[" in name):
            reason = "detector's own layer"
        elif official.endswith(".num_batches_tracked"):
            reason = "batch counter"
            weights.counters[official] = int(array.item())
        if reason:
            weights.dropped.setdefault(reason, {})[original] = array.size
        else:
            weights.tensors[official] = array.astype(np.float32) if array.dtype in OTHER_FLOATS else array
    _drop_duplicates(weights)
    if kind == "bert":
        weights.segments = len(weights.tensors.get(vlbert_names.SEGMENTS, ()))
    weights.task = task_of_names(weights.tensors)
    return weights


def _drop_duplicates(weights: Weights):
    """What is one tensor officially: the decoder of masked words is the embedding table, C5 has two names.

    Raises ValueError where they differ: ours has one place for both.
    """
    for name in [name for name in weights.tensors if name.startswith(TIED)]:
        if name.startswith(vlbert_names.C5_AGAIN):
            twin = name.replace(vlbert_names.C5_AGAIN, vlbert_names.C5_NAME)
        else:
            twin = vlbert_names.WORDS if name.endswith("weight") else vlbert_names.MLM_BIAS
        copy = weights.tensors.pop(name)
        original = weights.tensors.setdefault(twin, copy)
        if copy.shape != original.shape or not np.array_equal(copy, original, equal_nan=True):
            raise ValueError(
                f"{weights.path}: {name} differs from {twin}; weights that are not tied have no place in VL-BERT"
            )
        if copy is not original:
            weights.dropped.setdefault("duplicate", {})[name] = copy.size


def not_finite(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the tensors with NaN or infinite numbers."""
    return [name for name, a in tensors.items() if a.dtype.kind == "f" and not np.isfinite(a).all()]
