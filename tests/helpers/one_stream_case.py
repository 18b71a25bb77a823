"""Recordings of VL-BERT's one-stream siblings, and their inputs in the vlbert_jax format.

The originals keep padding between text and regions, or pack them by an index; here every sequence is
packed as `Batch` has it. `Packed.rows` says which element of a sequence is which of the original.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.helpers.golden_case import Case, flat, relative
from vlbert_jax.batch import IMG, NO_IMAGE
from vlbert_jax.model.architectures import Architecture, get_architecture
from vlbert_jax.model.config import EncoderConfig, RegionHeadConfig
from vlbert_jax.weights import vlbert_names
from vlbert_jax.weights.family_names import family_table, pack_attention, reason_not_used, to_bert_names

TF_SIZES = dict(  # names of sizes in the recordings of B2T2 -> those of the others
    vocab="vocab_size", hidden="hidden_size", layers="num_hidden_layers", heads="num_attention_heads",
    mlp="intermediate_size", pos="max_position_embeddings",
)  # fmt: skip

HUGGING_FACE = dict(  # arguments of the original VisualBERT -> those of Hugging Face
    input_mask="attention_mask", visual_embeddings="visual_embeds", image_mask="visual_attention_mask",
    visual_embeddings_type="visual_token_type_ids", masked_lm_labels="labels", is_random_next="sentence_image_labels",
)  # fmt: skip


HEADS_OF_TASKS = (  # recordings of heads for tasks without data here: tests/tasks/one_stream_heads_golden_test.py
    "uniter_nlvr2_", "uniter_retrieval_", "uniter_refcoco_", "uniter_vcr_",
    "visualbert_nlvr2_", "visualbert_vcr_", "visualbert_flickr_",
    "visualbert_original_nlvr_", "visualbert_original_multichoice_", "visualbert_original_flickr_",
    "oscar_nlvr2_", "oscar_retrieval_",
)  # fmt: skip


def architecture_of(case: Case) -> Architecture:
    name = case.path.stem.split("_")[0]
    if name == "oscar" and case.meta["config"]["use_img_layernorm"]:
        name = "vinvl"
    if case.meta["config"].get("use_bbox_position"):
        name = "b2t2_positions"
    return get_architecture(name)


def sizes_of(case: Case) -> dict:
    """Return the sizes by Hugging Face's names. Tables may have more rows than the configuration says."""
    sizes = {TF_SIZES.get(name, name): value for name, value in case.meta["config"].items()}
    for size, table in (("vocab_size", "word"), ("type_vocab_size", "token_type")):
        sizes[size] = len(bert_names(case, case.sd)[f"bert.embeddings.{table}_embeddings.weight"])
    return sizes


def encoder_of(case: Case, **options) -> EncoderConfig:
    sizes = sizes_of(case)
    return EncoderConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["hidden_size"],
        num_layers=sizes["num_hidden_layers"],
        num_heads=sizes["num_attention_heads"],
        mlp_size=sizes["intermediate_size"],
        max_positions=sizes["max_position_embeddings"],
        num_segments=sizes.get("type_vocab_size", 2),
        pooler=True,
        architecture=architecture_of(case),
        **options,
    )


def region_head_of(case: Case, feature_size: int) -> RegionHeadConfig:
    architecture = architecture_of(case)
    return RegionHeadConfig(
        case.meta["config"].get("hidden_size", case.meta["config"].get("hidden")),
        backbone=None,
        feature_size=feature_size,
        hidden_vector=architecture.hidden == "vector",
        architecture=architecture,
    )


# --- Batches ------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Packed:
    """Fields of a batch with n = 1, and for each row: elements of the original, and elements here."""

    fields: dict
    rows: list[tuple[list[int], list[int]]]

    @property
    def feature_size(self) -> int:
        return self.fields["region_features"].shape[-1]


def pack_all(texts, text_segments, regions, region_segments, vocab_size, packed_originals: bool) -> Packed:
    """Pack real words and real regions without a gap.

    Args:
        texts: Real token ids of each sequence.
        text_segments: Their segments.
        regions: Rows of the real regions of each sequence.
        region_segments: Segment of each region row, [b, r].
        vocab_size: Size of the vocabulary.
        packed_originals: Whether the original is packed too; else its regions are behind the padded text.
    """
    length = max(len(t) + len(r) for t, r in zip(texts, regions, strict=True))
    shape = (len(texts), 1, length)
    fields = dict(
        token_ids=np.zeros(shape, np.int32),
        region_ids=np.full(shape, NO_IMAGE, np.int32),
        segment_ids=np.zeros(shape, np.int32),
        position_ids=np.zeros(shape, np.int32),
        element_mask=np.zeros(shape, bool),
    )
    rows, padded = [], max(len(t) for t in texts)
    for i, (ids, kept) in enumerate(zip(texts, regions, strict=True)):
        t, end = len(ids), len(ids) + len(kept)
        fields["token_ids"][i, 0, :t], fields["token_ids"][i, 0, t:end] = ids, vocab_size + IMG
        fields["segment_ids"][i, 0, :t] = text_segments[i]
        fields["segment_ids"][i, 0, t:end] = region_segments[i][kept]
        fields["region_ids"][i, 0, t:end] = kept
        fields["position_ids"][i, 0, :t] = np.arange(t)
        fields["element_mask"][i, 0, :end] = True
        behind = [t + k for k in range(len(kept))] if packed_originals else [padded + int(k) for k in kept]
        rows.append(([*range(t), *behind], list(range(end))))
    return Packed(fields, rows)


def with_image(packed: Packed, features, geometry=None, hidden=None, mask=None) -> Packed:
    b, r = features.shape[:2]
    packed.fields.update(
        region_features=np.asarray(features, np.float32),
        region_mask=np.ones((b, r), bool) if mask is None else mask,
        region_hidden=np.zeros((b, r), bool) if hidden is None else hidden,
        boxes=np.zeros((b, r, 4), np.float32),
        image_size=np.ones((b, 1, 2), np.float32),
    )
    if geometry is not None:
        packed.fields["box_geometry"] = np.asarray(geometry, np.float32)
    return packed


def flat_rows(inputs: dict) -> dict:
    """Return the inputs without the axis of choices or images, [b, n, ...] -> [b * n, ...]."""
    axes = dict(input_ids=2, attention_mask=2, token_type_ids=2, visual_embeds=3, visual_attention_mask=2,
                visual_token_type_ids=2, image_text_alignment=3, img_feats=3)  # fmt: skip
    return {
        name: x.reshape(-1, *x.shape[2:]) if x.ndim == axes.get(name, -1) + 1 else x for name, x in inputs.items()
    }


def pack_uniter(case: Case) -> Packed:
    inputs = case.inputs
    lengths = [int((ids != 0).sum()) for ids in inputs["input_ids"]]
    counts = inputs["attn_masks"].sum(1) - lengths
    texts = [ids[:t] for ids, t in zip(inputs["input_ids"], lengths, strict=True)]
    b, r = inputs["img_feat"].shape[:2]
    regions = [np.arange(k) for k in counts]
    segments = inputs.get("txt_type_ids", np.zeros_like(inputs["input_ids"]))
    packed = pack_all(
        texts,
        [row[:t] for row, t in zip(segments, lengths, strict=True)],
        regions,
        inputs.get("img_type_ids", np.ones((b, r))),
        sizes_of(case)["vocab_size"],
        packed_originals=True,
    )
    return with_image(packed, inputs["img_feat"], inputs["img_pos_feat"], inputs.get("img_masks"))


def pack_visualbert(case: Case, default_segment: int = 1) -> Packed:
    """Pack the inputs of Hugging Face, where the segment of regions is 1 if none is given, or of the original code."""
    inputs = {HUGGING_FACE.get(name, name): value for name, value in case.inputs.items()}
    inputs = flat_rows(inputs)
    text_mask, mask = inputs["attention_mask"] == 1, inputs["visual_attention_mask"] == 1
    segments = inputs.get("visual_token_type_ids", np.full_like(inputs["visual_attention_mask"], default_segment))
    packed = pack_all(
        [ids[real] for ids, real in zip(inputs["input_ids"], text_mask, strict=True)],
        [ids[real] for ids, real in zip(inputs["token_type_ids"], text_mask, strict=True)],
        [np.flatnonzero(real) for real in mask],
        segments,
        sizes_of(case)["vocab_size"],
        packed_originals=False,
    )
    width = inputs["input_ids"].shape[1]
    packed.rows = [  # the text may be padded further than its longest row
        ([*range(t), *(width + np.flatnonzero(real))], ours)
        for t, real, (_, ours) in zip(text_mask.sum(1), mask, packed.rows, strict=True)
    ]
    if "image_text_alignment" in inputs:
        packed.fields["region_words"] = inputs["image_text_alignment"][:, None].astype(np.int32)
    return with_image(packed, inputs["visual_embeds"], mask=mask)


def pack_oscar(case: Case) -> Packed:
    inputs = flat_rows(case.inputs)
    width = inputs["input_ids"].shape[1]
    text_mask, mask = inputs["attention_mask"][:, :width] == 1, inputs["attention_mask"][:, width:] == 1
    packed = pack_all(
        [ids[real] for ids, real in zip(inputs["input_ids"], text_mask, strict=True)],
        [ids[real] for ids, real in zip(inputs["token_type_ids"], text_mask, strict=True)],
        [np.flatnonzero(real) for real in mask],
        np.zeros(mask.shape),
        sizes_of(case)["vocab_size"],
        packed_originals=False,
    )
    packed.rows = [
        ([*range(t), *(width + np.flatnonzero(real))], ours)
        for t, real, (_, ours) in zip(text_mask.sum(1), mask, packed.rows, strict=True)
    ]
    size = architecture_of(case).geometry_size
    return with_image(packed, inputs["img_feats"][..., :-size], inputs["img_feats"][..., -size:], mask=mask)


def pack_b2t2(case: Case) -> Packed:
    """Pack words that carry regions: [IMAGE] at place 1 the whole image, row 0; box k is row k + 1."""
    inputs = case.inputs
    regions = np.where(inputs["bbox_idx"] >= 0, inputs["bbox_idx"] + 1, NO_IMAGE)
    regions[:, 1] = 0
    ids = inputs["input_ids"]
    fields = dict(
        token_ids=ids.astype(np.int32),
        region_ids=regions.astype(np.int32),
        segment_ids=inputs["segment_ids"].astype(np.int32),
        position_ids=np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape),
        element_mask=inputs["input_mask"] == 1,
    )
    rows = [(list(range(n)), list(range(n))) for n in inputs["input_mask"].sum(1)]
    features = np.concatenate([inputs["image_vector"][:, None], inputs["boxes_vectors"]], 1)
    geometry = None
    if "bbox_pos" in inputs:  # y, x, height, width of boxes in an image of 224 pixels; the whole image has no position
        y, x, height, width = np.moveaxis(inputs["bbox_pos"], -1, 0)
        # Parts of a pixel, so that corners and sizes are rounded down safely.
        boxes = np.stack([x + 0.25, y + 0.25, x + width + 0.5, y + height + 0.5], -1) / 224
        geometry = np.concatenate([np.ones_like(boxes[:, :1]), boxes], 1)
    return with_image(Packed({name: value[:, None] for name, value in fields.items()}, rows), features, geometry)


def positions_of_regions(packed):
    """Return the position of each row of regions in sequence 0 [b, 1, k], 0 for padding, and which are real."""
    ids, k = packed.fields["region_ids"][:, 0], packed.fields["region_mask"].shape[1]
    here = ids[:, None] == np.arange(k)[:, None]
    return jnp.asarray(here.argmax(-1)[:, None].astype(np.int32)), jnp.asarray(here.any(-1)[:, None])


def joined(packed: Packed, n: int) -> Packed:
    """Return the batch whose examples have n sequences, each over an image of its own."""
    fields, b = packed.fields, len(packed.fields["token_ids"]) // n
    r = fields["region_mask"].shape[1]
    result = {}
    for name, array in fields.items():
        if name in ("token_ids", "region_ids", "segment_ids", "position_ids", "element_mask", "image_size"):
            result[name] = array.reshape(b, n, *array.shape[2:])
        elif name == "region_words":  # positions of words of the sequence whose image a region is of
            result[name] = np.full((b, n, n * r, array.shape[-1]), -1, np.int32)
            for k in range(n):
                result[name][:, k, k * r : (k + 1) * r] = array.reshape(b, n, r, -1)[:, k]
        else:
            result[name] = array.reshape(b, n * r, *array.shape[2:])
    first = (np.arange(n, dtype=np.int32) * r)[:, None]
    result["region_ids"] = np.where(result["region_ids"] == NO_IMAGE, NO_IMAGE, result["region_ids"] + first)
    return Packed(result, packed.rows)


PACK = dict(uniter=pack_uniter, visualbert=pack_visualbert, oscar=pack_oscar, vinvl=pack_oscar, b2t2=pack_b2t2,
            b2t2_positions=pack_b2t2)  # fmt: skip


def pack_case(case: Case, **options) -> Packed:
    return PACK[architecture_of(case).name](case, **options)


# --- Weights and gradients ----------------------------------------------------------------------------------


def bert_names(case: Case, tensors: dict) -> dict:
    """Return recorded tensors with the names of the table; those of encoders alone have no prefix."""
    bare = not any(name.startswith(("bert", "uniter.", "visual_bert.")) for name in case.sd)
    return to_bert_names({f"bert.{name}" if bare else name: v for name, v in tensors.items()}, architecture_of(case))


def load_case(build, case: Case):
    """Return the module of `build()` with the tensors of the case; each tensor is used or has a reason."""
    architecture, vocab_size = architecture_of(case), sizes_of(case)["vocab_size"]
    tensors = bert_names(case, case.sd)
    graphdef, state = nnx.split(nnx.eval_shape(build))
    shapes = {path: v.shape for path, v in ((tuple(map(str, p)), v) for p, v in nnx.to_flat_state(state))}

    def table(shapes, size):
        return family_table(shapes, size, architecture)

    found = vlbert_names.match_tensors(tensors, shapes, vocab_size, table)
    assert not found.missing, found.missing
    reasons = {name: reason_not_used(name, architecture) for name in found.unused}
    assert all(reasons.values()), reasons
    for path, variable in nnx.to_flat_state(state):
        array = np.zeros(variable.shape, np.float32)
        found.fill(array, tuple(map(str, path)), tensors)
        variable.set_value(jnp.asarray(array))
    return nnx.merge(graphdef, state), reasons


def compare_gradients(case: Case, gradients, tolerance: float, of_test: dict | None = None) -> None:
    """Compare recorded gradients by name, and the norms of all; `of_test` are gradients of heads that a test has."""
    architecture = architecture_of(case)
    ours = vlbert_names.to_official(
        {path: np.asarray(v) for path, v in flat(gradients).items()},
        sizes_of(case)["vocab_size"],
        lambda shapes, size: family_table(shapes, size, architecture),
    )
    ours = pack_attention(ours) | (of_test or {})
    recorded = pack_attention(bert_names(case, case.grad))
    assert recorded
    for name, expected in recorded.items():
        relative(ours[name], expected, tolerance)
    norms = case.meta.get("grad_norms") or {}
    zero = set(case.meta.get("zero_gradients") or ())  # what float32 leaves there is noise
    norms = {name: np.asarray(-1 if n is None else n) for name, n in norms.items() if name not in zero}
    wanted = bert_names(case, norms)
    largest = max((float(norm) for norm in wanted.values()), default=0)
    for name, expected in wanted.items():
        if name not in ours:
            assert expected <= 0 or reason_not_used(name, architecture), name
            continue
        norm = np.linalg.norm(ours[name].astype(np.float64))
        if expected < 0:
            assert norm == 0, f"{name} is not used in the original code"
        else:
            assert abs(norm - expected) <= tolerance * max(expected, 1e-3 * largest), (name, norm, expected)
