"""Initialize a run from the weights that `config.init` names, and log the origin of every group of parameters."""

import collections
import logging
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.experimental.multihost_utils import process_allgather

from vlbert_jax.model.architectures import VLBERT, Architecture, get_architecture
from vlbert_jax.tasks import PRETRAINING, get_task, task_of_names
from vlbert_jax.weights import family_names, family_start, vlbert_names
from vlbert_jax.weights.bert_names import official_to_bert
from vlbert_jax.weights.containers import find_weights
from vlbert_jax.weights.entry import Entry
from vlbert_jax.weights.orbax import newest_step
from vlbert_jax.weights.read import Weights, not_finite, read_weights
from vlbert_jax.weights.two_stream_names import plain_names_of_bert

log = logging.getLogger(__name__)
LAYER = re.compile(r"(.*encoder\.\w*layers?)\.(\d+)\.")

FIELDS = ("bert", "resnet", "checkpoint")  # of config.init; the last one that has a tensor counts
PUBLISHED = {"bert": ("google-bert/bert-base-uncased", "google-bert/bert-large-uncased"), "resnet": ()}  # at the hub
KINDS = {"bert": ("bert",), "resnet": ("resnet",), "checkpoint": ("vlbert", "sibling", "bert", "resnet")}


def named_sources(init: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields of `config.init` that name weights.

    Raises:
        ValueError: None does, and `init.scratch` is False.
    """
    named = {field: init[field] for field in FIELDS if init[field]}
    if not named and not init["scratch"]:
        raise ValueError(
            "config.init names no weights to start from. Pre-train (`make demo` writes workdirs/demo) and set "
            "--config.init.checkpoint=WORKDIR, or set --config.init.bert=BERT and --config.init.resnet=RESNET, as "
            "pre-training does; to start from random weights, set --config.init.scratch=True."
        )
    return named


def check_sources(config: ml_collections.ConfigDict, workdir: pathlib.Path, mode: str) -> None:
    """Check that the weights which a run starts from exist, before anything slow starts.

    Raises:
        FileNotFoundError, ValueError: They do not exist, or it is ambiguous what to evaluate.
    """
    own, named = newest_step(workdir), [f for f in FIELDS if config.init[f]]
    if mode != "train" and own is None and not named:
        raise FileNotFoundError(f"There is nothing to {mode}: {workdir} has no checkpoint, and config.init is empty.")
    if mode != "train" and own is not None and named:
        raise ValueError(
            f"It is ambiguous what to {mode}: the run in {workdir}, or config.init.{named[0]}. Leave config.init out "
            "for the first, or choose another --workdir for the second."
        )
    if own is None:
        for field, source in named_sources(config.init.to_dict()).items():
            find_weights(source, PUBLISHED.get(field))


def load_into(
    params: nnx.State,
    constants: nnx.State,
    encoder: Mapping[str, Any],
    task: str,
    init: Mapping[str, str],
    complete: bool = False,
    extractor: str = "",
    architecture: str = VLBERT.name,
    answer_rows: Callable[[int], np.ndarray | None] | None = None,
) -> tuple[nnx.State, nnx.State, set[tuple]]:
    """Return the two states with the weights that `init` names, on the devices where they are.

    Weights of pre-training become those that `task` starts from (vlbert_names.warm_start). Of those of another
    task the trunk is taken. A parameter that no source has keeps its value.

    Args:
        params: Trained parameters.
        constants: Frozen parameters and statistics.
        encoder: Sizes of the encoder.
        task: Name of the task.
        init: Field of `config.init` -> path of the weights.
        complete: Whether a tensor that no source has is an error.
        extractor: Extractor of the features of the corpus, "" if unknown.
        architecture: Name of the architecture of the model.
        answer_rows: `Task.answer_rows` of the run's config, for heads of pre-training over another number of answers.

    Returns:
        The states, and the paths of the parameters that the sources fill.

    Raises:
        FileNotFoundError: A source does not exist.
        ValueError: A source is of another kind or architecture, lacks tensors, differs in sizes, or was
            trained on precomputed features of another extractor.
    """
    switches = get_architecture(architecture)
    name_table = family_names.table_of(switches)
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
                f"but config.model.encoder.num_heads is {encoder['num_heads']}."
            )
        trained_on = ((source.config or {}).get("data") or {}).get("extractor") or ""
        if extractor and trained_on and trained_on != extractor:
            raise ValueError(
                f"init.{field}: {source.path} was trained on features of extractor {trained_on}, but the corpus has "
                f"those of {extractor}. Features of different detectors, weights or settings cannot be mixed."
            )
        # Answers that pre-training does not know get logits of 0, which fine-tuning changes: no weights to evaluate.
        tensors, found = _matched(field, source, shapes, vocab_size, task, switches, None if complete else answer_rows)
        read.append((tensors, found))
        origin |= dict.fromkeys(found.matched, f"init.{field}")
        log.info("init.%s: %s, %s; %d tensors taken", field, init[field], source.description, len(found.matched))
        if bad := not_finite({name: tensors[name] for name in found.matched}):
            log.warning("init.%s: NaN or infinite values in %s", field, ", ".join(bad))
    table = list(name_table(shapes, vocab_size))
    _log_origins(table, origin)
    optional = {*vlbert_names.OF_PRETRAINING, *family_names.OWN_TOKENS.values()}
    lacking = [entry.official for entry in table if entry.official not in {*origin, *optional}]
    if complete and lacking:
        raise ValueError(
            f"{' and '.join(init.values())}: {len(lacking)} tensors of a model for {task} are missing, such as "
            f"{lacking[0]}. {get_task(task).missing_remedy}"
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


def _matched(
    field: str, source: Weights, shapes, vocab_size: int, task: str, architecture: Architecture, answer_rows
):
    if source.kind not in KINDS[field]:
        fields = [other for other in FIELDS if source.kind in KINDS[other]]
        raise ValueError(
            f"init.{field}: {source.path} holds {source.description}; set it as config.init.{fields[0]}."
        )
    if source.kind in ("vlbert", "sibling") and source.architecture != architecture.name:
        raise ValueError(
            f"init.{field}: {source.path} has weights of {source.architecture}, but config.model.architecture is "
            f"{architecture.name!r}: set --config.model.architecture={source.architecture}, or choose other weights"
        )
    try:
        # Tensors that a conversion initialized are no better than those of this run, and may differ in size.
        own = {name: array for name, array in source.tensors.items() if name not in source.new}
        if source.kind == "bert" and architecture is not VLBERT:
            tensors = plain_names_of_bert(own) if architecture.streams == 2 else official_to_bert(own)
        elif source.kind != "sibling":
            other = task_of_names(own)
            if _differs(field, source, other, task) and task not in vlbert_names.tasks_of_heads(own):
                own = vlbert_names.without_heads(own, other)
            tensors = vlbert_names.warm_start(own, task, source.kind == "vlbert")
        else:
            differs = _differs(field, source, source.task, task)
            tensors = family_start.without_heads(own, source.task, architecture.name) if differs else own
            if source.task == PRETRAINING:
                tensors = family_start.without_object_words(tensors, vocab_size)
                tensors = _with_answers_of_run(field, tensors, shapes, answer_rows)
                if kernel := shapes.get(("matching_head", "kernel")):
                    tensors = family_start.with_start_of_retrieval(tensors, kernel[1])
        rows = shapes.get(("vlbert", "segment_embeddings"), (0,))[0]
        if rows and (source.kind == "bert" or source.task == PRETRAINING):
            tensors = family_start.with_segments(tensors, task, architecture.name, rows)
        found = vlbert_names.match_tensors(tensors, shapes, vocab_size, family_names.table_of(architecture))
    except ValueError as error:
        wanted = (entry.official for entry in family_names.table_of(architecture)(shapes, vocab_size))
        raise ValueError(f"init.{field}: {source.path}: {_other_layers(source.tensors, wanted) or error}") from error
    if not found.matched:
        raise ValueError(f"init.{field}: nothing in {source.path} belongs to this model")
    required = vlbert_names.REQUIRED[source.kind]
    if source.kind == "bert" and architecture is not VLBERT:
        required = family_names.REQUIRED_OF_BERT
    absent = [name for name in found.missing if required.match(name) and name not in source.new]
    if absent:
        raise ValueError(f"init.{field}: {source.path} lacks {', '.join(absent[:8])} ({len(absent)} tensors)")
    return tensors, found


def _other_layers(tensors: Iterable[str], wanted: Iterable[str]) -> str:
    """Return which numbers of layers of a source are not those of the model, as a predicate; "" where all are."""
    found = ({match.groups() for match in map(LAYER.match, names) if match} for names in (tensors, wanted))
    known, own = (collections.Counter(module for module, _ in layers) for layers in found)
    others = [f"{known[name]} in {name} (here {own[name]})" for name in own if known[name] not in (0, own[name])]
    field = "two_stream.layers" if len(known) > 1 else "encoder.num_layers"
    return f"its layers are {', '.join(others)}: set config.model.{field} as in these weights" if others else ""


def _with_answers_of_run(field: str, tensors: dict[str, np.ndarray], shapes, answer_rows) -> dict[str, np.ndarray]:
    """Return LXMERT's weights of pre-training with a head over the answers of the run, where their number differs.

    As in the official code the last layer has the rows of the answers that pre-training knows, and zeros for the
    others. Without a list of its answers, or where the head of the run has another hidden layer, there is no head.
    """
    known = tensors.get("answer_head.logit_fc.3.weight")
    wanted = shapes.get(("answer_head", "classes", "kernel"), (0,))[-1]
    if known is None or wanted in (0, len(known)):
        return tensors
    hidden = tensors["answer_head.logit_fc.0.weight"].shape[::-1]
    same = shapes.get(("answer_head", "transform", "kernel")) == hidden
    rows = answer_rows(len(known)) if same and answer_rows else None
    if rows is None:
        log.info(
            "init.%s: its head has %d answers and that of the run %d, so it is initialized", field, len(known), wanted
        )
        return {name: array for name, array in tensors.items() if not name.startswith("answer_head.")}
    log.info(
        "init.%s: its head has %d answers; %d of the %d of the run are among them, and the others start from zeros",
        field, len(known), int((rows >= 0).sum()), wanted,
    )  # fmt: skip
    last = {name: tensors[name] for name in ("answer_head.logit_fc.3.weight", "answer_head.logit_fc.3.bias")}
    # Row -1 is the one of zeros.
    return tensors | {name: np.concatenate([array, np.zeros_like(array[:1])])[rows] for name, array in last.items()}


def _differs(field: str, source: Weights, other: str, task: str) -> bool:
    """Return whether weights are those of a model for another task than the run's; log what is taken of them.

    Raises:
        ValueError: The run is one of pre-training.
    """
    if other in (task, PRETRAINING):
        return False
    if task == PRETRAINING:
        raise ValueError(f"These are weights of a model for {other}; pre-training starts from pre-training or a BERT.")
    log.info("init.%s: %s is a model for %s; its trunk is taken, and heads for %s that it lacks are initialized",
             field, source.path, other, task)  # fmt: skip
    return True


def _log_origins(table: Iterable[Entry], origin: dict[str, str]):
    """Log, for each group of parameters, how many of its tensors came from each source."""
    groups = collections.defaultdict(collections.Counter)
    for entry in table:
        groups["/".join(entry.path[:2] if entry.path[0] in ("vlbert", "two_stream", "fast_rcnn") else entry.path[:1])][
            origin.get(entry.official, "scratch")
        ] += 1
    for group, counts in groups.items():
        log.info("parameters of %s: %s", group, ", ".join(f"{n} from {where}" for where, n in counts.items()))


def _on_host(array: jax.Array) -> np.ndarray:
    """Return the whole array, of which each process may hold a part."""
    return np.asarray(array if array.is_fully_addressable else process_allgather(array, tiled=True))
