"""Names of the tensors of LXMERT and ViLBERT: one table from official names to parameter paths.

Files name the same tensors in several ways: LXMERT of Hugging Face and of the official code, alone, with
heads, wrapped by a task or by data parallelism. `plain_tensors` brings them to one: the trunk without a
prefix, heads as in the pre-training models. `official_state_dict` is the way back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from vlbert_jax.model.two_stream_config import TwoStreamConfig
from vlbert_jax.weights import vlbert_names
from vlbert_jax.weights.bert_names import official_to_bert
from vlbert_jax.weights.entry import Entry
from vlbert_jax.weights.vlbert_names import Match

WORDS = "embeddings.word_embeddings.weight"
TRUNK = {  # modules outside the groups, by family
    "lxmert": {
        "embedding_norm": "embeddings.LayerNorm",
        "appearance": "encoder.visn_fc.visn_fc",
        "visual_norm": "encoder.visn_fc.visn_layer_norm",
        "geometry": "encoder.visn_fc.box_fc",
        "geometry_norm": "encoder.visn_fc.box_layer_norm",
        "text_pooler": "pooler.dense",
        "visual_pooler": "v_pooler.dense",  # of this package, where the pooled vector is a product
    },
    "vilbert": {
        "embedding_norm": "embeddings.LayerNorm",
        "appearance": "v_embeddings.image_embeddings",
        "visual_norm": "v_embeddings.LayerNorm",
        "geometry": "v_embeddings.image_location_embeddings",
        "text_pooler": "t_pooler.dense",
        "visual_pooler": "v_pooler.dense",
    },
}
_MLM = {"mlm_head/transform": "cls.predictions.transform.dense", "mlm_head/norm": "cls.predictions.transform.LayerNorm"}
_MASK = {name.replace("mlm_head", "mask_head"): official for name, official in _MLM.items()}


def _answers(ours: str, official: str) -> dict[str, str]:
    parts = dict(transform=0, norm=2, classes=3)
    return {f"{ours}/{part}": f"{official}.{number}" for part, number in parts.items()}


HEADS = {
    "lxmert": {
        **_MLM,
        **_MASK,
        "relationship_head": "cls.seq_relationship",
        "visual_head/transform": "obj_predict_head.transform.dense",
        "visual_head/norm": "obj_predict_head.transform.LayerNorm",
        "visual_head/objects": "obj_predict_head.decoder_dict.obj",
        "visual_head/attributes": "obj_predict_head.decoder_dict.attr",
        "visual_head/features": "obj_predict_head.decoder_dict.feat",
        **_answers("answer_head", "answer_head.logit_fc"),
        **_answers("question_head", "answer_head.logit_fc"),  # the same in pre-training
        **_answers("pair_head", "logit_fc"),
    },
    "vilbert": {
        **_MLM,
        **_MASK,
        "relationship_head": "cls.bi_seq_relationship",
        "mrc_head/transform": "cls.imagePredictions.transform.dense",
        "mrc_head/norm": "cls.imagePredictions.transform.LayerNorm",
        "mrc_head/classes": "cls.imagePredictions.decoder",
        **_answers("answer_head", "vil_prediction.logit_fc"),
        **_answers("gqa_head", "vil_prediction_gqa.logit_fc"),
        **_answers("pair_head", "vil_binary_prediction.logit_fc"),
        "choice_head": "vil_logit",
        "matching_head": "vil_logit",  # the same layer; a file for retrieval trains it as this head
        "relation_head": "vil_tri_prediction",
        "label_head/classes": "vil_tri_prediction",
        "grounding_head": "vision_logit",
        "word_head": "linguisic_logit",
    },
}
RELU_ANSWERS = _answers("answer_head", "vil_prediction.main")  # of the first ViLBERT; it has no norm
OF_HEADS = re.compile(r"(cls|obj_predict_head|(answer|question)_head|logit_fc|vil_\w+|vision_logit|linguisic_logit)\.")
MLM_BIAS = "cls.predictions.bias"
TIED = {"cls.predictions.decoder.weight": WORDS, "cls.predictions.decoder.bias": MLM_BIAS}
# In ViLBERT, row 0 of this head means that the text belongs to the image; here row 1 does.
REVERSED = "cls.bi_seq_relationship"
# Reason why a tensor is not used -> pattern of its plain name.
REASONS = {
    "duplicate": re.compile(r"cls\.predictions\.decoder\."),
    "never used by the official code": re.compile(r"encoder\.c_layer\.\d+\.biOutput\.q_dense[12]\."),
    "position counter": re.compile(r"embeddings\.position_ids$"),
    "pooler": re.compile(r"v_pooler\."),  # where the pooled vector is not a product
    "head of another task": OF_HEADS,
}
TABLES = {
    "token_embeddings": WORDS,
    "position_embeddings": "embeddings.position_embeddings.weight",
    "segment_embeddings": "embeddings.token_type_embeddings.weight",
    "task_embeddings": "embeddings.task_embeddings.weight",
}
LAYER = {  # module of a layer -> (part of the layer, module in that part)
    "attention/query": ("attention", ".self.query"),
    "attention/key": ("attention", ".self.key"),
    "attention/value": ("attention", ".self.value"),
    "attention/output": ("attention", ".output.dense"),
    "attention_norm": ("attention", ".output.LayerNorm"),
    "intermediate": ("intermediate", ".dense"),
    "output": ("output", ".dense"),
    "output_norm": ("output", ".LayerNorm"),
}
# LXMERT: both directions of a cross-attention are one module.
SHARED_CROSS = {
    "both/attention/query": "att.query",
    "both/attention/key": "att.key",
    "both/attention/value": "att.value",
    "both/attention/output": "output.dense",
    "both/attention_norm": "output.LayerNorm",
}
# ViLBERT: 1 is vision, 2 is text. A query, dense layer and norm belong to the stream that changes; keys and
# values belong to the stream that is read.
CROSS = {
    "text/attention/query": "biattention.query2",
    "text/attention/key": "biattention.key1",
    "text/attention/value": "biattention.value1",
    "text/attention/output": "biOutput.dense2",
    "text/attention_norm": "biOutput.LayerNorm2",
    "visual/attention/query": "biattention.query1",
    "visual/attention/key": "biattention.key2",
    "visual/attention/value": "biattention.value2",
    "visual/attention/output": "biOutput.dense1",
    "visual/attention_norm": "biOutput.LayerNorm1",
}
FEED_FORWARD = {
    f"{stream}/{module}": f"{letter}_{part}{inner}"
    for stream, letter in (("text", "t"), ("visual", "v"))
    for module, (part, inner) in LAYER.items()
    if part != "attention"
}
GROUP = re.compile(r"encoder/groups/(\d+)/([tvxf])/(.+)")


def family_of(config: TwoStreamConfig) -> str:
    """Return whose names a model's tensors have."""
    return "lxmert" if config.shared_cross else "vilbert"


def two_stream_family(names: Iterable[str]) -> str | None:
    """Return the family of tensors with plain names; None where they are those of another model."""
    names = set(names)
    if "encoder.visn_fc.visn_fc.weight" in names:
        return "lxmert"
    return "vilbert" if "v_embeddings.image_embeddings.weight" in names else None


def plain_name(name: str) -> str:
    """Return the name of a tensor without the wrappers of tasks, data parallelism and libraries."""
    name = re.sub(r"^(module\.|lxrt_encoder\.model\.)+", "", name)
    name = re.sub(r"^(bert|lxmert)\.", "", name)
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))


def plain_tensors(raw: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors of a file by their plain names.

    Weights that are stored as a direction and a length (`weight_v`, `weight_g`) become one tensor.

    Raises:
        ValueError: The decoder of masked words is not the table of words.
    """
    tensors = {plain_name(name): array for name, array in raw.items()}
    for name in [name for name in tensors if name.endswith(".weight_v")]:
        length, direction = tensors.pop(name.removesuffix("v") + "g"), tensors.pop(name)
        norm = np.linalg.norm(direction.astype(np.float64))
        tensors[name.removesuffix("_v")] = (direction * (length / norm)).astype(direction.dtype)
    for copy, name in TIED.items():
        if copy in tensors and not np.array_equal(tensors[copy], tensors.setdefault(name, tensors[copy])):
            raise ValueError(f"{copy} differs from {name}; the model has one parameter for both")
    pooler = tensors.get("pooler.dense.weight")
    if pooler is not None and tensors.get("logit_fc.0.weight", np.zeros((0, 0))).shape[1] == len(pooler):
        # The official code has the head over answers, of one pooled vector, outside the trunk.
        tensors = {re.sub(r"^logit_fc\.", "answer_head.logit_fc.", name): array for name, array in tensors.items()}
    return tensors


def reason_not_wanted(name: str) -> str:
    """Return why a model has no place for a tensor with this plain name; "" for an unknown tensor."""
    return next((reason for reason, pattern in REASONS.items() if pattern.match(name)), "")


# --- The table ------------------------------------------------------------------------------------


def _block_module(config: TwoStreamConfig, group: int, kind: str, module: str) -> tuple[str, int]:
    """Return the official module of one in a group, with {layer}, and the number of its first layer."""
    lxmert, crossed = config.shared_cross, "x" in config.layers[group][0]
    first = sum(
        times
        for kinds, times in config.layers[:group]
        if kind in kinds and (not lxmert or ("x" in kinds) == crossed)
    )
    if kind == "x" and lxmert:
        return f"encoder.x_layers.{{layer}}.visual_attention.{SHARED_CROSS[module]}", first
    if kind in "xf":
        return f"encoder.c_layer.{{layer}}.{(CROSS if kind == 'x' else FEED_FORWARD)[module]}", first
    part, inner = LAYER[module]
    if lxmert and crossed:
        stream = "lang" if kind == "t" else "visn"
        part = {"attention": "self_att", "intermediate": "inter", "output": "output"}[part]
        return f"encoder.x_layers.{{layer}}.{stream}_{part}{inner}", first
    layers = {"t": "layer", "v": "r_layers" if lxmert else "v_layer"}[kind]
    return f"encoder.{layers}.{{layer}}.{part}{inner}", first


def name_table(shapes: Mapping[tuple, tuple[int, ...]], config: TwoStreamConfig) -> Iterator[Entry]:
    """Yield every official tensor, by its plain name, of a model with these parameters.

    Args:
        shapes: Parameter path -> shape, as in `TwoStreamModel`.
        config: Options of the trunk.
    """
    family = family_of(config)
    modules = TRUNK[family] | HEADS[family]
    if ("answer_head", "norm", "scale") not in shapes and family == "vilbert":
        modules |= RELU_ANSWERS
    for path, shape in shapes.items():
        module, _, leaf = "/".join(map(str, path)).removeprefix("two_stream/").rpartition("/")
        if leaf in TABLES:
            rows = (0, config.vocab_size) if leaf == "token_embeddings" else None
            yield Entry(TABLES[leaf], path, rows=rows)
            continue
        if (module, leaf) == ("mlm_head", "bias"):
            yield Entry(MLM_BIAS, path, rows=(0, config.vocab_size))
            continue
        layout, suffix = "linear" if leaf == "kernel" else "same", ".bias" if leaf == "bias" else ".weight"
        if found := GROUP.fullmatch(module):
            group, kind, inner = found.groups()
            official, first = _block_module(config, int(group), kind, inner)
            for i in range(shape[0]):
                yield Entry(official.format(layer=first + i) + suffix, path, layout, layer=i)
        elif module in modules:
            layout += "_reversed" if modules[module] == REVERSED else ""
            yield Entry(modules[module] + suffix, path, layout)
        else:
            raise KeyError(f"parameter {'/'.join(map(str, path))} has no official name")


def run_table(shapes: Mapping[tuple, tuple[int, ...]], vocab_size: int) -> Iterator[Entry]:
    """Yield every tensor of the model of a run, of one stream or of two; `shapes` maps parameter paths to shapes.

    Names of two streams are plain names; those of the ResNet, and of heads that the official models do not
    have, are VL-BERT's.
    """
    layers: dict[int, tuple[str, int]] = {}
    for path, shape in shapes.items():
        if found := re.match(r"two_stream/encoder/groups/(\d+)/([tvxf])/", "/".join(map(str, path))):
            kinds, _ = layers.get(int(found[1]), ("", 0))
            layers[int(found[1])] = kinds if found[2] in kinds else kinds + found[2], shape[0]
    if not layers:
        yield from vlbert_names.name_table(shapes, vocab_size)
        return
    shared = any("both" in path for path in shapes)
    config = TwoStreamConfig(
        layers=tuple(layers[i] for i in sorted(layers)), shared_cross=shared, vocab_size=vocab_size
    )
    modules = {*HEADS[family_of(config)], "mlm_head"}

    def has_name(path: tuple) -> bool:
        return path[0] == "two_stream" or "/".join(map(str, path[:-1])) in modules

    others = {path: shape for path, shape in shapes.items() if not has_name(path)}
    yield from name_table({path: shape for path, shape in shapes.items() if path not in others}, config)
    yield from vlbert_names.name_table(others, vocab_size)


def plain_names_of_bert(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors of a BERT, which have the names that VL-BERT gives them, by the plain names of two streams.

    Its head of the next sentence is no head of matching.
    """
    found = {plain_name(name): array for name, array in official_to_bert(tensors).items()}
    return {name: array for name, array in found.items() if not name.startswith("cls.seq_relationship.")}


def match_two_stream(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[tuple, tuple[int, ...]], config: TwoStreamConfig
) -> Match:
    """Return which tensors, by plain name, fill which parameters.

    Args:
        tensors: Plain name -> tensor.
        shapes: Parameter path -> shape.
        config: Options of the trunk.

    Raises:
        ValueError: A tensor has another shape than its parameter.
    """
    found, wanted = Match(), set()
    for entry in name_table(shapes, config):
        wanted.add(entry.official)
        if entry.official not in tensors:
            found.missing.append(entry.official)
            continue
        given = tensors[entry.official].shape
        model = entry.to_official(entry.part(np.broadcast_to(np.float32(0), shapes[entry.path]))).shape
        if given != model:
            raise ValueError(f"{entry.official} has shape {given}, but the model's options require {model}")
        found.entries.setdefault(entry.path, []).append(entry)
    found.unused = [name for name in tensors if name not in wanted]
    return found


def official_two_stream(ours: Mapping[tuple, np.ndarray], config: TwoStreamConfig) -> dict[str, np.ndarray]:
    """Return the tensors of a model by their plain names, as views."""
    table = name_table({path: array.shape for path, array in ours.items()}, config)
    return {entry.official: entry.to_official(entry.part(ours[entry.path])) for entry in table}


def official_state_dict(
    tensors: Mapping[str, np.ndarray], config: TwoStreamConfig, task: bool = False
) -> dict[str, np.ndarray]:
    """Return the `state_dict` that the original loader expects.

    That is Hugging Face's for LXMERT, or the official one of a fine-tuned LXMERT if `task`, and the
    official one for ViLBERT. Layers that ViLBERT never uses are zeros unless `tensors` has them; its
    weights with a stored length get the length of the weight, so the product is equal to rounding.

    Args:
        tensors: Plain name -> tensor.
        config: Options of the trunk.
        task: Whether LXMERT's tensors are named as in a model that the official code fine-tuned.
    """
    lxmert = family_of(config) == "lxmert"
    prefix = "lxrt_encoder.model.bert." if task else "lxmert." if lxmert else "bert."
    state = {name if OF_HEADS.match(name) else prefix + name: array for name, array in tensors.items()}
    if task:
        state = {re.sub(r"^answer_head\.", "", name): array for name, array in state.items()}
    if MLM_BIAS in tensors:
        state["cls.predictions.decoder.weight"] = tensors[WORDS]
    for name in [name for name in state if re.fullmatch(r"vil_prediction\.main\.\d\.weight", name)]:
        weight = state.pop(name)
        state[f"{name}_v"] = weight
        state[f"{name}_g"] = np.asarray(np.linalg.norm(weight.astype(np.float64)), weight.dtype)
    for name in [name for name in state if re.search(r"\.biOutput\.dense[12]\.", name)]:
        state.setdefault(name.replace(".dense", ".q_dense"), np.zeros_like(state[name]))
    return state
