"""Names of VL-BERT tensors: the one table from official names to parameter paths.

Paths are those of an NNX state. Weights of every kind are first brought to the official VL-BERT names,
those of its `state_dict` without "module.", and from there to paths; the way back is the reverse.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import numpy as np
from jaxtyping import Shaped

from vlbert_jax.batch import END, IMG, IMG_MASK
from vlbert_jax.tasks import PRETRAINING, all_tasks, get_task, task_of_names
from vlbert_jax.weights.entry import NORM_LEAVES, Entry, copy_into

TRUNK = {  # modules that every task has
    "vlbert/embedding_norm": "vlbert.embedding_LayerNorm",
    "vlbert/text_visual_norm": "vlbert.visual_ln_text",
    "vlbert/region_visual_norm": "vlbert.visual_ln_object",
    "vlbert/text_resize": "vlbert.visual_1x1_text",
    "vlbert/region_resize": "vlbert.visual_1x1_object",
    "vlbert/encoder/layers/attention/query": "vlbert.encoder.layer.{layer}.attention.self.query",
    "vlbert/encoder/layers/attention/key": "vlbert.encoder.layer.{layer}.attention.self.key",
    "vlbert/encoder/layers/attention/value": "vlbert.encoder.layer.{layer}.attention.self.value",
    "vlbert/encoder/layers/attention/output": "vlbert.encoder.layer.{layer}.attention.output.dense",
    "vlbert/encoder/layers/attention_norm": "vlbert.encoder.layer.{layer}.attention.output.LayerNorm",
    "vlbert/encoder/layers/intermediate": "vlbert.encoder.layer.{layer}.intermediate.dense",
    "vlbert/encoder/layers/output": "vlbert.encoder.layer.{layer}.output.dense",
    "vlbert/encoder/layers/output_norm": "vlbert.encoder.layer.{layer}.output.LayerNorm",
    "vlbert/pooler": "vlbert.pooler.dense",
    "vlbert/region_pooler": "vlbert.v_pooler.dense",  # where the pooled vector is a product; the name is ViLBERT's
    "fast_rcnn/projection": "image_feature_extractor.obj_downsample.1",
}
SINGLE = {  # parameters that are whole official tensors
    "vlbert/position_embeddings": "vlbert.position_embeddings.weight",
    "vlbert/segment_embeddings": "vlbert.token_type_embeddings.weight",
    "vlbert/text_only_visual": "aux_text_visual_embedding.weight",
    "fast_rcnn/hidden_appearance": "object_mask_visual_embedding.weight",
}
SCALARS = {
    "vlbert/text_visual_norm/scale": "vlbert.visual_scale_text",
    "vlbert/region_visual_norm/scale": "vlbert.visual_scale_object",
}
TOKEN_TABLE = ("vlbert", "token_embeddings")
EXTRA_TOKENS = {
    IMG: "object_linguistic_embeddings.weight",
    IMG_MASK: "object_mask_word_embedding.weight",
    END: "vlbert.end_embedding.weight",
}
WORDS = "vlbert.word_embeddings.weight"
TRAINED_WORDS = "vlbert.special_word_embeddings.weight"  # `word_embedding_frozen`: it replaces the first rows
POSITIONS = "vlbert.position_embeddings.weight"
SEGMENTS = "vlbert.token_type_embeddings.weight"
MLM_BIAS = "vlbert.mlm_head.predictions.bias"
RELATIONSHIP = "vlbert.relationsip_head.caption_image_relationship.weight"
PROJECTION = "image_feature_extractor.obj_downsample.1.weight"
DECODER = "vlbert.mlm_head.predictions.decoder.weight"
BACKBONE_NAME = "image_feature_extractor.backbone"
C5_NAME = "image_feature_extractor.roi_head_feature_extractor"
C5_AGAIN = "image_feature_extractor.head.0"
HEADS = "heads."  # before the task and the name of a head, in weights of several tasks
BLOCK = re.compile(r"fast_rcnn/(?:backbone/stages/(\d+)|c5)/blocks/(\d+)/(conv\d|shortcut)")
# Tensors that only the official pre-training model has, in addition to its heads.
OF_PRETRAINING = ("aux_text_visual_embedding.weight", EXTRA_TOKENS[IMG_MASK], "object_mask_visual_embedding.weight")
# Reason why a tensor is not used -> pattern of its official name; the first match counts.
REASONS = {
    "duplicate": re.compile(r"image_feature_extractor\.head\.0\.|vlbert\.mlm_head\.predictions\.decoder\."),
    "batch counter": re.compile(r".*\.num_batches_tracked$"),
    "position counter": re.compile(r"vlbert\.position_ids$"),
    "ImageNet classifier": re.compile(r"image_feature_extractor\.backbone\.fc\."),
    "head of another task": re.compile(
        r"vlbert\.(mlm_head|mvrc_head|relationsip_head|(v_)?pooler|classifier|qa_outputs)\.|object_mask_|"
        r"question_head\.|aux_text_visual_embedding\.|image_feature_extractor\.regularizing_predictor\."
    ),
    "region head": re.compile(r"image_feature_extractor\.(backbone|roi_head_feature_extractor)\."),
}


def official_modules() -> dict[str, str]:
    """Return module of vlbert_jax -> module of the official model: the trunk and the heads of all tasks."""
    found = dict(TRUNK)
    for task in all_tasks():
        found |= task.official_names
    return found


def name_table(shapes: Mapping[tuple, tuple[int, ...]], vocab_size: int) -> Iterator[Entry]:
    """Yield every official tensor of a model with these parameters; `shapes` maps parameter paths to shapes."""
    modules = official_modules()
    for path, shape in shapes.items():
        name = "/".join(map(str, path))
        module, _, leaf = name.rpartition("/")
        if path == TOKEN_TABLE:
            yield Entry(WORDS, path, rows=(0, vocab_size))
            for offset, official in EXTRA_TOKENS.items():
                yield Entry(official, path, rows=(vocab_size + offset, vocab_size + offset + 1))
        elif name.endswith("mlm_head/bias"):  # perhaps one of several heads
            yield Entry(name.removesuffix("mlm_head/bias").replace("/", ".") + MLM_BIAS, path, rows=(0, vocab_size))
        elif name in SCALARS and shape == ():
            yield Entry(SCALARS[name], path)
        elif name in SINGLE:
            yield Entry(SINGLE[name], path, layout="row" if len(shape) == 1 else "same")
        elif name.startswith(("fast_rcnn/backbone/", "fast_rcnn/c5/")):
            yield convolution_entry(module, leaf, path)
        elif module in modules:
            official = modules[module] + (".bias" if leaf == "bias" else ".weight")
            layout = "linear" if leaf == "kernel" else "same"
            for layer in range(shape[0]) if "{layer}" in official else (None,):
                yield Entry(official.format(layer=layer), path, layout, layer)
        else:
            raise KeyError(f"parameter {name} has no official name; add it to `official_names` of its task")


def convolution_entry(module: str, leaf: str, path: tuple) -> Entry:
    """Return the tensor of a parameter of the ResNet."""
    if module == "fast_rcnn/backbone/stem":
        prefix, convolution, norm = BACKBONE_NAME, "conv1", "bn1"
    else:
        stage, block, part = BLOCK.fullmatch(module).groups()
        prefix = f"{C5_NAME}.{block}" if stage is None else f"{BACKBONE_NAME}.layer{int(stage) + 1}.{block}"
        shortcut = part == "shortcut"
        convolution, norm = ("downsample.0", "downsample.1") if shortcut else (part, part.replace("conv", "bn"))
    if leaf == "kernel":
        return Entry(f"{prefix}.{convolution}.weight", path, "conv")
    return Entry(f"{prefix}.{norm}.{NORM_LEAVES[leaf]}", path)


REQUIRED = {  # tensors that a source of a kind must have; others may be initialized
    "bert": re.compile(r"vlbert\.((word|position|token_type)_embeddings|embedding_LayerNorm|encoder)\."),
    "resnet": re.compile(r"image_feature_extractor\.(backbone|roi_head_feature_extractor)\."),
    "vlbert": re.compile(
        r"vlbert\.(?!pooler|v_pooler|mlm_head|mvrc_head|relationsip_head|special)|object_linguistic_embeddings\.|"
        r"image_feature_extractor\.obj_downsample\."
    ),
    "sibling": re.compile(r"bert\.(?!pooler|v_pooler)|(v_)?embeddings\.|encoder\."),
}


@dataclasses.dataclass
class Match:
    """Official tensors matched with a model: those that fill a parameter, missing ones, and unused ones."""

    entries: dict[tuple, list[Entry]] = dataclasses.field(default_factory=dict)
    missing: list[str] = dataclasses.field(default_factory=list)
    unused: list[str] = dataclasses.field(default_factory=list)
    # Parameter -> tensors of it that are missing or have too few rows.
    lacking: dict[tuple, set[str]] = dataclasses.field(default_factory=dict)

    @property
    def matched(self) -> list[str]:
        return [entry.official for entries in self.entries.values() for entry in entries]

    def covers(self, path: tuple, unread: Collection[str] = ()) -> bool:
        """Return whether the tensors fill what is read of the parameter at `path`; those of `unread` may be missing."""
        return (path in self.entries or path in self.lacking) and self.lacking.get(path, set()) <= {*unread}

    def fill(self, array: Shaped[np.ndarray, "..."], path: tuple, tensors: Mapping[str, np.ndarray]):
        """Write what the tensors hold of the parameter at `path` into `array`; other values stay."""
        for entry in self.entries.get(path, ()):
            source, target = entry.to_parameter(tensors[entry.official]), entry.part(array)
            if is_segment_table(entry.official):  # BERT has two segments; the third keeps its initial value
                target = target[: len(source)]
            copy_into(target, source)


def match_tensors(
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[tuple, tuple[int, ...]],
    vocab_size: int,
    table: Callable[..., Iterator[Entry]] = name_table,
) -> Match:
    """Return which official tensors fill which parameters.

    Args:
        tensors: Official name -> tensor.
        shapes: Parameter path -> shape.
        vocab_size: Size of the vocabulary.
        table: Names of a family; called with shapes and the size of the vocabulary.

    Raises:
        ValueError: A tensor has another shape than its parameter; the message has both.
    """
    found, wanted = Match(), set()
    for entry in table(shapes, vocab_size):
        wanted.add(entry.official)
        if entry.official not in tensors:
            found.missing.append(entry.official)
            found.lacking.setdefault(entry.path, set()).add(entry.official)
            continue
        given = tensors[entry.official].shape
        model = entry.to_official(entry.part(np.broadcast_to(np.float32(0), shapes[entry.path]))).shape
        few_segments = is_segment_table(entry.official) and given[1:] == model[1:] and given[0] < model[0]
        if few_segments:
            found.lacking.setdefault(entry.path, set()).add(entry.official)
        if given != model and not few_segments:
            raise ValueError(
                f"{entry.official} has shape {given}, the model wants {model}: choose the model's sizes "
                "(config.model) as those of the weights"
            )
        found.entries.setdefault(entry.path, []).append(entry)
        if entry.official == WORDS and TRAINED_WORDS in tensors:
            wanted.add(TRAINED_WORDS)
            rows = (0, len(tensors[TRAINED_WORDS]))
            found.entries[entry.path].append(Entry(TRAINED_WORDS, entry.path, rows=rows))
    found.unused = [name for name in tensors if name not in wanted]
    return found


def is_segment_table(official: str) -> bool:
    """Return whether a tensor is a table of segments, of words or of regions; it may have fewer rows than the model."""
    return official.endswith("token_type_embeddings.weight")


def reason_not_wanted(official: str) -> str:
    """Return why a model has no place for a tensor; "" for a tensor that is unknown."""
    if any(official.startswith(task.official_heads) for task in all_tasks()):
        return "head of another task"
    return next((reason for reason, pattern in REASONS.items() if pattern.match(official)), "")


def to_official(
    ours: Mapping[tuple, np.ndarray], vocab_size: int, table: Callable[..., Iterator[Entry]] = name_table
) -> dict[str, np.ndarray]:
    """Return the official tensors of a model, as views, each once."""
    entries = table({path: array.shape for path, array in ours.items()}, vocab_size)
    return {entry.official: entry.to_official(entry.part(ours[entry.path])) for entry in entries}


def official_state_dict(
    tensors: Mapping[str, np.ndarray], counters: Mapping[str, int], task: str = PRETRAINING
) -> dict[str, np.ndarray]:
    """Return the `state_dict` that the official loader expects.

    It has the tied decoder, C5 under both of its names, batch counters (0 where none is given), and the
    wrappers of single tasks and of data parallelism.
    """
    state = {name: array for name, array in tensors.items() if task == PRETRAINING or name not in OF_PRETRAINING}
    if MLM_BIAS in state and WORDS in state:
        state[DECODER] = state[WORDS]
    for name in [name for name in state if name.endswith(".running_var")]:
        counter = name.replace("running_var", "num_batches_tracked")
        state[counter] = np.asarray(counters.get(counter, 0), np.int64)
    for name in [name for name in state if name.startswith(f"{C5_NAME}.")]:
        state[name.replace(C5_NAME, C5_AGAIN)] = state[name]
    inner = get_task(task).official_prefix
    return {f"module.{re.sub(r'^vlbert[.]', inner, name)}": array for name, array in state.items()}


def plain_name(name: str) -> str:
    """Return an official name without the wrappers of data parallelism and of single tasks."""
    name = re.sub(r"^(module\.)+", "", name)
    return name.replace("vlbert._module.", "vlbert.")


# --- From a run of several tasks to one of them ---------------------------------------------------------------


def tasks_of_heads(names: Iterable[str]) -> tuple[str, ...]:
    """Return the tasks whose heads are among the tensors of a run of several tasks; () for other weights."""
    return tuple(dict.fromkeys(name.split(".")[1] for name in names if name.startswith(HEADS)))


def heads_of(tensors: Mapping[str, np.ndarray], task: str) -> dict[str, np.ndarray]:
    """Return the tensors of one task of a run of several tasks, by the names of a run of this task alone."""
    own = f"{HEADS}{task}."
    kept = {name: array for name, array in tensors.items() if not name.startswith(HEADS) or name.startswith(own)}
    return {name.removeprefix(own): array for name, array in kept.items()}


# --- From another task, or from pre-training, to a task ---------------------------------------------------


def without_heads(tensors: Mapping[str, np.ndarray], task: str) -> dict[str, np.ndarray]:
    """Return weights of a model for `task` as weights of pre-training, from which another task may start.

    The layers of its heads that started from pre-training have the names of there; the others are left out.
    """
    source = get_task(task)
    back = {new: old for old, new in source.starts_from.items() if isinstance(new, str)}
    found = {}
    for name, array in tensors.items():
        new = next((prefix for prefix in back if name.startswith(prefix)), "")
        if new or not name.startswith(source.official_heads):
            found[back.get(new, "") + name.removeprefix(new)] = array
    return found


def warm_start(tensors: Mapping[str, np.ndarray], task: str, of_vlbert: bool = True) -> dict[str, np.ndarray]:
    """Return weights of pre-training, or of BERT alone, as those from which `task` starts.

    Heads of the task start from heads of pre-training (`PARTIAL_PRETRAIN_PREFIX_CHANGES` of the official
    code), and rows of its segment table from other rows.

    Args:
        tensors: Official name -> tensor.
        task: Name of the task.
        of_vlbert: Whether the tensors are those of a VL-BERT; a BERT has no segment of its own to copy.

    Raises:
        ValueError: The weights are those of another task.
    """
    own = task_of_names(tensors)
    if own == task:
        return dict(tensors)
    if task in tasks_of_heads(tensors):
        return heads_of(tensors, task)
    if own != PRETRAINING:
        raise ValueError(f"These are weights of a model for {own}; a model for {task} starts from pre-training.")
    target = get_task(task)
    started = {}
    for name, array in tensors.items():
        old = next((prefix for prefix in target.starts_from if name.startswith(prefix)), None)
        new = "" if old is None else target.starts_from[old]
        for prefix in new if isinstance(new, tuple) else (new,):
            started[prefix + name.removeprefix(old or "")] = array
    if target.segments_from and of_vlbert and SEGMENTS in started:
        started[SEGMENTS] = np.array(started[SEGMENTS])
        for row, source in target.segments_from.items():
            started[SEGMENTS][row] = started[SEGMENTS][source]
    return started
