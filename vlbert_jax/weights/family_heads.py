"""The heads of VL-BERT's siblings that tensors have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vlbert_jax.model.architectures import VLBERT, Architecture
from vlbert_jax.model.one_stream_heads import HeadShape, OneStreamHeads
from vlbert_jax.weights.family_names import family_modules, reason_not_used

OF_PRETRAINING = (
    "cls.predictions.", "cls.seq_relationship.", "cls.bi_seq_relationship.", "cls.imagePredictions.",
    "obj_predict_head.", "answer_head.", "itm_output.", "region_classifier.", "feat_regress.",
)  # fmt: skip


def heads_not_read(unused: Iterable[str], architecture: Architecture) -> list[str]:
    """Return the heads of a sibling for a task, not for pre-training, among the tensors that a model does not read."""
    if architecture is VLBERT:
        return []
    heads = [name for name in unused if reason_not_used(name, architecture) == "head of another task"]
    return sorted({name.partition(".")[0] for name in heads if not name.startswith(OF_PRETRAINING)})


def one_stream_heads(shapes: Mapping[str, tuple[int, ...]], architecture: Architecture) -> OneStreamHeads:
    """Return the heads that tensors have, without those of pre-training.

    Args:
        shapes: Name, as `to_bert_names` has it, -> shape.
        architecture: Architecture of the model.
    """
    modules = family_modules(architecture)

    def original(head: str) -> str:
        """Return the original name of a head, whether it is one linear layer or more."""
        return modules.get(head) or modules.get(f"{head}/transform", "").removesuffix(".0")

    def shape(head: str, **options) -> HeadShape | None:
        name = original(head)
        if f"{name}.weight" in shapes:
            return HeadShape(len_of(name), **options)
        last = next((n for n in (2, 3) if len(shapes.get(f"{name}.{n}.weight", ())) == 2), None)
        return last and HeadShape(len_of(f"{name}.{last}"), len_of(f"{name}.0"), norm=last == 3, **options)

    def len_of(module: str) -> int:
        return shapes[f"{module}.weight"][0]

    def width(head: str) -> int:
        name = original(head)
        return (shapes.get(f"{name}.weight") or shapes.get(f"{name}.0.weight") or (0, 0))[1]

    bert = architecture.name != "uniter"  # dropout before the classes, as in BERT
    heads = ("pair_head", "choice_head", "matching_head")
    pair, choice, matching = (shape(head, relu=True, dropout=bert) for head in heads)
    size = shapes["bert.embeddings.word_embeddings.weight"][1]
    reads = "each" if width("pair_head") == 2 * size else "both"
    if pair and original("pair_head") == original("choice_head"):  # VisualBERT: the classes say which head it is
        pair, choice = (pair if pair.classes == number else None for number in (2, 1))
    if original("pair_head") == original("matching_head"):  # Oscar: the width does
        pair, matching = (pair, None) if reads == "each" else (None, matching)
    return OneStreamHeads(
        pair=pair,
        pair_reads="attention" if "attn_pool.fc.0.weight" in shapes else reads,
        choice=choice,
        matching=matching,
        grounding=shape("grounding_head", dropout=bert),
        phrases=f"{modules.get('phrase_attention/query', '')}.weight" in shapes,
    )
