"""Read files with weights of LXMERT and ViLBERT, and fill a model with them."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vlbert_jax.model.structure import structure_of
from vlbert_jax.model.two_stream_config import TwoStreamConfig
from vlbert_jax.model.two_stream_heads import TwoStreamHeads, TwoStreamModel
from vlbert_jax.weights.containers import TRAINER, find_weights, read_files
from vlbert_jax.weights.official_config import read_official_config
from vlbert_jax.weights.two_stream_names import match_two_stream, plain_tensors, reason_not_wanted, two_stream_family
from vlbert_jax.weights.two_stream_options import config_from_tensors, heads_from_tensors


@dataclasses.dataclass
class TwoStreamWeights:
    """Weights of one source by their plain names, and the model that they determine."""

    path: str
    container: str  # format of the source: pytorch | safetensors | pickle
    family: str  # lxmert | vilbert
    config: TwoStreamConfig
    heads: TwoStreamHeads
    tensors: dict[str, np.ndarray]
    dropped: dict[str, list[str]]  # reason -> tensors of the source that are not used


def read_two_stream(path: str | Path, settings: str | Path | None = None) -> TwoStreamWeights:
    """Read the weights in a file, a folder, or a model of the Hugging Face hub.

    Args:
        path: File, folder or name of a model.
        settings: JSON file with the official configuration, which has the number of heads; None = the
            config.json next to the weights, if there is one.

    Raises:
        FileNotFoundError: Nothing is at `path` or `settings`.
        ValueError: The source does not hold all tensors of a two-stream model, or has unknown ones.
    """
    source = find_weights(str(path))
    raw, container = read_files(source)
    own = {name: array for name, array in raw.items() if not name.startswith(TRAINER)}
    try:
        tensors = plain_tensors({name: np.asarray(array, np.float32) for name, array in own.items()})
        shapes = {name: array.shape for name, array in tensors.items()}
        config, heads = config_from_tensors(shapes, _settings(source, settings)), heads_from_tensors(shapes)
        state = nnx.state(structure_of(functools.partial(TwoStreamModel, config, heads)))
        parameters = {tuple(map(str, name)): v.shape for name, v in nnx.to_flat_state(state)}
        found = match_two_stream(tensors, parameters, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if found.missing:
        raise ValueError(f"{path} lacks {', '.join(found.missing[:8])} ({len(found.missing)} tensors)")
    dropped = {"optimizer state": [name for name in raw if name.startswith(TRAINER)]} if len(own) < len(raw) else {}
    for name in sorted(found.unused):
        dropped.setdefault(reason_not_wanted(name), []).append(name)
    if unknown := dropped.get(""):
        raise ValueError(f"{path} has tensors that no LXMERT or ViLBERT has: {', '.join(unknown[:8])}")
    used = {name: tensors[name] for name in found.matched}
    return TwoStreamWeights(str(path), container, two_stream_family(tensors) or "", config, heads, used, dropped)


def _settings(source: Path, given: str | Path | None) -> dict[str, Any]:
    """Return the fields of the official configuration; {} where there is no file."""
    file = Path(given) if given else (source if source.is_dir() else source.parent) / "config.json"
    if not given and not file.exists():
        return {}
    return read_official_config(file)


def two_stream_model(weights: TwoStreamWeights, **options) -> TwoStreamModel:
    """Return the model with its weights; `options` replace fields of its config that change no size."""
    config = dataclasses.replace(weights.config, **options)
    graphdef, abstract = nnx.split(structure_of(functools.partial(TwoStreamModel, config, weights.heads)))
    flat = nnx.to_flat_state(abstract)
    shapes = {tuple(map(str, path)): variable.shape for path, variable in flat}
    found = match_two_stream(weights.tensors, shapes, config)
    for path, variable in flat:
        array = np.zeros(variable.shape, np.float32)  # rows that no token has stay 0
        found.fill(array, tuple(map(str, path)), weights.tensors)
        variable.set_value(jnp.asarray(array))
    return nnx.merge(graphdef, abstract)
