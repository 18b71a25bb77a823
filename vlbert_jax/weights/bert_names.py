"""Names of BERT tensors (Hugging Face, Google)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vlbert_jax.weights.vlbert_names import DECODER, plain_name


def bert_to_official(name: str) -> str:
    """Return VL-BERT's name for a BERT name.

    The prefix `bert.` is optional, and the old names `gamma` and `beta` are understood.
    """
    name = name.removeprefix("bert.").replace(".gamma", ".weight").replace(".beta", ".bias")
    name = name.replace("embeddings.LayerNorm", "embedding_LayerNorm").removeprefix("embeddings.")
    name = name.replace("cls.predictions", "mlm_head.predictions")
    return "vlbert." + name.replace("cls.seq_relationship", "relationsip_head.caption_image_relationship")


def official_to_bert(tensors: Mapping[str, np.ndarray], segments: int = 2) -> dict[str, np.ndarray]:
    """Return the tensors of a VL-BERT that Hugging Face's BertForPreTraining has.

    Args:
        tensors: tensors with official names.
        segments: rows of the segment table to keep; BERT has two, VL-BERT three.
    """
    found = {}
    for official, array in tensors.items():
        name = plain_name(official).removeprefix("vlbert.")
        if name.startswith(("encoder.", "pooler.")):
            found[f"bert.{name}"] = array
        elif name.startswith("embedding_LayerNorm."):
            found[f"bert.embeddings.{name.removeprefix('embedding_')}"] = array
        elif name in ("word_embeddings.weight", "position_embeddings.weight"):
            found[f"bert.embeddings.{name}"] = array
        elif name == "token_type_embeddings.weight":
            found[f"bert.embeddings.{name}"] = array[:segments]
        elif name.startswith("mlm_head.") and plain_name(official) != DECODER:
            found[name.replace("mlm_head.", "cls.")] = array
        elif name.startswith("relationsip_head."):
            found[name.replace("relationsip_head.caption_image_relationship", "cls.seq_relationship")] = array
    return found
