"""Files of weights: what kind a file is, reading it without running code from it, and writing the formats people load.

Everything read comes out with the official VL-BERT names (names.py), half precision widened to float32.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from vlbert_jax import checkpoint, names

log = logging.getLogger(__name__)

HALF = (np.float16, np.float64, ml_dtypes.bfloat16)  # what becomes float32
FILE_SIZE = 64 * 2**20  # of the parts of an Orbax checkpoint: with one large part all of it is held in memory
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclasses.dataclass
class Weights:
    """Weights of one source, with official names."""

    path: str
    kind: str  # bert | vlbert | resnet
    container: str  # of the source: pytorch | safetensors | caffe | orbax
    tensors: dict[str, np.ndarray]
    dropped: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)  # reason -> name -> size
    counters: dict[str, int] = dataclasses.field(default_factory=dict)  # of batch norm, those that are not 0
    config: dict[str, Any] | None = None  # of our checkpoints, as nested dicts
    new: tuple[str, ...] = ()  # what a conversion drew, for want of it in its source
    num_heads: int | None = None  # where the source says
    task: str = "pretrain"

    @property
    def description(self) -> str:
        kind = {"bert": "BERT", "resnet": "ResNet", "vlbert": f"VL-BERT, {self.task}"}[self.kind]
        return f"{kind} in {self.container}"


# --- Reading ----------------------------------------------------------------------------------------------------------


def read(path: str | Path) -> Weights:
    """Weights of a file, folder or hub name; the kind is told by content.

    Raises FileNotFoundError, or ValueError for a file that is no weights, would run code, is cut short, is of none of
    the kinds, or has a decoder of its own.
    """
    given, path = str(path), Path(path).expanduser()
    if not path.exists():
        path = _from_hub(given)
    config, num_heads = None, None
    if path.is_dir() and ((path / "state").exists() or checkpoint.newest_step(path) is not None):
        config = _read_config(path)
        vocab_size = config["model"]["encoder"]["vocab_size"]
        raw, container = names.to_official(flat(checkpoint.read_weights(path)), vocab_size), "orbax"
        raw |= {name: np.int64(count) for name, count in config.get("batch_counters", {}).items()}
    elif path.is_dir():
        files = _files_of(path)
        raw, container = {}, ""
        for file in files:
            part, container = _read_file(file)
            raw |= part
        if (path / "config.json").exists():
            num_heads = json.loads((path / "config.json").read_text()).get("num_attention_heads")
    else:
        raw, container = _read_file(path)
    weights = _recognise(given, raw, container)
    new = tuple((config or {}).get("newly_initialised", ()))
    return dataclasses.replace(weights, config=config, num_heads=num_heads, new=new)


def _from_hub(name: str) -> Path:
    if not HUB_NAME.fullmatch(name) or Path(name).suffix:
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


def _files_of(folder: Path) -> list[Path]:
    """The weight files of a Hugging Face folder: one, or those its index lists."""
    for name in WEIGHT_FILES:
        if (folder / name).exists():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.exists():
            parts = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            absent = [part for part in parts if not (folder / Path(part).name).exists()]
            if absent:
                raise FileNotFoundError(f"{index} lists {', '.join(absent)}, absent from the folder")
            return [folder / Path(part).name for part in parts]  # never out of the folder
    raise FileNotFoundError(f"{folder} holds no checkpoint of ours and none of {', '.join(WEIGHT_FILES)}")


def _read_file(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """Tensors with the names in the file, and what kind of file it is, told by its first bytes."""
    with path.open("rb") as file:
        start = file.read(9)
    size = path.stat().st_size
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return _read_torch(path), "pytorch"
    if len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < 100_000_000:
        try:
            return load_file(path), "safetensors"
        except SafetensorError as error:
            raise ValueError(f"{path} is a damaged safetensors file of {size:,} bytes: {error}") from error
    return _read_caffe(path), "caffe"


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ValueError(f"{path} is a PyTorch file: pip install 'vlbert_jax[convert]' to read it") from error
    # Numbers that trainers keep beside the weights; they hold no code.
    harmless = [(np._core.multiarray.scalar, "numpy.core.multiarray.scalar"), np._core.multiarray.scalar, np.dtype]
    harmless += [np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType]
    try:
        with torch.serialization.safe_globals(harmless):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
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
    for prefix, tree in (("", states), *((f"{name}.", value) for name, value in others.items())):
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


def _caffe_message():
    """The few fields of Caffe's NetParameter that hold weights, as a protobuf message."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="caffe_weights.proto", package="caffe_weights", syntax="proto2")
    field, one, many = descriptor_pb2.FieldDescriptorProto, 1, 3

    def message(name, *fields):
        new = file.message_type.add(name=name)
        for number, label, kind, field_name, packed in fields:
            added = new.field.add(name=field_name, number=number, label=label)
            added.type = field.TYPE_MESSAGE if isinstance(kind, str) else kind
            if isinstance(kind, str):
                added.type_name = f".caffe_weights.{kind}"
            added.options.packed = packed

    message("Shape", (1, many, field.TYPE_INT64, "dim", True))
    old_shape = ("num", "channels", "height", "width")
    sizes = [(number, one, field.TYPE_INT32, name, False) for number, name in enumerate(old_shape, 1)]
    message("Blob", *sizes, (5, many, field.TYPE_FLOAT, "data", True), (7, one, "Shape", "shape", False))
    message("Layer", (1, one, field.TYPE_STRING, "name", False), (7, many, "Blob", "blobs", False))
    message("Net", (1, one, field.TYPE_STRING, "name", False), (100, many, "Layer", "layer", False))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe_weights.Net"))


def _read_caffe(path: Path) -> dict[str, np.ndarray]:
    """ResNet tensors of a Caffe detector with torchvision's names; its other layers as `layer[blob]`."""
    from google.protobuf.message import DecodeError

    net = _caffe_message()()
    try:
        net.ParseFromString(path.read_bytes())
    except DecodeError:
        net.Clear()
    if not net.layer:
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is neither a PyTorch, safetensors nor Caffe file; is it whole?"
        )
    tensors = {}
    for layer in net.layer:
        blobs = []
        for blob in layer.blobs:
            shape = tuple(blob.shape.dim) or (blob.num, blob.channels, blob.height, blob.width)
            data = np.fromiter(blob.data, np.float32, len(blob.data))
            if data.size != np.prod(shape):
                raise ValueError(f"{path}: layer {layer.name} has {data.size} numbers for shape {shape}")
            blobs.append(data.reshape(shape))
        of_resnet = names.caffe_to_resnet(layer.name, blobs)
        tensors |= of_resnet or {f"{layer.name}[{i}]": blob for i, blob in enumerate(blobs)}
    return tensors


def _read_config(path: Path) -> dict[str, Any]:
    """The config beside a checkpoint of ours: of a converted folder, a workdir, or one step in it."""
    for file in (path / "config.json", path.parent.parent / "config.json"):
        if file.exists():
            config = json.loads(file.read_text())
            if "model" in config:
                return config
    raise FileNotFoundError(f"no config.json beside the checkpoint in {path}: it tells the sizes")


def flat(tree: Mapping, prefix: tuple = ()) -> dict[tuple, np.ndarray]:
    """Paths to arrays, of the nested dicts under "params" and "constants"."""
    if not prefix:
        return {path[1:]: a for name in tree for path, a in flat(tree[name], (name,)).items()}
    arrays = {}
    for name, value in tree.items():
        path = (*prefix, str(name))
        arrays |= flat(value, path) if isinstance(value, Mapping) else {path: np.asarray(value)}
    return arrays


def _recognise(path: str, raw: Mapping[str, np.ndarray], container: str) -> Weights:
    plain = {names.plain_name(name): name for name in raw}
    if any(name.startswith(("vlbert.", "image_feature_extractor.")) for name in plain):
        kind, rename = "vlbert", str
    elif any(name.removeprefix("bert.") == "embeddings.word_embeddings.weight" for name in plain):
        kind, rename = "bert", names.bert_to_official
    elif "layer1.0.conv1.weight" in plain:
        kind, rename = "resnet", names.resnet_to_official
    else:
        raise ValueError(
            f"{path} holds no weights of BERT, VL-BERT or ResNet; its tensors: {', '.join(list(raw)[:4]) or 'none'}"
        )
    weights = Weights(path, kind, container, {})
    for name, original in plain.items():
        official, array = rename(name), np.asarray(raw[original])
        reason = names.reason_not_wanted(official) if kind == "vlbert" else ""
        if name.startswith("optimizer."):
            reason = "optimizer state"
        elif container == "caffe" and "[" in name:
            reason = "detector's own layer"
        elif official.endswith(".num_batches_tracked"):
            if array.item():
                weights.counters[official] = int(array.item())
            reason = "batch counter"
        if official.startswith("vlbert.mlm_head.predictions.decoder."):
            weights.tensors[official] = array  # for now
        elif reason in ("duplicate", "batch counter", "optimizer state", "detector's own layer"):
            weights.dropped.setdefault(reason, {})[original] = array.size
        else:
            weights.tensors[official] = array.astype(np.float32) if array.dtype in HALF else array
    _drop_decoder(weights)
    weights.task = names.task_of(weights.tensors)
    return weights


def _drop_decoder(weights: Weights):
    """The decoder of masked words is the embedding table itself, here as in BERT; one of its own has no place."""
    for leaf, twin in (("weight", names.WORDS), ("bias", names.MLM_BIAS)):
        name = f"vlbert.mlm_head.predictions.decoder.{leaf}"
        if (own := weights.tensors.pop(name, None)) is None:
            continue
        table = weights.tensors.setdefault(twin, own) if leaf == "bias" else weights.tensors.get(twin)
        own = own.astype(np.float32, copy=False)
        if table is None or own.shape != table.shape or not np.array_equal(own, table, equal_nan=True):
            raise ValueError(
                f"{weights.path}: {name} differs from {twin}; a decoder that is not tied to it has no place in VL-BERT"
            )
        weights.dropped.setdefault("duplicate", {})[name] = own.size


def not_finite(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the tensors with NaN or infinite numbers."""
    return [name for name, a in tensors.items() if a.dtype.kind == "f" and not np.isfinite(a).all()]


# --- Writing ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to; it takes the target's place when the block ends well, else it goes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield beside
        if target.is_dir():
            old = target.with_name(f".{target.name}.{os.getpid()}.old")
            target.rename(old)
            beside.rename(target)
            shutil.rmtree(old)
        else:
            beside.replace(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True) if beside.is_dir() else beside.unlink(missing_ok=True)


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]):
    """Tensors that are one stay one only in memory: the format has no sharing."""
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path, {"format": "pt"})
    path.chmod(0o666 & ~_umask())  # the library's own mode shuts out everybody else


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_torch(path: Path, tensors: Mapping[str, np.ndarray], wrap: bool):
    """A PyTorch file; `wrap` puts the tensors under "state_dict", where the official loader looks for them."""
    try:
        import torch
    except ImportError as error:
        raise ValueError(f"to write {path}: pip install 'vlbert_jax[convert]', or choose .safetensors") from error
    state, done = {}, {}
    for name, array in tensors.items():
        key = (array.__array_interface__["data"][0], array.shape, array.strides)
        if key not in done:  # what is shared stays shared
            whole = np.ascontiguousarray(array).reshape(array.shape)
            bfloat = whole.dtype == ml_dtypes.bfloat16
            tensor = torch.from_numpy(whole.view(np.int16) if bfloat else whole)
            done[key] = tensor.view(torch.bfloat16) if bfloat else tensor
        state[name] = done[key]
    torch.save({"state_dict": state} if wrap else state, path)


def write_hugging_face(path: Path, bert: Mapping[str, np.ndarray], num_heads: int):
    """A folder that Hugging Face's BertForPreTraining and BertModel load; `bert` has BERT's names."""
    from transformers import BertConfig

    table, inner = bert["bert.embeddings.word_embeddings.weight"], "bert.encoder.layer.0.intermediate.dense.weight"
    config = BertConfig(
        vocab_size=table.shape[0],
        hidden_size=table.shape[1],
        num_hidden_layers=len([name for name in bert if name.endswith("intermediate.dense.bias")]),
        num_attention_heads=num_heads,
        intermediate_size=bert[inner].shape[0],
        max_position_embeddings=len(bert["bert.embeddings.position_embeddings.weight"]),
        type_vocab_size=len(bert["bert.embeddings.token_type_embeddings.weight"]),
        architectures=["BertForPreTraining"],
    )
    path.mkdir()
    config.to_json_file(path / "config.json")
    write_safetensors(path / "model.safetensors", bert)


def write_orbax(path: Path, params: Mapping, constants: Mapping, config: Mapping[str, Any]):
    """A folder that `init.checkpoint` reads: the arrays as a run saves them, and config.json."""
    path.mkdir()
    arrays = ocp.args.PyTreeSave(dict(params=params, constants=constants), ocdbt_target_data_file_size=FILE_SIZE)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(path.absolute() / "state", arrays)
    _write_config(path, config)


def _write_config(path: Path, config: Mapping[str, Any]):
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
