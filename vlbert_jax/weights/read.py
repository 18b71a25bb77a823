"""Weights of any source, whose kind is detected by their content.

Those of VL-BERT, BERT and ResNet have the official names of VL-BERT (vlbert_names.py), those of its one-stream
siblings the names of BERT (family_names.py). Half and double precision become float32.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vlbert_jax.files import read_json_object
from vlbert_jax.model.architectures import VLBERT, get_architecture
from vlbert_jax.tasks import PRETRAINING, TASKS, part_config, task_of_names, tasks_of_family
from vlbert_jax.weights import detector_names, family_names, two_stream_names, vlbert_names
from vlbert_jax.weights.bert_names import bert_to_official
from vlbert_jax.weights.containers import TRAINER, find_weights, read_files, stored_in_file
from vlbert_jax.weights.official_config import check_official_config, read_official_config
from vlbert_jax.weights.orbax import expected_reading, newest_step, read_checkpoint
from vlbert_jax.weights.resnet_names import resnet_to_official
from vlbert_jax.weights.stored_config import upgraded

log = logging.getLogger(__name__)
OTHER_FLOATS = (np.float16, np.float64, ml_dtypes.bfloat16)  # types that become float32
WRITE_AGAIN = "train or convert again, or restore the file from a copy"
TIED = (f"{vlbert_names.C5_AGAIN}.", "vlbert.mlm_head.predictions.decoder.")


@dataclasses.dataclass
class Weights:
    """Weights of one source."""

    path: str
    kind: str  # bert | vlbert | resnet | sibling
    container: str  # format of the source: pytorch | safetensors | caffe | pickle | orbax
    tensors: dict[str, np.ndarray]
    dropped: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)  # reason -> name -> size
    counters: dict[str, int] = dataclasses.field(default_factory=dict)  # batch counters of batch norm
    segments: int = 2  # rows of a BERT's segment table
    config: dict[str, Any] | None = None  # config of a vlbert_jax checkpoint, as nested dicts
    new: tuple[str, ...] = ()  # tensors that an earlier conversion initialized
    num_heads: int | None = None  # attention heads, None = the source does not say
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # config.json next to the weights of two streams
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the config, of a chosen head
    tasks: tuple[str, ...] = ()  # every task whose heads a file of a sibling has
    task: str = PRETRAINING
    architecture: str = VLBERT.name
    folder: Path | None = None  # that `convert` wrote
    vocab: str = ""  # vocab.txt next to the weights of a sibling, "" where there is none

    @property
    def description(self) -> str:
        """Return the kind and format as words."""
        sibling = f"{self.architecture}, {self.task}"
        kind = {"bert": "BERT", "resnet": "ResNet", "vlbert": f"VL-BERT, {self.task}", "sibling": sibling}[self.kind]
        return f"{kind} in {self.container}"


def read_weights(path: str | Path) -> Weights:
    """Read the weights in a file, a folder, or a model of the Hugging Face hub.

    Raises:
        FileNotFoundError: Nothing is at `path`.
        ValueError: The source does not hold weights of a known kind, is damaged, would run code, or
            has an untied decoder.
    """
    try:
        return _read(str(path))
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # each library raises its own errors for a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if str(path) in reason:
            raise ValueError(reason) from error
        raise ValueError(f"{path} cannot be read: {type(error).__name__}: {reason[:200]}") from error


def _read(given: str) -> Weights:
    path = find_weights(given)
    if is_detector_folder(path):
        tensors = detector_names.parameters_to_milvlg(flatten_tree(read_checkpoint(path)))
        return _to_weights(given, tensors, "orbax")
    if path.is_dir() and ((path / "state").exists() or newest_step(path) is not None):
        return _read_checkpoint_folder(given, path)
    log.info("reading weights from %s, %s", path, expected_reading(path))
    raw, container = read_files(path)
    weights = _to_weights(given, raw, container)
    if container == "safetensors" and weights.kind in ("vlbert", "sibling") and (stored := stored_in_file(path)):
        weights.config = upgraded(stored, stored.pop("schema", None), given)
        weights.task = _stored_task(weights, weights.config)
        if weights.kind == "sibling":
            weights.tasks = tuple(dict.fromkeys((weights.task, *weights.tasks)))
        weights.num_heads = weights.config["model"]["encoder"]["num_heads"]
    folder = path if path.is_dir() else path.parent
    if weights.config is None and weights.kind in ("bert", "sibling") and (folder / "config.json").exists():
        _read_beside(folder / "config.json", weights)
    if weights.kind == "sibling" and (folder / "vocab.txt").exists():
        weights.vocab = str(folder / "vocab.txt")
    return weights


def _read_checkpoint_folder(given: str, path: Path) -> Weights:
    """Read a workdir, a step in it, or a folder that `convert` wrote."""
    config = _read_config(path.absolute())
    encoder = config["model"]["encoder"]
    architecture = get_architecture(config["model"].get("architecture", VLBERT.name))
    raw = vlbert_names.to_official(
        flatten_tree(read_checkpoint(path)), encoder["vocab_size"], family_names.table_of(architecture)
    )
    new = tuple(config.get("newly_initialized", ()))
    if architecture is VLBERT:
        raw |= {name: np.asarray(count) for name, count in config.get("batch_counters", {}).items()}
        weights = _to_weights(given, raw, "orbax")
        weights.task = _stored_task(weights, config)
    else:
        own = dict(task=config.get("task", PRETRAINING), architecture=architecture.name)
        weights = Weights(given, "sibling", "orbax", raw, folder=path, **own)
    segments = config.get("bert_segments", 2)
    return dataclasses.replace(weights, config=config, num_heads=encoder["num_heads"], new=new, segments=segments)


def _stored_task(weights: Weights, config: dict[str, Any]) -> str:
    """Return the task of a stored config where the heads may be those of several tasks; else that of the heads.

    Other tasks have the heads of pre-training as well, and in a sibling one head may serve several tasks.
    """
    stored, shared = config.get("task", PRETRAINING), weights.kind == "sibling" or weights.task == PRETRAINING
    return stored if shared and stored in TASKS else weights.task


def of_task(source: Weights, task: str) -> Weights:
    """Return the weights of one task of a run of several tasks, with the config of a part for this task."""
    tensors, config = vlbert_names.heads_of(source.tensors, task), source.config
    if config:
        name = next(name for name, part in sorted(config["parts"].items()) if part["task"] == task)
        config = part_config(config, name)
    return dataclasses.replace(source, tensors=tensors, config=config, task=task)


def is_detector_folder(path: Path) -> bool:
    """Return whether a folder is a detector that `convert` wrote."""
    config = path / "config.json"
    return (path / "state").exists() and config.exists() and "detector" in read_json_object(config, WRITE_AGAIN)


def _read_beside(file: Path, weights: Weights) -> None:
    """Take what only the official config says; raise ValueError where it is of another model than the weights."""
    fields, streams = read_official_config(file), get_architecture(weights.architecture).streams
    kind = "BERT" if weights.kind == "bert" else weights.architecture
    check_official_config(file, fields, {n: a.shape for n, a in weights.tensors.items()}, kind, streams)
    if streams == 2:
        weights.settings = fields
    else:
        weights.num_heads = fields.get("num_attention_heads")


def _read_config(path: Path) -> dict[str, Any]:
    """Return the config of a checkpoint: of a converted folder, a workdir, or one step in it."""
    for file in (path / "config.json", path.parent.parent / "config.json"):
        if file.exists():
            config = read_json_object(file, WRITE_AGAIN)
            if "model" in config:
                return upgraded(config, config.pop("schema", None), str(file))
    raise FileNotFoundError(f"there is no config.json with the model's sizes for the checkpoint in {path}")


def flatten_tree(tree: Mapping, prefix: tuple = ()) -> dict[tuple, np.ndarray]:
    """Return the arrays in the nested dicts under "params" and "constants" by their paths."""
    if not prefix:
        return {path[1:]: a for name in tree for path, a in flatten_tree(tree[name], (name,)).items()}
    arrays = {}
    for name, value in tree.items():
        path = (*prefix, str(name))
        arrays |= flatten_tree(value, path) if isinstance(value, Mapping) else {path: np.asarray(value)}
    return arrays


def _to_weights(path: str, raw: Mapping[str, np.ndarray], container: str) -> Weights:
    """Return tensors with the names of their source as weights."""
    if sibling := _sibling_of(raw):
        return _to_sibling(path, raw, container, sibling)
    kind, rename = _detect_kind(path, raw)
    weights = Weights(path, kind, container, {})
    for original, array in raw.items():
        name, array = vlbert_names.plain_name(original), np.asarray(array)
        official = rename(name)
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


def _sibling_of(raw: Mapping[str, np.ndarray]) -> str:
    """Return the architecture of a sibling of VL-BERT with tensors of these names; "" where it is none."""
    official = any(vlbert_names.plain_name(name).startswith("vlbert.") for name in raw)
    return "" if official else family_names.architecture_of_names(raw)


def _to_sibling(path: str, raw: Mapping[str, np.ndarray], container: str, architecture: str) -> Weights:
    weights = Weights(path, "sibling", container, {}, architecture=architecture)
    words = two_stream_names.WORDS if get_architecture(architecture).streams == 2 else family_names.WORDS
    own = {}
    for name, array in raw.items():
        array = np.asarray(array)
        if name.startswith(TRAINER):
            weights.dropped.setdefault("optimizer state", {})[name] = array.size
        else:
            own[name] = array.astype(np.float32) if array.dtype in OTHER_FLOATS else array
    if dynamic := next((name for name in own if ".dyLinear_" in name), ""):
        raise ValueError(
            f"{path} has dynamic attention ({dynamic}), which {architecture} here does not: choose weights without it"
        )
    named = family_names.to_bert_names(own, get_architecture(architecture))
    weights.tensors, copies = family_names.untied(named, get_architecture(architecture))
    if copies:
        weights.dropped["duplicate"] = copies
    if words not in weights.tensors:
        raise ValueError(f"{path} has tensors of {architecture}, but lacks {words}")
    found = tasks_of_family(architecture, {name: array.shape for name, array in weights.tensors.items()})
    pretraining = [PRETRAINING] if family_names.MLM_BIAS in weights.tensors or not found else []
    weights.tasks = (*pretraining, *found)
    weights.task = weights.tasks[0]
    return weights


def _detect_kind(path: str, raw: Mapping[str, np.ndarray]) -> tuple[str, Callable[[str], str]]:
    """Return the kind of a source and the function from its names to the official ones."""
    plain = {vlbert_names.plain_name(name) for name in raw}
    if any(name.startswith(("vlbert.", "image_feature_extractor.")) for name in plain):
        return "vlbert", str
    if any(name.removeprefix("bert.") == "embeddings.word_embeddings.weight" for name in plain):
        return "bert", bert_to_official
    if "layer1.0.conv1.weight" in plain:
        return "resnet", resnet_to_official
    if detector_names.is_detector(raw):
        return "resnet", lambda name: resnet_to_official(detector_names.milvlg_to_resnet(name) or "")
    raise ValueError(
        f"{path} holds no weights of BERT, VL-BERT, its siblings or ResNet; its tensors: "
        f"{', '.join(list(raw)[:4]) or 'none'}"
    )


def _drop_duplicates(weights: Weights):
    """Remove tensors that are the same under two official names.

    The decoder of masked words is the embedding table, and C5 has two names. Raises ValueError if
    the copies differ: the model has one parameter for both.
    """
    for name in [name for name in weights.tensors if name.startswith(TIED)]:
        if name.startswith(vlbert_names.C5_AGAIN):
            tied = name.replace(vlbert_names.C5_AGAIN, vlbert_names.C5_NAME)
        else:
            tied = vlbert_names.WORDS if name.endswith("weight") else vlbert_names.MLM_BIAS
        copy = weights.tensors.pop(name)
        original = weights.tensors.setdefault(tied, copy)
        if copy.shape != original.shape or not np.array_equal(copy, original, equal_nan=True):
            raise ValueError(
                f"{weights.path}: {name} differs from {tied}; VL-BERT ties them, so weights that are not tied cannot "
                "be converted"
            )
        if copy is not original:
            weights.dropped.setdefault("duplicate", {})[name] = copy.size


def not_finite(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """Return the names of the tensors with NaN or infinite values."""
    return [name for name, a in tensors.items() if a.dtype.kind == "f" and not np.isfinite(a).all()]
