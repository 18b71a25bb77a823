"""Names of the heads of classes in weights: those of this package, and those of published siblings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlbert_jax.model.architectures import ONE_STREAM, VLBERT
from vlbert_jax.tasks.head_names import hidden_head, reads_one_image, size_of
from vlbert_jax.tasks.layouts import lengths_of_family

Shapes = Mapping[str, tuple[int, ...]]

# The released VL-BERTs have no such heads: names for files of this package.
OWN_NAMES = {
    **hidden_head("label_head", "label_mlp"),
    **hidden_head("pair_head", "pair_mlp"),
    **{
        f"pair_attention/{side}/{part}": f"pair_attention.{side}.{part}"
        for side in ("first", "second")
        for part in ("query", "key", "value", "output")
    },
    "pair_attention/join": "pair_attention.join",
    "pair_attention/weight": "pair_attention.weight",
    "mask_head/classes": "mask_classes",
}
# The hidden layer at [MASK] is that of the head for masked words, under its name: it starts from pre-training.
MASK_OF_VLBERT = {
    "mask_head/transform": "vlbert.mlm_head.predictions.transform.dense",
    "mask_head/norm": "vlbert.mlm_head.predictions.transform.LayerNorm",
}
MASK_OF_BERT = {name: "cls" + original.removeprefix("vlbert.mlm_head") for name, original in MASK_OF_VLBERT.items()}
SIBLINGS: dict[str, dict[str, str]] = {a.name: dict(MASK_OF_BERT) for a in ONE_STREAM if a is not VLBERT}
SIBLINGS["uniter"] |= {
    "label_head/transform": "vqa_output.0",  # visual entailment
    "label_head/norm": "vqa_output.2",
    "label_head/classes": "vqa_output.3",
    "pair_head/classes": "nlvr2_output",
}
SIBLINGS["visualbert"] |= {"pair_head/classes": "cls"}
# Heads of published siblings: architecture -> last layer of a pair of images, and of one image.
LAST = {
    "uniter": ("nlvr2_output", "vqa_output.3"),
    "visualbert": ("cls", ""),
    "oscar": ("classifier.2", ""),
    "vinvl": ("classifier.3", ""),
    "lxmert": ("logit_fc.3", ""),
    "vilbert": ("vil_binary_prediction.logit_fc.3", "vil_tri_prediction"),
}
MOST_CLASSES = 3  # of published heads; more are answers
LABELS = {"uniter": "snli_ve_uniter.txt", "vilbert": "snli_ve.txt"}  # of one image; vlbert_jax/assets/labels
# Regions of an image, and words.
LENGTHS = {
    "uniter": (100, 60), "visualbert": (144, 128), "oscar": (40, 55), "vinvl": (40, 55), "lxmert": (36, 20),
    "vilbert": (100, 40),
}  # fmt: skip


def sibling_head(architecture: str, shapes: Shapes) -> tuple[str, bool]:
    """Return the last layer of a head of a published sibling, "" without one, and whether it is of two images."""
    pair, single = LAST.get(architecture, ("", ""))
    if size_of(shapes, pair)[0] == 2:
        is_retrieval = architecture == "oscar" and reads_one_image(shapes, "classifier.0")
        return ("", False) if is_retrieval else (pair, True)
    return (single, False) if 1 < size_of(shapes, single)[0] <= MOST_CLASSES else ("", False)


def fields_of_sibling(architecture: str, shapes: Shapes) -> dict[str, Any]:
    """Return the fields of the config, by dotted name, that a published sibling and its tensors determine."""
    head, pair = sibling_head(architecture, shapes)
    regions, words = LENGTHS.get(architecture, (100, 60))
    words = 56 if head == "vil_tri_prediction" else words  # SNLI-VE in 12-in-1
    fields: dict[str, Any] = {
        "model.read": "cls",
        "model.encoder.pooler": True,
        "model.num_labels": shapes[f"{head}.weight"][0] if head else 2,
        "model.label_head": "hidden" if head.endswith(".3") else "linear",
        "model.pair": "each",
        "data.images_per_example": 2 if pair else 1,
        "data.labels": ("nlvr2.txt" if pair else LABELS.get(architecture, "")) if head else "",
        "losses.classify": "softmax",
    } | lengths_of_family(architecture, shapes, regions, words, 12 if pair else 13)  # of 12-in-1: NLVR2, SNLI-VE
    if pair and architecture == "uniter":
        width = shapes["bert.embeddings.word_embeddings.weight"][1]
        joined = shapes["nlvr2_output.weight"][1] == 2 * width
        fields["model.pair"] = "attention" if "attn_pool.fc.0.weight" in shapes else "each" if joined else "both"
    if pair and architecture in ("oscar", "vinvl"):
        own = "pair_mlp.2.weight" in shapes  # of a run with a norm, which Oscar does not have
        fields["model.label_head"] = "relu_norm" if architecture == "vinvl" else "hidden" if own else "relu"
        fields["model.label_hidden"] = size_of(shapes, "classifier.0")[0]
    if pair and architecture == "visualbert":
        fields["model.pair"] = "both"
    if fields["model.pair"] == "both":
        fields["data.sequence_length"] = 2 * (regions + 1) + words
    return fields


def own_head(shapes: Shapes) -> str:
    """Return the last layer of a head of this package; "" without one."""
    return next((name for name in ("label_mlp.3", "pair_mlp.3", "mask_classes") if f"{name}.weight" in shapes), "")


def fields_of_own(shapes: Shapes) -> dict[str, Any]:
    """Return the fields of the config, by dotted name, that the tensors of this package determine.

    They do not say whether one sequence is over one image or over both, nor whether a hidden layer with a norm has a
    GELU or a ReLU; a stored config does.
    """
    head = own_head(shapes)
    hidden, norm = (any(f"{name}.{n}.weight" in shapes for name in ("label_mlp", "pair_mlp")) for n in (0, 2))
    fields: dict[str, Any] = {
        "model.num_labels": shapes[f"{head}.weight"][0] if head else 2,
        "model.read": "mask" if head == "mask_classes" else "cls",
        "model.label_head": "linear" if not hidden else "hidden" if norm else "relu",
    }
    if "pair_attention.join.weight" in shapes:
        fields["model.pair"] = "attention"
    width = shapes.get(f"{MASK_OF_VLBERT['mask_head/transform']}.weight", (0,))[0]
    if head == "pair_mlp.3" or (head == "mask_classes" and shapes["mask_classes.weight"][1] == 2 * width):
        fields["data.images_per_example"] = 2
    return fields
