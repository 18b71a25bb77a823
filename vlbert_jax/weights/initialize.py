"""Starting a run from weights: what `config.init` names goes into the state, and the log says where all came from."""

import collections
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.experimental.multihost_utils import process_allgather

from vlbert_jax.weights import vlbert_names
from vlbert_jax.weights.orbax import newest_step
from vlbert_jax.weights.read import Weights, find_weights, not_finite, read_weights

log = logging.getLogger(__name__)

FIELDS = ("bert", "resnet", "checkpoint")  # config.init; a later one wins where several have a tensor
KINDS = {"bert": ("bert",), "resnet": ("resnet",), "checkpoint": ("vlbert", "bert", "resnet")}


def named_sources(init: Mapping[str, Any]) -> dict[str, str]:
    """The fields of `config.init` that name weights. Raises ValueError if none does and `init.scratch` is False."""
    named = {field: init[field] for field in FIELDS if init[field]}
    if not named and not init["scratch"]:
        raise ValueError(
            "config.init names no weights to start from: pre-train (`make demo` writes workdirs/demo) and give "
            "--config.init.checkpoint=WORKDIR, or say --config.init.scratch=True"
        )
    return named


def check_sources(config: ml_collections.ConfigDict, workdir: pathlib.Path, mode: str) -> None:
    """Raises FileNotFoundError or ValueError where a run lacks what it starts from: before what takes its time."""
    own, named = newest_step(workdir), [f for f in FIELDS if config.init[f]]
    if mode == "evaluate" and own is None and not named:
        raise FileNotFoundError(f"nothing to evaluate: no checkpoint in {workdir}, and config.init is empty")
    if mode == "evaluate" and own is not None and named:
        raise ValueError(
            f"which is to be evaluated: the run in {workdir}, or config.init.{named[0]}? Leave config.init out for the "
            "first, and take another --workdir for the second"
        )
    if own is None:
        for source in named_sources(config.init.to_dict()).values():
            find_weights(source)


def load_into(
    params: nnx.State,
    constants: nnx.State,
    encoder: Mapping[str, Any],
    task: str,
    init: Mapping[str, str],
    complete: bool = False,
    extractor: str = "",
) -> tuple[nnx.State, nnx.State, set[tuple]]:
    """The two states with the weights that `init` names (field -> path) in them, on the devices they were on, and the
    paths of the parameters that these have filled; `encoder` has the sizes.

    Weights of pre-training become those that `task` starts from (names.WARM_START). What no source has keeps its value;
    with `complete` that is an error. Raises FileNotFoundError, or ValueError where a source is of another kind, lacks
    tensors, differs in sizes, or was trained on precomputed features of another `extractor`.
    """
    variables = {tuple(map(str, path)): v for s in (params, constants) for path, v in nnx.to_flat_state(s)}
    shapes = {path: v.shape for path, v in variables.items()}
    read, origin, vocab_size = [], {}, encoder["vocab_size"]
    for field in FIELDS:
        if field not in init:
            continue
        source = read_weights(init[field])
        if source.kind != "resnet" and source.num_heads not in (None, encoder["num_heads"]):
            raise ValueError(
                f"init.{field}: {source.path} has {source.num_heads} attention heads, "
                f"config.model.encoder.num_heads is {encoder['num_heads']}"
            )
        trained_on = ((source.config or {}).get("data") or {}).get("extractor") or ""
        if extractor and trained_on and trained_on != extractor:
            raise ValueError(
                f"init.{field}: {source.path} was trained on features of extractor {trained_on}, the corpus has those "
                f"of {extractor}: features of different detectors, weights or settings do not go together"
            )
        tensors, found = _matched(field, source, shapes, vocab_size, task)
        read.append((tensors, found))
        origin |= dict.fromkeys(found.matched, f"init.{field}")
        log.info("init.%s: %s, %s; %d tensors taken", field, init[field], source.description, len(found.matched))
        if bad := not_finite({name: tensors[name] for name in found.matched}):
            log.warning("init.%s: NaN or infinite numbers in %s", field, ", ".join(bad))
    _log_origins(shapes, vocab_size, origin)
    table = list(vlbert_names.name_table(shapes, vocab_size))
    lacking = [entry.official for entry in table if entry.official not in {*origin, *vlbert_names.OF_PRETRAINING}]
    if complete and lacking:
        raise ValueError(
            f"{' and '.join(init.values())}: {len(lacking)} tensors of a model for {task} are not there, as "
            f"{lacking[0]}; evaluation needs the weights of a run of this task, not of one that it starts from"
        )

    def place(state: nnx.State) -> nnx.State:
        placed = []
        for path, v in nnx.to_flat_state(state):
            key = tuple(map(str, path))
            if any(key in found.entries for _, found in read):
                array = np.array(_on_host(v[...]))
                for tensors, found in read:
                    found.fill(array, key, tensors)
                v = v.replace(jax.make_array_from_callback(array.shape, v[...].sharding, array.__getitem__))
            placed.append((path, v))
        return nnx.from_flat_state(placed)

    filled = {entry.path for entry in table} - {entry.path for entry in table if entry.official not in origin}
    return place(params), place(constants), filled


def _matched(field: str, source: Weights, shapes, vocab_size: int, task: str):
    if source.kind not in KINDS[field]:
        fields = [other for other in FIELDS if source.kind in KINDS[other]]
        raise ValueError(
            f"init.{field}: {source.path} holds {source.description}; give it as config.init.{fields[0]}"
        )
    try:
        # What a conversion drew for itself is no better than what this run draws, and may have other sizes.
        own = {name: array for name, array in source.tensors.items() if name not in source.new}
        tensors = vlbert_names.warm_start(own, task, source.kind == "vlbert")
        found = vlbert_names.match_tensors(tensors, shapes, vocab_size)
    except ValueError as error:
        raise ValueError(f"init.{field}: {source.path}: {error}") from error
    if not found.matched:
        raise ValueError(f"init.{field}: nothing in {source.path} belongs to this model")
    required = vlbert_names.REQUIRED[source.kind]
    absent = [name for name in found.missing if required.match(name) and name not in source.new]
    if absent:
        raise ValueError(f"init.{field}: {source.path} lacks {', '.join(absent[:8])} ({len(absent)} tensors)")
    return tensors, found


def _log_origins(shapes, vocab_size: int, origin: dict[str, str]):
    """One line per group of parameters: how many of its tensors came from where."""
    groups = collections.defaultdict(collections.Counter)
    for entry in vlbert_names.name_table(shapes, vocab_size):
        groups["/".join(entry.path[:2] if entry.path[0] in ("vlbert", "fast_rcnn") else entry.path[:1])][
            origin.get(entry.official, "scratch")
        ] += 1
    for group, counts in groups.items():
        log.info("parameters of %s: %s", group, ", ".join(f"{n} from {where}" for where, n in counts.items()))


def _on_host(array: jax.Array) -> np.ndarray:
    """The whole array; with several hosts each holds a part of it."""
    return np.asarray(array if array.is_fully_addressable else process_allgather(array, tiled=True))
