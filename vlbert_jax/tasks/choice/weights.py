"""Names of the heads over choices in weights: those of VL-BERT and this package, and those of published siblings."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from vlbert_jax.tasks.choice.model import HEADS
from vlbert_jax.tasks.choice.texts import SEGMENTS
from vlbert_jax.tasks.head_names import hidden_head
from vlbert_jax.tasks.layouts import lengths_of_family

Shapes = Mapping[str, tuple[int, ...]]

OWN_NAMES = {
    "choice_head": "final_mlp.1",
    "object_head/transform": "cnn_loss_reg.0.dense",
    "object_head/classes": "cnn_loss_reg.2",
    **hidden_head("choice_head", "choice_mlp"),  # released VL-BERTs have none: names for files of this package
}
FAMILY_NAMES: dict[str, dict[str, str]] = {
    "uniter": hidden_head("choice_head", "vcr_output"),
    "visualbert": {"choice_head": "cls"},
    "b2t2": {"choice_head": "choice"},
    "b2t2_positions": {"choice_head": "choice"},
}


class Sibling(NamedTuple):
    """How a sibling of VL-BERT chooses: its head, and the sequences of its recipe."""

    last_layer: str  # of the head
    head: str  # config.model.choice_head
    arrangement: str  # config.data.arrangement
    regions: int  # most regions of an image
    words: int  # most tokens of the texts, without [CLS] and [SEP]
    align_regions: bool = False  # config.data.align_regions
    whole_image: bool = False  # config.model.switches.whole_image


SIBLINGS = {
    "visualbert": Sibling("cls", "score", "context_tail", 100, 125, align_regions=True, whole_image=True),
    "vilbert": Sibling("vil_logit", "score", "context", 100, 77),
    "uniter": Sibling("vcr_output.3", "hidden", "apart", 100, 220),
    "b2t2": Sibling("choice", "classes", "inline", 59, 59),
    "b2t2_positions": Sibling("choice", "classes", "inline", 59, 59),
}
TASK_OF_12_IN_1 = 5  # VCR


def fields_of_own(shapes: Shapes) -> dict[str, Any]:
    """Return the fields of the config, by dotted name, that the tensors of VL-BERT or of this package determine."""
    outputs = shapes.get("final_mlp.1.weight", (0,))[0]
    head = "hidden" if "choice_mlp.3.weight" in shapes else "classes" if outputs == 2 else "score"
    classes = shapes.get("cnn_loss_reg.2.weight", (0 if outputs or head == "hidden" else 81,))[0]
    return {
        "model.choice_head": head,
        "model.num_object_classes": classes,
        "model.encoder.pooler": True,
        "losses.choice": "sigmoid" if head == "score" else "classes",
        "losses.object": float(classes > 0),
        "data.arrangement": "context",
        "data.align_regions": False,
    }


def is_of_sibling(architecture: str, shapes: Shapes) -> bool:
    """Return whether a sibling has a head over choices; that of 12-in-1 was trained for retrieval."""
    if architecture not in SIBLINGS or shapes.get("embeddings.task_embeddings.weight"):
        return False
    sibling = SIBLINGS[architecture]
    return shapes.get(f"{sibling.last_layer}.weight", (0,))[0] == HEADS[sibling.head]


def fields_of_sibling(architecture: str, shapes: Shapes) -> dict[str, Any]:
    """Return the fields of the config, by dotted name, that a published sibling and its tensors determine."""
    sibling = SIBLINGS.get(architecture, Sibling("", "score", "context", 100, 60))
    segments = shapes.get("bert.embeddings.token_type_embeddings.weight", (2,))[0]
    has_segments = segments > max(SEGMENTS[sibling.arrangement])  # UNITER's pre-training has two
    fields = lengths_of_family(architecture, shapes, sibling.regions, sibling.words + 4, TASK_OF_12_IN_1)
    fields |= {"model.switches": dict(whole_image=True)} if sibling.whole_image else {}
    return fields | {
        "model.choice_head": sibling.head,
        "model.num_object_classes": 0,
        "model.encoder.pooler": True,
        "losses.choice": "softmax" if sibling.head == "score" else "classes",
        "losses.object": 0.0,
        "data.arrangement": sibling.arrangement if has_segments else "context",
        "data.align_regions": sibling.align_regions,
        "data.text_length": sibling.words,
    }
