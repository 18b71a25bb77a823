"""Writers of weights in the formats safetensors, PyTorch, Hugging Face and Orbax."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from vlbert_jax.weights.checksums import CHECKSUMS, write_checksums
from vlbert_jax.weights.containers import CONFIG_METADATA, INSTALL_TORCH
from vlbert_jax.weights.model_card import CARD, is_own_card
from vlbert_jax.weights.stored_config import VOCABULARIES

KEPT = "kept"  # folder of the tensors of the source that the model does not read, in KEPT_FILE
KEPT_FILE = "tensors.safetensors"
# What `convert` writes into a folder.
WRITTEN = {"config.json", "state", KEPT, VOCABULARIES, "model.safetensors", "objects_vocab.txt", "attributes_vocab.txt"}
WRITTEN |= {"vocab.txt", "tokenizer.json", "tokenizer_config.json", CARD, CHECKSUMS}
FILE_SIZE = 64 * 2**20  # bytes per file of a checkpoint; Orbax holds a whole file in memory


def cast_tensors(tensors: Mapping[str, np.ndarray], dtype: str | None) -> dict[str, np.ndarray]:
    """Return the tensors in `dtype`; raise ValueError where a value exceeds its range."""
    if dtype is None:
        return dict(tensors)
    done = {}  # tensors that share an array still share it
    for name, array in tensors.items():
        if id(array) in done:
            continue
        done[id(array)] = array
        if array.dtype.kind == "f":
            with np.errstate(over="ignore"):
                done[id(array)] = array.astype(np.dtype(dtype))
            if np.isfinite(array).all() and not np.isfinite(done[id(array)]).all():
                raise ValueError(f"{name} has values beyond the range of {dtype}")
    return {name: done[id(array)] for name, array in tensors.items()}


def may_replace(target: Path) -> bool:
    """Return whether the target can be replaced without losing more than weights.

    That is a file, an empty folder, or a folder that `convert` wrote.
    """
    if not target.is_dir():
        return True
    inside = {path.name for path in target.iterdir()}
    return inside <= WRITTEN and (CARD not in inside or is_own_card(target / CARD))


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any] | None = None):
    """Write a safetensors file; each tensor is written in full, also if it shares memory.

    Args:
        path: file to write.
        tensors: tensors by name.
        config: fields that shapes do not determine, such as strides; they become metadata of the file.

    Raises:
      OSError: the file cannot be written.
    """
    contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()}
    metadata = {} if config is None else {CONFIG_METADATA: json.dumps(config)}
    try:
        save_file(contiguous, path, {"format": "pt"} | metadata)
    except SafetensorError as error:  # the library reports the system's error in its text
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise
    path.chmod(0o666 & ~_umask())  # the library creates the file with mode 600


def _umask() -> int:
    """Return the process's mask of file modes, which can be read only by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_torch(path: Path, tensors: Mapping[str, np.ndarray], wrap: bool):
    """Write a PyTorch file.

    Args:
        path: file to write.
        tensors: tensors by name; those that share memory also share it in the file.
        wrap: put the tensors under "state_dict", where the official code expects them.

    Raises:
        ValueError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise ValueError(f"PyTorch is not installed; run {INSTALL_TORCH}, or write .safetensors") from error
    state, done = {}, {}
    for name, array in tensors.items():
        key = (array.__array_interface__["data"][0], array.shape, array.strides)
        if key not in done:
            contiguous = np.ascontiguousarray(array).reshape(array.shape)
            bfloat = contiguous.dtype == ml_dtypes.bfloat16
            tensor = torch.from_numpy(contiguous.view(np.int16) if bfloat else contiguous)
            done[key] = tensor.view(torch.bfloat16) if bfloat else tensor
        state[name] = done[key]
    try:
        with path.open("wb") as file:
            torch.save({"state_dict": state} if wrap else state, file)
    except RuntimeError as error:  # PyTorch raises it while it handles the error of the disk
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def write_hugging_face(path: Path, bert: Mapping[str, np.ndarray], num_heads: int):
    """Write a folder that Hugging Face's BertForPreTraining and BertModel load.

    Args:
        path: folder to create.
        bert: tensors with BERT's names.
        num_heads: attention heads, which the tensors do not determine.
    """
    from transformers import BertConfig  # takes a second to import

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


def write_sibling(path: Path, tensors: Mapping[str, np.ndarray], model: Mapping[str, Any], kind: str):
    """Write a folder that a class of Hugging Face's VisualBERT or LXMERT loads.

    Args:
        path: folder to create.
        tensors: tensors with Hugging Face's names.
        model: sizes of the model (config.model).
        kind: name of the class.
    """
    from transformers import LxmertConfig, VisualBertConfig  # takes a second to import

    encoder = model["encoder"]
    sizes = dict(
        vocab_size=encoder["vocab_size"],
        hidden_size=encoder["hidden_size"],
        num_attention_heads=encoder["num_heads"],
        intermediate_size=encoder["mlp_size"],
        max_position_embeddings=encoder["max_positions"],
        type_vocab_size=encoder["num_segments"],
        architectures=[kind],
    )
    if model["architecture"] == "lxmert":
        layers = dict(zip(("l_layers", "r_layers", "x_layers"), model["two_stream"]["layers"], strict=True))
        answers = len(tensors["answer_head.logit_fc.3.bias"])
        config = LxmertConfig(**sizes, **layers, visual_feat_dim=model["feature_size"], num_qa_labels=answers)
    else:
        width = dict(num_hidden_layers=encoder["num_layers"], visual_embedding_dim=model["feature_size"])
        config = VisualBertConfig(**sizes, **width)
        if "cls.bias" in tensors:
            config.num_labels = len(tensors["cls.bias"])
    path.mkdir()
    config.to_json_file(path / "config.json")
    write_safetensors(path / "model.safetensors", tensors)


def write_orbax(
    path: Path, params: dict, constants: dict, config: Mapping[str, Any], kept: Mapping[str, np.ndarray] | None = None
):
    """Write a folder that `init.checkpoint` reads: arrays as a run saves them, and config.json.

    Args:
        path: folder to create.
        params: trained parameters as nested dicts; their arrays move to the device.
        constants: other state as nested dicts, likewise.
        config: content of config.json.
        kept: tensors that the model does not read, for `read_kept`.
    """
    import orbax.checkpoint as ocp  # it takes a second to import

    path.mkdir()
    arrays = _on_device(dict(params=params, constants=constants))
    arrays = ocp.args.PyTreeSave(arrays, ocdbt_target_data_file_size=FILE_SIZE)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(path.absolute() / "state", arrays)
    if kept:
        (path / KEPT).mkdir()
        write_safetensors(path / KEPT / KEPT_FILE, kept)
    write_checksums(path)
    _write_config(path, config)


def read_kept(folder: Path | None) -> dict[str, np.ndarray]:
    """Return the tensors that `write_orbax` kept in a folder; none for None or a folder without any."""
    file = folder and folder / KEPT / KEPT_FILE
    return load_file(file) if file and file.exists() else {}


def _on_device(tree: dict) -> dict:
    """Replace the arrays of a tree, one by one, by JAX arrays, and return the tree.

    Orbax would keep a second copy of NumPy arrays.
    """
    for name, value in tree.items():
        tree[name] = _on_device(value) if isinstance(value, dict) else jax.device_put(value)
    return tree


def _write_config(path: Path, config: Mapping[str, Any]):
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
