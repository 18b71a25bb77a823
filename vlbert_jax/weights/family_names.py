"""Names of the tensors of VL-BERT's one-stream siblings: UNITER, VisualBERT, Oscar, VinVL and B2T2.

The tensors of a family are first brought to the names of BERT, `bert.` for the trunk, in the layout of
PyTorch. One table then leads from there to parameter paths, and back.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from vlbert_jax.batch import IMG, IMG_MASK
from vlbert_jax.model.architectures import VLBERT, Architecture
from vlbert_jax.model.two_stream_config import TWO_STREAM_MODELS
from vlbert_jax.tasks import all_tasks
from vlbert_jax.weights import two_stream_names
from vlbert_jax.weights.entry import Entry
from vlbert_jax.weights.vlbert_names import (
    TOKEN_TABLE,
    convolution_entry,
    official_modules,
    reason_not_wanted,
)

BERT = {  # modules of every family: the trunk of BERT
    "vlbert/embedding_norm": "bert.embeddings.LayerNorm",
    "vlbert/pooler": "bert.pooler.dense",
    "vlbert/region_pooler": "bert.v_pooler.dense",  # of this package, where the pooled vector is a product
    "vlbert/encoder/layers/attention/query": "bert.encoder.layer.{layer}.attention.self.query",
    "vlbert/encoder/layers/attention/key": "bert.encoder.layer.{layer}.attention.self.key",
    "vlbert/encoder/layers/attention/value": "bert.encoder.layer.{layer}.attention.self.value",
    "vlbert/encoder/layers/attention/output": "bert.encoder.layer.{layer}.attention.output.dense",
    "vlbert/encoder/layers/attention_norm": "bert.encoder.layer.{layer}.attention.output.LayerNorm",
    "vlbert/encoder/layers/intermediate": "bert.encoder.layer.{layer}.intermediate.dense",
    "vlbert/encoder/layers/output": "bert.encoder.layer.{layer}.output.dense",
    "vlbert/encoder/layers/output_norm": "bert.encoder.layer.{layer}.output.LayerNorm",
}
SEGMENTS = "bert.embeddings.token_type_embeddings.weight"
TABLES = {  # parameters that are whole tensors
    "vlbert/position_embeddings": "bert.embeddings.position_embeddings.weight",
    "vlbert/segment_embeddings": SEGMENTS,
}
PAIR_ATTENTION = {  # UNITER's head of a text and two images
    f"pair_attention/{ours}/{part}": f"{theirs}.{'out_proj' if part == 'output' else part}"
    for ours, theirs in (("first", "attn1"), ("second", "attn2"))
    for part in ("query", "key", "value", "output")
} | {"pair_attention/join": "fc.0", "pair_attention/weight": "attn_pool.fc.0"}
PACKED = re.compile(r"(.*)\.in_proj_(weight|bias)")  # query, key and value in one tensor
PARTS = ("query", "key", "value")
WORDS = "bert.embeddings.word_embeddings.weight"
MLM_BIAS = "cls.predictions.bias"
REQUIRED_OF_BERT = re.compile(
    r"(bert\.)?(embeddings\.((word|position|token_type)_embeddings|LayerNorm)|encoder\.layer)\."
)
# Rows of the token table behind the vocabulary, in models that have them; no published file does.
OWN_TOKENS = {IMG: "region_token.weight", IMG_MASK: "hidden_region_token.weight"}
# Tensors that are other tensors once more -> those.
TIES = {
    "cls.predictions.decoder.weight": WORDS,
    "cls.predictions.decoder.bias": MLM_BIAS,
    "feat_regress.weight": "bert.img_embeddings.img_linear.weight",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Names of a family, in addition to those of BERT."""

    modules: Mapping[str, str]  # module of vlbert_jax -> module of the original, in the names of BERT
    tables: Mapping[str, str] = dataclasses.field(default_factory=dict)  # parameter -> tensor
    renames: tuple[tuple[str, str], ...] = ()  # pattern of an original name -> replacement, applied in order
    originals: tuple[tuple[str, str], ...] = ()  # the way back: pattern of a name of BERT -> replacement
    ties: tuple[str, ...] = ("cls.predictions.decoder.weight",)  # copies (TIES) that the original code writes
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)  # reason not to be used -> pattern
    # Class of the relationship that means that all belongs together. Here it is class 1, so the others are rotated.
    belongs: int = 1


UNITER = Family(
    modules=PAIR_ATTENTION
    | {
        "vlbert/region_norm": "bert.img_embeddings.LayerNorm",
        "fast_rcnn/projection": "bert.img_embeddings.img_linear",
        "fast_rcnn/appearance_norm": "bert.img_embeddings.img_layer_norm",
        "fast_rcnn/geometry_projection": "bert.img_embeddings.pos_linear",
        "fast_rcnn/geometry_norm": "bert.img_embeddings.pos_layer_norm",
        "pair_head": "nlvr2_output",
        "matching_head": "rank_output",
    },
    tables={"fast_rcnn/hidden_appearance": "bert.img_embeddings.mask_embedding.weight"},
    renames=((r"^uniter\.", "bert."),),
    originals=((r"^bert\.", "uniter."),),
    ties=("cls.predictions.decoder.weight", "feat_regress.weight"),
    reasons={
        "duplicate": r"feat_regress\.weight$",  # the projection, transposed
        "vector of hidden regions": r"bert\.img_embeddings\.mask_embedding\.weight$",  # where no region is hidden
    },
)
VISUALBERT = Family(
    modules={
        "fast_rcnn/projection": "bert.embeddings.visual_projection",
        "pair_head": "cls",
        "phrase_attention/query": "attention.query",
        "phrase_attention/key": "attention.key",
    },
    tables={
        "vlbert/region_position_embeddings": "bert.embeddings.visual_position_embeddings.weight",
        "vlbert/region_segment_embeddings": "bert.embeddings.visual_token_type_embeddings.weight",
    },
    renames=(
        (r"^visual_bert\.", "bert."),  # Hugging Face
        (r"^bert\.(bert|cls|classifier|flickr_attention)\.", r"\1."),  # the original code
        (r"\.(position|token_type)_embeddings_visual\.", r".visual_\1_embeddings."),
        (r"\.embeddings\.projection\.", ".embeddings.visual_projection."),
        (r"^classifier\.", "cls."),
        (r"^flickr_attention\.", "attention."),
    ),
    originals=((r"^bert\.", "visual_bert."),),
    ties=("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),
    reasons={
        "region head of another kind": r"detector\.",  # a ResNet-50 with instance masks
        "never used by the official code": r"attention\.value\.",  # of phrases
    },
)
# What the original code of VisualBERT calls its tensors; the names of Hugging Face are those of the family.
ORIGINAL_VISUALBERT = dataclasses.replace(
    VISUALBERT,
    originals=(
        (r"^(bert|cls)\.(?!weight|bias)", r"bert.\1."),
        (r"^cls\.(?=weight|bias)", "bert.classifier."),
        (r"^attention\.", "bert.flickr_attention."),
        (r"\.visual_(position|token_type)_embeddings\.", r".\1_embeddings_visual."),
        (r"\.embeddings\.visual_projection\.", ".embeddings.projection."),
    ),
    ties=("cls.predictions.decoder.weight",),
)
OSCAR = Family(
    modules={
        "fast_rcnn/projection": "bert.img_embedding",
        "matching_head": "classifier",
        "matching_head/transform": "classifier.0",
        "matching_head/classes": "classifier.2",
        "pair_head": "classifier",
        "pair_head/transform": "classifier.0",
        "pair_head/classes": "classifier.2",
    },
    belongs=0,
)
VINVL = dataclasses.replace(
    OSCAR,
    modules=dict(OSCAR.modules)
    | {
        "vlbert/region_norm": "bert.LayerNorm",
        "pair_head/norm": "classifier.2",
        "pair_head/classes": "classifier.3",
    },
)
B2T2 = Family(
    modules={"fast_rcnn/projection": "bert.embeddings.dense"},
    tables={
        "fast_rcnn/x_positions": "position_x_embeddings.weight",
        "fast_rcnn/y_positions": "position_y_embeddings.weight",
    },
    reasons={"positions of boxes": r"position_[xy]_embeddings\."},  # where the architecture has none
    renames=(
        ("/", "."),  # TensorFlow
        (r"\.layer_(\d+)\.", r".layer.\1."),
        (r"(_embeddings)$", r"\1.weight"),
        (r"\.(kernel|gamma)$", ".weight"),
        (r"\.beta$", ".bias"),
        (r"^bert\.output_weights$", "choice.weight"),
        (r"^bert\.output_bias$", "choice.bias"),
    ),
)
UNICODER_VL = Family(  # no code is published: names for files of this package
    modules={
        "fast_rcnn/projection": "bert.img_embeddings.img_linear",
        "fast_rcnn/geometry_projection": "bert.img_embeddings.pos_linear",
    }
)
FAMILIES = {
    "uniter": UNITER,
    "visualbert": VISUALBERT,
    "oscar": OSCAR,
    "vinvl": VINVL,
    "b2t2": B2T2,
    "b2t2_positions": B2T2,
    "unicoder_vl": UNICODER_VL,
}
# What a published file of an architecture has, as patterns of original names; the first match counts.
MARKS = {
    "uniter": r"uniter\.",
    "visualbert": r"visual_bert\.|bert\.bert\.|.*\.(position|token_type)_embeddings_visual\.",
    "vinvl": r"bert\.LayerNorm\.",
    "oscar": r"bert\.img_embedding\.",
    "b2t2_positions": r"position_[xy]_embeddings",
    "b2t2": r"bert[./]embeddings[./]dense[./]",
}
# Reason why a tensor is not used -> pattern of its name; the first match counts.
REASONS = {
    "duplicate": r"cls\.predictions\.decoder\.",  # the words, and the bias of the head
    "position counter": r"bert\.embeddings\.position_ids$",
    "batch counter": r".*\.num_batches_tracked$",
    "pooler": r"bert\.(v_)?pooler\.",  # where no head reads it
}


def family_of(architecture: Architecture) -> Family:
    """Return the names of an architecture; raise ValueError where no code of it is published."""
    if architecture.name not in FAMILIES:
        raise ValueError(f"There are no names of weights for {architecture.name}, only for {', '.join(FAMILIES)}.")
    return FAMILIES[architecture.name]


def architecture_of_names(names: Iterable[str]) -> str:
    """Return the architecture of a file with tensors of these names; "" where it is none of a sibling."""
    plain = [re.sub(r"^(module\.)+", "", name) for name in names]
    if two_streams := two_stream_names.two_stream_family(map(two_stream_names.plain_name, plain)):
        return two_streams
    found = (name for name, pattern in MARKS.items() if any(re.match(pattern, p) for p in plain))
    return next(found, "")


def to_bert_names(tensors: Mapping[str, np.ndarray], architecture: Architecture) -> dict[str, np.ndarray]:
    """Return the tensors of a file with the names and the layout that the table has.

    Raises:
        ValueError: The decoder of masked words of two streams is not the table of words.
    """
    if architecture.streams == 2:
        return two_stream_names.plain_tensors(tensors)
    found = {}
    for name, array in tensors.items():
        plain = re.sub(r"^(module\.)+", "", name).replace(".gamma", ".weight").replace(".beta", ".bias")
        for pattern, replacement in family_of(architecture).renames:
            plain = re.sub(pattern, replacement, plain)
        found[plain] = array.T if name.endswith("/kernel") else array  # TensorFlow has [in, out]
    return unpack_attention(found)


def unpack_attention(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors with query, key and value apart where a tensor holds all three."""
    found = {}
    for name, array in tensors.items():
        if (match := PACKED.fullmatch(name)) and np.ndim(array):
            found |= {f"{match[1]}.{part}.{match[2]}": x for part, x in zip(PARTS, np.split(array, 3), strict=True)}
        else:
            found[name] = array
    return found


def pack_attention(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors with query, key and value of `attn1` and `attn2` in one tensor: the reverse."""
    found = dict(tensors)
    for name in tensors:
        if match := re.fullmatch(r"(attn[12])\.query\.(weight|bias)", name):
            parts = [found.pop(f"{match[1]}.{part}.{match[2]}") for part in PARTS]
            found[f"{match[1]}.in_proj_{match[2]}"] = np.concatenate(parts)
    return found


def family_modules(architecture: Architecture) -> dict[str, str]:
    """Return module of vlbert_jax -> module of the original, in the names of BERT: the trunk and all heads."""
    modules = BERT | dict(family_of(architecture).modules)
    for task in all_tasks():
        modules |= task.family_names.get(architecture.name, {})
    return modules


def family_table(
    shapes: Mapping[tuple, tuple[int, ...]], vocab_size: int, architecture: Architecture
) -> Iterator[Entry]:
    """Yield every tensor of a model with these parameters; `shapes` maps parameter paths to shapes.

    A module that the original code does not have has the name that VL-BERT gives it.
    """
    family, modules = family_of(architecture), official_modules() | family_modules(architecture)
    tables = TABLES | dict(family.tables)
    # Geometry is before the appearance in the kernel of the projection, and behind it in the original code.
    behind = architecture.geometry_size if architecture.geometry == "joint" else 0
    for path, shape in shapes.items():
        name = "/".join(map(str, path))
        module, _, leaf = name.rpartition("/")
        if name == "vlbert/token_embeddings":
            yield Entry(WORDS, path, rows=(0, vocab_size))
        elif name.startswith(("fast_rcnn/backbone/", "fast_rcnn/c5/")):
            yield convolution_entry(module, leaf, path)
        elif name == "mlm_head/bias":
            yield Entry(MLM_BIAS, path, rows=(0, vocab_size))
        elif name in tables:
            yield Entry(tables[name], path, layout="last row" if len(shape) == 1 else "same")
        elif module in modules:
            original = modules[module] + (".bias" if leaf == "bias" else ".weight")
            layout = "linear" if leaf == "kernel" else "same"
            of_relationship = module == "relationship_head"
            roll = behind if name == "fast_rcnn/projection/kernel" else (1 - family.belongs) * of_relationship
            for layer in range(shape[0]) if "{layer}" in original else (None,):
                yield Entry(original.format(layer=layer), path, layout, layer, roll=roll, roll_axis=1 - of_relationship)
        else:
            raise KeyError(f"parameter {name} has no name in {architecture.name}; add it to `family_names` of its task")


def table_of(architecture: Architecture) -> Callable[..., Iterator[Entry]]:
    """Return the table of the names of an architecture; it takes shapes by path and the size of the vocabulary.

    To the names of published files it adds those of OWN_TOKENS, which files of this package have.
    """
    if architecture is VLBERT or architecture.streams == 2:
        return two_stream_names.run_table  # those of VL-BERT where there is one stream
    return functools.partial(_own_table, architecture=architecture)


def _own_table(shapes: Mapping[tuple, tuple[int, ...]], vocab_size: int, architecture: Architecture) -> Iterator[Entry]:
    yield from family_table(shapes, vocab_size, architecture)
    if architecture.region_word:
        for offset, token in OWN_TOKENS.items():
            yield Entry(token, TOKEN_TABLE, rows=(vocab_size + offset, vocab_size + offset + 1))


def untied(
    tensors: Mapping[str, np.ndarray], architecture: Architecture
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Return the tensors (named as in `to_bert_names`) without copies, and the sizes of the copies by name.

    Raises:
        ValueError: A copy differs from its original: the model has one parameter for both.
    """
    found, copies = dict(tensors), {}
    for name, original in (two_stream_names.TIED if architecture.streams == 2 else TIES).items():
        if name not in found:
            continue
        copy = found.pop(name)
        if original not in found:
            found[original] = copy
        elif copy.shape != found[original].shape or not np.array_equal(copy, found[original], equal_nan=True):
            raise ValueError(f"{name} differs from {original}; the model ties them, so they cannot be converted")
        else:
            copies[name] = copy.size
    return found, copies


def original_state_dict(
    tensors: Mapping[str, np.ndarray], architecture: Architecture, suffix: str = ""
) -> dict[str, np.ndarray]:
    """Return tensors (named as in `to_bert_names`) with the names of the original code, tied ones as often as there.

    Those of VisualBERT and LXMERT are Hugging Face's; with the `suffix` .th or .pth of the file they are those of the
    authors.
    """
    if architecture.streams == 2:
        of_authors = architecture.name == "lxmert" and suffix == ".pth"
        heads = {name.split(".")[0] for name in tensors}
        task = of_authors and bool({"answer_head", "logit_fc"} & heads) and "cls" not in heads  # else of pre-training
        state = two_stream_names.official_state_dict(tensors, TWO_STREAM_MODELS[architecture.name], task)
        return {re.sub(r"^lxmert\.", "bert.", name): array for name, array in state.items()} if of_authors else state
    family = family_of(architecture)
    if family is VISUALBERT and suffix == ".th":
        family = ORIGINAL_VISUALBERT
    state = pack_attention(tensors)
    for name in family.ties:
        has_head = MLM_BIAS in state if name.startswith("cls.") else "feat_regress.bias" in state
        if has_head:
            state[name] = state[TIES[name]]
    named = {}
    for name, array in state.items():
        for pattern, replacement in family.originals:
            name = re.sub(pattern, replacement, name)
        named[name] = array
    return named


def reason_not_used(name: str, architecture: Architecture) -> str:
    """Return why a model has no place for a tensor (named as in its table); "" for an unknown tensor."""
    if architecture is VLBERT:
        return reason_not_wanted(name)
    if architecture.streams == 2:
        return two_stream_names.reason_not_wanted(name)
    for reasons in (REASONS, family_of(architecture).reasons):
        for reason, pattern in reasons.items():
            if re.match(pattern, name):
                return reason
    return "" if name.startswith("bert.") else "head of another task"
