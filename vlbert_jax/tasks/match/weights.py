"""Names of the heads for retrieval in weights: those of this package, and those of published siblings."""

from collections.abc import Mapping
from typing import Any

from vlbert_jax.tasks.head_names import reads_one_image, size_of
from vlbert_jax.tasks.layouts import lengths_of_family

Shapes = Mapping[str, tuple[int, ...]]

# The released VL-BERTs have the first head alone: the other names are for files of this package.
OWN_NAMES = {
    "relationship_head": "vlbert.relationsip_head.caption_image_relationship",
    "matching_head": "matching_score",
    "matching_head/transform": "matching_mlp.0",
    "matching_head/classes": "matching_mlp.2",
}
# Published siblings have heads with one output, with two, or those of pre-training. VisualBERT and Oscar have
# no useful head of pre-training: that of VisualBERT compares two captions, that of Oscar also judges the names of the
# regions.
SCORES = {"uniter": "rank_output", "vilbert": "vil_logit"}
CLASSES = {"oscar": "classifier", "vinvl": "classifier"}
RELATIONSHIPS = {"uniter": "itm_output", "lxmert": "cls.seq_relationship", "vilbert": "cls.bi_seq_relationship"}
# Regions of an image, and words; those of Oscar and VinVL with the names of the regions.
LENGTHS = {"uniter": (100, 60), "lxmert": (36, 20), "vilbert": (100, 30), "oscar": (70, 70), "vinvl": (70, 70)}
TASK_OF_12_IN_1 = 8  # Flickr30k


def fields_of_own(shapes: Shapes) -> dict[str, Any]:
    """Return the fields of the config, by dotted name, that the tensors of this package determine."""
    hidden = size_of(shapes, "matching_mlp.0")[0]
    of_outputs = {0: "relationship", 1: "score", 2: "classes"}
    return {
        "model.encoder.pooler": True,
        "model.relationship_classes": 2,
        "model.matching_head": "hidden" if hidden else of_outputs.get(size_of(shapes, "matching_score")[0], "score"),
        "model.matching_hidden": hidden,
    }


def sibling_head(architecture: str, shapes: Shapes) -> tuple[str, int]:
    """Return the kind of the head of a published sibling, "" without one, and the width of its hidden layer."""
    if size_of(shapes, SCORES.get(architecture, ""))[0]:
        return "score", 0
    if layer := CLASSES.get(architecture, ""):
        if size_of(shapes, layer)[0] == 2:
            return "classes", 0
        if size_of(shapes, f"{layer}.2")[0] == 2 and reads_one_image(shapes, f"{layer}.0"):
            return "hidden", size_of(shapes, f"{layer}.0")[0]
    return ("relationship" if size_of(shapes, RELATIONSHIPS.get(architecture, ""))[0] else ""), 0


def fields_of_sibling(architecture: str, shapes: Shapes) -> dict[str, Any]:
    """Return the fields of the config, by dotted name, that a published sibling and its tensors determine."""
    regions, words = LENGTHS.get(architecture, (100, 60))
    kind, hidden = sibling_head(architecture, shapes)
    is_new = architecture in CLASSES and not size_of(shapes, CLASSES[architecture])[0]
    return {
        "model.encoder.pooler": True,
        "model.relationship_classes": 2,
        "model.matching_head": kind or ("classes" if is_new else "relationship"),
        "model.matching_hidden": hidden,
        "data.text_length": words,
    } | lengths_of_family(architecture, shapes, regions, words, TASK_OF_12_IN_1)
