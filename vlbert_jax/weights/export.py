"""Writing weights in the formats people load: safetensors, PyTorch, Hugging Face, ours."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from safetensors.numpy import save_file

FILE_SIZE = 64 * 2**20  # of the parts of an Orbax checkpoint: with one large part all of it is held in memory


def may_replace(target: Path) -> bool:
    """Whether nothing but weights is lost where the target is replaced: a file, an empty folder, one of `convert`'s."""
    if not target.is_dir():
        return True
    inside = {path.name for path in target.iterdir()}
    return inside <= {"config.json", "state", "model.safetensors", "objects_vocab.txt", "attributes_vocab.txt"}


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]):
    """Tensors that are one stay one only in memory: the format has no sharing."""
    whole = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()}
    save_file(whole, path, {"format": "pt"})
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
        raise ValueError("a PyTorch file needs pip install 'vlbert_jax[convert]'; or choose .safetensors") from error
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
    from transformers import BertConfig  # takes a second

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


def write_orbax(path: Path, params: dict, constants: dict, config: Mapping[str, Any]):
    """A folder that `init.checkpoint` reads: the arrays as a run saves them, and config.json."""
    path.mkdir()
    arrays = _on_device(dict(params=params, constants=constants))
    arrays = ocp.args.PyTreeSave(arrays, ocdbt_target_data_file_size=FILE_SIZE)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(path.absolute() / "state", arrays)
    _write_config(path, config)


def _on_device(tree: dict) -> dict:
    """The tree with its arrays replaced, one by one, by JAX's: Orbax would keep a second copy of NumPy's."""
    for name, value in tree.items():
        tree[name] = _on_device(value) if isinstance(value, dict) else jax.device_put(value)
    return tree


def _write_config(path: Path, config: Mapping[str, Any]):
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
