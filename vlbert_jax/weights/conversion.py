"""Conversion of weights: a source, the model it belongs to, and the target format."""

import collections
import dataclasses
import functools
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import jax
import ml_collections
import numpy as np
from flax import nnx

from vlbert_jax.files import atomic_write
from vlbert_jax.model.architectures import VLBERT, Architecture
from vlbert_jax.model.config import architecture_of
from vlbert_jax.model.structure import structure_of
from vlbert_jax.tasks import PRETRAINING, TASKS, get_task
from vlbert_jax.weights import export, family_names, vlbert_names
from vlbert_jax.weights.bert_names import official_to_bert
from vlbert_jax.weights.model_card import stored_facts, write_card
from vlbert_jax.weights.read import Weights, flatten_tree, of_task, read_weights
from vlbert_jax.weights.resnet_names import official_to_resnet
from vlbert_jax.weights.second_heads import with_second_head
from vlbert_jax.weights.sibling_config import BOTTOM_UP, family_config
from vlbert_jax.weights.stored_config import SCHEMA, VOCABULARIES, own_vocabularies

BERT_NEEDS = (
    vlbert_names.WORDS, vlbert_names.SEGMENTS, vlbert_names.POSITIONS,
    "vlbert.encoder.layer.0.intermediate.dense.weight",
)  # fmt: skip


# --- Sizes ------------------------------------------------------------------------------------------------------------


def model_config(source: Weights, task: str, num_heads: int | None = None) -> ml_collections.ConfigDict:
    """Return the config fields that the weights determine; the others are those of VL-BERT base."""
    shapes = {name: array.shape for name, array in source.tensors.items()}
    if source.config is not None:
        fields = ("model", "data", "losses", "compute_dtype")
        config = ml_collections.ConfigDict({name: source.config[name] for name in fields})
    elif source.kind == "sibling":
        config = ml_collections.ConfigDict(family_config(source, num_heads))
    else:
        image = f"{vlbert_names.BACKBONE_NAME}.conv1.weight" in shapes
        classifier = f"{vlbert_names.official_modules()['region_classifier']}.weight" in shapes
        geometry_size = VLBERT.geometry_size
        hidden_vector = "object_mask_visual_embedding.weight" in shapes
        config = ml_collections.ConfigDict(
            dict(
                compute_dtype="float32",
                model=dict(
                    encoder=_encoder(shapes, source.num_heads),
                    region_head=_region_head(shapes),
                    train_region_head=image,
                    feature_size=shapes.get(vlbert_names.PROJECTION, (0, 2048 + geometry_size))[1] - geometry_size,
                    num_region_classes=shapes.get("vlbert.mvrc_head.region_cls_pred.weight", (1601,))[0],
                ),
                data=dict(features="image" if image else "precomputed", hide_pixels=image and not hidden_vector)
                | ({} if image else dict(expects=BOTTOM_UP)),
                losses=dict(relationship=vlbert_names.RELATIONSHIP in shapes, region=float(classifier)),
            )
        )
    with config.unlocked():
        if num_heads is not None:
            config.model.encoder.num_heads = num_heads
        config.task, config.opening = task, dict(steps=0)
        if source.config is None or task != source.task:  # a stored config of the task says more than the tensors
            own, sibling = get_task(task), source.kind == "sibling"
            fields = own.config_from_family(source.architecture, shapes) if sibling else own.config_from_weights(shapes)
            for name, value in (fields | source.fields).items():
                block, _, field = name.rpartition(".")
                functools.reduce(getattr, filter(None, block.split(".")), config)[field] = value
    return config


def _encoder(shapes: Mapping[str, tuple], num_heads: int | None) -> dict:
    vocab_size, hidden_size = shapes.get(vlbert_names.WORDS, (30522, 768))
    layer = "vlbert.encoder.layer.0.intermediate.dense.weight"
    num_layers = sum(name.endswith("intermediate.dense.weight") for name in shapes)
    visual_size = shapes.get(vlbert_names.PROJECTION, (hidden_size,))[0]
    if num_heads is None:  # weights do not determine it; every size of BERT has 64 columns per head
        num_heads = next(n for n in range(max(hidden_size // 64, 1), 0, -1) if hidden_size % n == 0)
    return dict(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers or 12,
        num_heads=num_heads,
        mlp_size=shapes.get(layer, (4 * hidden_size,))[0],
        max_positions=shapes.get(vlbert_names.POSITIONS, (512,))[0],
        num_segments=max(3, shapes.get(vlbert_names.SEGMENTS, (3,))[0]),
        visual_size=0 if visual_size == hidden_size else visual_size,
        visual_layer_norm="vlbert.visual_scale_text" not in shapes,
        pooler="vlbert.pooler.dense.weight" in shapes,
    )


def _region_head(shapes: Mapping[str, tuple]) -> dict:
    def blocks(prefix):
        return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})

    stages = [f"{vlbert_names.BACKBONE_NAME}.layer{i}." for i in (1, 2, 3)] + [f"{vlbert_names.C5_NAME}."]
    return dict(
        stem_width=shapes.get(f"{vlbert_names.BACKBONE_NAME}.conv1.weight", (64,))[0],
        widths=tuple(shapes.get(f"{stage}0.conv1.weight", (64 * 2**i,))[0] for i, stage in enumerate(stages)),
        blocks=tuple(blocks(stage) or usual for stage, usual in zip(stages, (3, 4, 23, 3), strict=True)),
        strides=(1, 2, 2),
        stride_in_1x1=True,
        frozen_stages=(1, 2),
        frozen_batch_norm=True,
    )


# --- Converting -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Conversion:
    """A source matched with the model of the target."""

    source: Weights
    task: str
    config: ml_collections.ConfigDict
    graphdef: nnx.GraphDef
    state: nnx.State  # abstract
    found: vlbert_names.Match
    tasks_of_heads: tuple[str, ...] = ()  # tasks that the source has heads of, where they are several

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """Official name -> tensor."""
        return self.source.tensors

    @property
    def architecture(self) -> Architecture:
        return architecture_of(self.config)

    @property
    def is_whole(self) -> bool:
        """Whether the source is a sibling's file of this task: the way back has its tensors, no more and no less."""
        return self.source.kind == "sibling" and self.task in (self.source.task, *self.source.tasks)

    @functools.cached_property
    def kept(self) -> dict[str, np.ndarray]:
        """Tensors of a sibling's file that this model does not read, as heads of other tasks: files get them back."""
        if not self.is_whole:
            return {}
        reasons = {name: family_names.reason_not_used(name, self.architecture) for name in self.found.unused}
        unused = {name: self.tensors[name] for name, reason in reasons.items() if reason not in ("", "duplicate")}
        return export.read_kept(self.source.folder) | unused

    @property
    def optional(self) -> tuple[str, ...]:
        """Tensors that an official model of the task may lack; for pre-training, the vector of text without images."""
        if self.source.kind == "sibling":
            return tuple(family_names.OWN_TOKENS.values())
        return vlbert_names.OF_PRETRAINING[: 1 if self.task == PRETRAINING else None]

    @property
    def absent(self) -> list[str]:
        """Tensors that the source should have but lacks."""
        # A sibling's file with heads that no task here reads is one of pre-training without its heads.
        no_heads = self.source.kind == "sibling" and family_names.MLM_BIAS not in self.tensors
        is_own = self.source.task == self.task and not (no_heads and self.task == PRETRAINING)
        if self.source.kind in ("vlbert", "sibling") and is_own:
            return [name for name in self.found.missing if name not in self.optional]
        return [name for name in self.found.missing if vlbert_names.REQUIRED[self.source.kind].match(name)]

    @property
    def unknown(self) -> list[str]:
        return [name for name in self.found.unused if not family_names.reason_not_used(name, self.architecture)]


def prepare_conversion(
    path: str | Path,
    task: str | None = None,
    num_heads: int | None = None,
    preferred: str = "",
    head: str = "",
    complete: Callable[[ml_collections.ConfigDict, Weights], ml_collections.ConfigDict] | None = None,
) -> Conversion:
    """Read weights and match them with a model.

    Args:
        path: Source of the weights.
        task: Task of the model; None = that of the weights. Weights of pre-training become its start.
        num_heads: Attention heads, where the source does not state them.
        preferred: Task of which a source with heads of several tasks is read, where `task` is None; one with the
            same option of the prediction command takes its place.
        head: The second of two heads of a task in 12-in-1 (weights/second_heads.py); "" = the first.
        complete: Function (config, source) that returns the config with which the model is built; None = the fields
            that the weights determine are enough.

    Raises:
        FileNotFoundError, ValueError: As `read_weights`, or shapes do not fit together.
    """
    source = read_weights(path)
    if head:
        source, preferred = with_second_head(source, head, preferred)
    several = vlbert_names.tasks_of_heads(source.tensors)
    available, own = (*source.tasks, *several), several[0] if several else source.task
    # Several tasks have one option: the weights decide which of them is meant.
    alike = [name for name in available if preferred in TASKS and TASKS[name].option == TASKS[preferred].option]
    task = task or next(iter([name for name in available if name == preferred] or alike), own)
    if task in several:
        source = of_task(source, task)
    try:
        if task not in (source.task, *source.tasks):  # tensors that a conversion initialized are initialized again
            source.tensors = {name: array for name, array in source.tensors.items() if name not in source.new}
            source.new = ()
        if source.kind != "sibling":
            source.tensors = vlbert_names.warm_start(source.tensors, task, source.kind == "vlbert")
        elif task != source.task != PRETRAINING and task not in source.tasks:
            raise ValueError(f"These are weights of a model for {source.task}; a model for {task} needs its own.")
        config = model_config(source, task, num_heads)
        heads, size = config.model.encoder.num_heads, config.model.encoder.hidden_size
        if heads < 1 or size % heads:
            raise ValueError(f"{heads} heads do not divide {size} columns; set --num_heads")
        config = complete(config, source) if complete else config
        graphdef, state = nnx.split(structure_of(functools.partial(get_task(task).build_model, config)))
        shapes = {tuple(map(str, path)): v.shape for path, v in nnx.to_flat_state(state)}
        table = family_names.table_of(architecture_of(config))
        found = vlbert_names.match_tensors(source.tensors, shapes, config.model.encoder.vocab_size, table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Conversion(source, task, config, graphdef, state, found, tuple(dict.fromkeys(available)))


def conversion_table(conversion: Conversion, form: str) -> str:
    """Return a table of what happens to the tensors: kind, number of tensors and of values, and their names."""
    source, found, sizes = conversion.source, conversion.found, conversion.tensors
    encoder = conversion.config.model.encoder
    rows = [("matched", len(found.matched), sum(sizes[name].size for name in found.matched), "")]
    dropped = {reason: dict(sizes) for reason, sizes in source.dropped.items()}
    for name in found.unused:
        reason = family_names.reason_not_used(name, conversion.architecture) or "unknown"
        dropped.setdefault(reason, {})[name] = sizes[name].size
    for reason, tensors in dropped.items():
        which = "" if reason in ("duplicate", "batch counter", "optimizer state") else _some(list(tensors))
        is_kept = reason == "batch counter" or tensors.keys() <= conversion.kept.keys()
        what = f"kept apart: {reason}" if is_kept else f"dropped: {reason}"
        rows.append((what, len(tensors), sum(tensors.values()), which))
    if found.missing and form != "hf" and (source.kind != "resnet" or form == "orbax"):
        shapes = {tuple(map(str, path)): v.shape for path, v in nnx.to_flat_state(conversion.state)}
        new, count, missing = collections.Counter(), 0, set(found.missing)
        for entry in family_names.table_of(conversion.architecture)(shapes, encoder.vocab_size):
            if entry.official in missing:
                new["/".join(entry.path[:-1] if len(entry.path) > 2 else entry.path)] += 1
                count += entry.part(np.broadcast_to(np.float32(0), shapes[entry.path])).size
        rows.append(("newly initialized", len(found.missing), count, _some(list(new))))
    lines = [f"{what:32}{tensors:>8,}{numbers:>14,}  {which}".rstrip() for what, tensors, numbers, which in rows]
    head = f"{source.path}: {source.description}"
    if source.kind != "resnet":
        head += f"; {encoder.num_layers} layers x {encoder.hidden_size}, {encoder.num_heads} heads"
        head += f", {encoder.vocab_size:,} words"
    return "\n".join([head, f"{'':32}{'tensors':>8}{'numbers':>14}", *lines])


def _some(items: list[str], most: int = 6) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def write_conversion(
    conversion: Conversion, target: Path, form: str, dtype: str | None, add_files: Callable[[Path], None] | None = None
):
    """Write the target atomically; it replaces what is there, a folder too (`export.may_replace` checks it before).

    An Orbax folder and a file with official names hold whole models: parameters that the source lacks are
    initialized. A file of a ResNet and a Hugging Face folder hold only what the source has.

    Args:
        conversion: Source and model.
        target: File or folder.
        form: orbax, safetensors, pt or hf.
        dtype: Type of the values; None = float32.
        add_files: Function that writes the tokenizer into a folder: that of `hf`, or one in that of `orbax`.

    Raises:
        ValueError: The format cannot hold the source.
    """
    source, config = conversion.source, conversion.config
    with atomic_write(target, replaces_folder=True) as path:
        if form == "hf" and source.kind == "sibling":
            named = export.cast_tensors(official_tensors(conversion, target, kept=False), dtype)
            kind = hugging_face_class(source.path, conversion.task, conversion.architecture)
            export.write_sibling(path, named, config.model.to_dict(), kind)
            if add_files is not None:
                add_files(path)
        elif form == "hf":
            kept = {n: conversion.tensors[n] for n in conversion.found.matched if n not in source.new}
            if lacking := [name for name in BERT_NEEDS if name not in kept]:
                raise ValueError(f"{source.path} lacks {', '.join(lacking)}, which a BERT needs")
            bert = official_to_bert(kept, source.segments)
            export.write_hugging_face(path, export.cast_tensors(bert, dtype), config.model.encoder.num_heads)
            if add_files is not None:
                add_files(path)
        elif form == "orbax":
            params, constants = arrays_of(conversion, dtype)
            new = [*source.new, *conversion.found.missing]
            facts = dict(batch_counters=source.counters, newly_initialized=new, bert_segments=source.segments)
            kept = export.cast_tensors(conversion.kept, dtype)
            export.write_orbax(path, params, constants, {"schema": SCHEMA} | config.to_dict() | facts, kept)
            if copies := own_vocabularies(source.path):
                shutil.copytree(Path(next(iter(copies.values()))).parent, path / VOCABULARIES)
            elif add_files is not None:
                (path / VOCABULARIES).mkdir()
                add_files(path / VOCABULARIES / "vocab")
        else:
            if source.kind == "resnet":
                kept = {name: conversion.tensors[name] for name in conversion.found.matched}
                named = official_to_resnet(kept, source.counters)
            else:
                named = official_tensors(conversion, target)
            if form == "pt":
                wrap = source.kind not in ("resnet", "sibling")
                export.write_torch(path, export.cast_tensors(named, dtype), wrap)
            else:
                stored = None if source.kind == "resnet" else portable_config(conversion)
                export.write_safetensors(path, export.cast_tensors(named, dtype), stored)
        if path.is_dir():
            _write_card(conversion, path, target.name, form == "hf")


def _write_card(conversion: Conversion, folder: Path, name: str, transformers: bool) -> None:
    """Write the model card of a converted folder; it repeats what the card of the source says of the training."""
    source = conversion.source
    training, results = stored_facts(source.path)
    same_task = conversion.task == source.task
    origin = f"{Path(source.path).name}: {source.description}"  # without folders
    facts = dict(source=origin) | (training if same_task else {})
    untrained = len({*source.new, *conversion.found.missing} - {*conversion.optional})
    scores = results if same_task and not transformers else []
    write_card(folder, name, conversion.config.to_dict(), facts, scores, untrained, transformers)


def hugging_face_class(path: str, task: str, architecture: Architecture) -> str:
    """Return the class of Hugging Face's transformers that loads a sibling; raise ValueError where there is none."""
    kind = get_task(task).hugging_face.get(architecture.name)
    if kind is None:
        raise ValueError(
            f"{path}: Hugging Face has no class of {architecture.name} for {task}; write a .pt or .safetensors file"
        )
    return kind


def official_tensors(conversion: Conversion, target: Path, kept: bool = True) -> dict[str, np.ndarray]:
    """Return the whole model as the original code stores it; the suffix of the target may choose the names.

    With `kept`, the tensors of the source that the model does not read are there as well.
    """
    source, config = conversion.source, conversion.config
    new = {*source.new, *conversion.found.missing}
    if not conversion.is_whole:
        new &= {*conversion.optional}
    params, constants = arrays_of(conversion, None)
    ours = flatten_tree(dict(params=params, constants=constants))
    table = family_names.table_of(conversion.architecture)
    official = vlbert_names.to_official(ours, config.model.encoder.vocab_size, table)
    official = {name: array for name, array in official.items() if name not in new}
    if source.kind == "sibling":
        official |= conversion.kept if kept else {}
        return family_names.original_state_dict(official, conversion.architecture, target.suffix)
    return vlbert_names.official_state_dict(official, source.counters, conversion.task)


def portable_config(conversion: Conversion) -> dict:
    """Return the config fields that belong to the weights on any machine: all but the folder of the data."""
    config, run = conversion.config.to_dict(), conversion.source.config or {}
    config["data"].pop("data_dir", None)
    same_task = conversion.task == conversion.source.task
    kept = {name: run[name] for name in ("subtask", "blind") if same_task and name in run}
    return {"schema": SCHEMA} | config | kept


def arrays_of(conversion: Conversion, dtype: str | None, unread: Collection[str] = ()) -> tuple[dict, dict]:
    """Return parameters and constants as nested dicts: from the source, else initialized as with seed 0.

    Rows that no token has, and the official tensors `unread`, which nobody will read, may be 0. The tensors of the
    source are released one by one, so that no weight is in memory twice.
    """
    flat = {tuple(map(str, path)): v for path, v in nnx.to_flat_state(conversion.state)}
    partial = [path for path in flat if not conversion.found.covers(path, unread)]

    @jax.jit  # the compiler removes the initialization of what is not returned
    def initial():
        rngs = nnx.Rngs(jax.random.key(0, impl="threefry2x32"))
        model = get_task(conversion.task).build_model(conversion.config, rngs)
        state = {tuple(map(str, path)): v[...] for path, v in nnx.to_flat_state(nnx.state(model))}
        return [state[path] for path in partial]

    initialized = dict(zip(partial, initial(), strict=True)) if partial else {}
    params, constants = {}, {}
    for path, v in flat.items():
        array = np.array(initialized.pop(path)) if path in initialized else np.zeros(v.shape, np.float32)
        conversion.found.fill(array, path, conversion.tensors)
        for entry in conversion.found.entries.get(path, ()):
            conversion.tensors.pop(entry.official)  # release its memory
        node = params if isinstance(v, nnx.Param) else constants
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = export.cast_tensors({"/".join(path): array}, dtype)["/".join(path)]
    return params, constants
