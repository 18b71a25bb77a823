"""Read recordings of the official PyTorch modules; convert their inputs for vlbert_jax."""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from configs import pretrain as recipes
from vlbert_jax.batch import END, NO_IMAGE, Batch, make_batch
from vlbert_jax.data.packing import pack
from vlbert_jax.model.config import BackboneConfig, EncoderConfig, RegionHeadConfig, RoIOptions
from vlbert_jax.tasks.pretrain.targets import PretrainTargets
from vlbert_jax.weights import vlbert_names

FORWARD = 1e-4  # absolute tolerance of forward values


class Case:
    """One recording: `meta` holds its JSON; `sd`, `inputs`, `out` and `grad` hold its arrays.

    `original` holds outputs of another code base on the same weights and inputs.
    """

    def __init__(self, path: Path):
        self.path, self.meta = path, json.loads(path.read_text())
        self.sd, self.inputs, self.out, self.grad, self.original = {}, {}, {}, {}, {}
        kinds = {"sd": self.sd, "in": self.inputs, "out": self.out, "grad": self.grad}
        kinds |= {"original": self.original, "original_beta": self.original}
        with np.load(path.with_suffix(".npz")) as arrays:
            for key in arrays.files:
                kind, name = key.split("/", 1)
                kinds[kind][name] = arrays[key]
        for alias, name in self.meta.get("aliases", {}).items():
            if name in self.sd:
                self.sd[alias] = self.sd[name]
        self.network = self.meta.get("config", {}).get("NETWORK", self.meta.get("config", {}))


def close(ours, official, tolerance=FORWARD):
    np.testing.assert_allclose(np.asarray(ours, np.float64), official, rtol=0, atol=tolerance)


def flat(state) -> dict:
    return {tuple(map(str, path)): variable[...] for path, variable in nnx.to_flat_state(state)}


def load(build, tensors, vocab_size=0):
    """Return the module of `build()` with the official tensors; each tensor must be used."""
    graphdef, abstract = nnx.split(nnx.eval_shape(build))
    shapes = {tuple(map(str, path)): v.shape for path, v in nnx.to_flat_state(abstract)}
    found = vlbert_names.match_tensors(tensors, shapes, vocab_size)
    reasons = {vlbert_names.reason_not_wanted(name) for name in found.unused}
    assert reasons <= {"duplicate", "batch counter"}, found.unused
    for path, variable in nnx.to_flat_state(abstract):
        array = np.zeros(variable.shape, np.float32)
        found.fill(array, tuple(map(str, path)), tensors)
        variable.set_value(jnp.asarray(array))
    return nnx.merge(graphdef, abstract), found


def region_head(case, **options) -> RegionHeadConfig:
    """Return the options of the region head for the ResNet of the case."""
    dims, network = case.meta["dims"], case.network
    blocks = dims["model_layers"][f"resnet{network['IMAGE_NUM_LAYERS']}"]
    return RegionHeadConfig(
        backbone=BackboneConfig(
            stem_width=stem_width(case),
            widths=(*dims["PLANES"][:3], dims["ROI_HEAD_PLANES"]),
            blocks=(*blocks[:3], dims["ROI_HEAD_BLOCKS"]),
            strides=(1, 2, 2),
            stride_in_1x1=network["IMAGE_STRIDE_IN_1x1"],
            frozen_stages=tuple(network["IMAGE_FROZEN_BACKBONE_STAGES"]),
        ),
        roi=RoIOptions(chunk=3),
        dilated_c5=network["IMAGE_C5_DILATED"],
        hidden_size=network["IMAGE_FINAL_DIM"],
        **options,
    )


def stem_width(case) -> int:
    shapes = (
        case.meta["arrays"]
        if not case.meta.get("weight_spec")
        else {f"sd/{name}": [None, shape] for name, (_, shape) in case.meta["weight_spec"].items()}
    )
    return next(spec[1][0] for name, spec in shapes.items() if name.endswith("backbone.conv1.weight"))


def encoder_config(case, **options) -> EncoderConfig:
    bert = case.network["VLBERT"]
    return EncoderConfig(
        vocab_size=bert["vocab_size"],
        hidden_size=bert["hidden_size"],
        num_layers=bert["num_hidden_layers"],
        num_heads=bert["num_attention_heads"],
        mlp_size=bert["intermediate_size"],
        max_positions=bert["max_position_embeddings"],
        num_segments=bert["type_vocab_size"],
        visual_size=0 if bert["visual_size"] == bert["hidden_size"] else bert["visual_size"],
        visual_layer_norm=bert["visual_ln"],
        pooler=bert["with_pooler"],
        **options,
    )


def stack(rows: list[dict]) -> dict:
    return {name: jnp.asarray(np.stack([row[name] for row in rows])) for name in rows[0]}


def free_sequences(case, vocab_size):
    """Return the sequences of `iv_` and `v_` cases, whose elements have arbitrary input vectors.

    The visual vector of each text element becomes a region row. The linguistic vector of each
    object becomes a row of the token table after [END].

    Returns:
        The fields of the batch, the region rows and the additional token rows.
    """
    inputs, bert = case.inputs, case.network["VLBERT"]
    visual = bert["visual_size"]
    objects = inputs["object_vl_embeddings"]
    num_objects, max_objects = inputs["object_mask"].sum(1), inputs["object_mask"].shape[1]
    max_text = inputs["text_mask"].shape[1]
    length = int((inputs["text_mask"].sum(1) + num_objects).max())
    region_rows = np.zeros((len(objects), max_objects + max_text, visual), np.float32)
    token_rows, rows = [], []
    for i, mask in enumerate(inputs["text_mask"]):
        count = num_objects[i]
        kept = objects[i][inputs["object_mask"][i]]
        region_rows[i, :count] = kept[:, :visual]
        region_rows[i, max_objects:] = inputs["text_visual_embeddings"][i]
        row = pack(
            inputs["text_input_ids"][i][mask],
            inputs["text_token_type_ids"][i][mask],
            int(count),
            np.zeros(count, bool),
            max_objects + np.flatnonzero(mask),
            length,
            vocab_size,
            position_offset=bert["position_padding_idx"] + 1,
        )
        start = int(mask.sum())
        row["token_ids"][start : start + count] = vocab_size + END + 1 + len(token_rows) + np.arange(count)
        token_rows.extend(kept[:, visual:])
        rows.append({name: array[None] for name, array in row.items()})
    return stack(rows), jnp.asarray(region_rows), np.asarray(token_rows, np.float32)


def recipe(case, execution) -> ml_collections.ConfigDict:
    """Return a shipped config with the settings of the case, for the shipped model builder."""
    network, bert, dims = case.network, case.network["VLBERT"], case.meta["dims"]
    config = recipes.base_e2e()
    config.compute_dtype = "float32"
    encoder = encoder_config(case, **execution)
    config.model.encoder = {name: getattr(encoder, name) for name in config.model.encoder}
    precomputed = network["IMAGE_FEAT_PRECOMPUTED"]
    config.data.features = "precomputed" if precomputed else "image"
    config.data.hide_pixels = not precomputed and network["MASK_RAW_PIXELS"]
    config.model.num_region_classes = bert["visual_region_classes"]
    config.model.feature_size = dims["VISUAL"]
    if not precomputed:
        options = region_head(case)
        config.model.region_head.update(vars(options.backbone), dilated_c5=options.dilated_c5, roi_chunk=3)
        config.model.region_head.frozen_batch_norm = network["IMAGE_FROZEN_BN"]
        config.model.region_head.remat = execution["remat"] == "full"
    config.losses.mlm, config.losses.mrc = network["WITH_MLM_LOSS"], network["WITH_MVRC_LOSS"]
    config.losses.relationship = network["WITH_REL_LOSS"]
    config.losses.text_only = "aux0_text" in case.inputs
    config.losses.normalize = "examples" if network["MLM_LOSS_NORM_IN_BATCH_FIRST"] else "targets"
    return config


def masked_words(labels, size):
    positions = np.flatnonzero(labels != -1)
    pad = size - len(positions)
    return dict(
        mlm_positions=np.pad(positions, (0, pad)).astype(np.int32),
        mlm_labels=np.pad(labels[positions], (0, pad)).astype(np.int32),
        mlm_mask=np.arange(size) < len(positions),
    )


def pretraining_batch(case, config) -> Batch:
    """Return a batch with captions in sequence 0 and text in sequence 1; missing rows are empty."""
    inputs, network = case.inputs, case.network
    vocab_size = config.model.encoder.vocab_size
    aux = sorted(name for name in inputs if re.fullmatch(r"aux\d+_text", name))
    texts = [
        (ids, labels)
        for name in aux
        for ids, labels in zip(inputs[name], inputs[name.replace("text", "mlm_labels")], strict=True)
    ]
    region_mask = inputs["boxes"][:, :, 0] > -1.5
    captions, regions = region_mask.shape
    num_rows = max(captions, len(texts))
    length = max(
        int((inputs["text"] > 0).sum(1).max() + region_mask.sum(1).max()),
        *(int((ids > 0).sum()) for ids, _ in texts),
        0,
    )
    most = max([1, *((inputs["mlm_labels"] != -1).sum(1)), *((labels != -1).sum() for _, labels in texts)])
    hidden = (inputs["mvrc_ops"] == 1) & region_mask & network["WITH_MVRC_LOSS"]
    targets = inputs["mvrc_labels"]
    scored = (np.abs(targets.sum(-1) - 1) < 0.1) & region_mask
    most_regions = max(1, scored.sum(1).max())

    def sequence(ids, labels, row=None):
        ids, labels = ids[ids > 0], labels[: (ids > 0).sum()]
        count = 0 if row is None else int(region_mask[row].sum())
        fields = pack(
            ids,
            np.zeros(len(ids), np.int32),
            count,
            np.zeros(0, bool) if row is None else hidden[row, :count],
            np.full(len(ids), NO_IMAGE if row is None else 0),
            length,
            vocab_size,
            position_offset=network["VLBERT"]["position_padding_idx"] + 1,
        )
        return {**fields, **masked_words(labels, most)}

    nothing = sequence(np.zeros(0, np.int64), np.zeros(0, np.int64))
    nothing["element_mask"] = np.zeros_like(nothing["element_mask"])
    rows = []
    for i in range(num_rows):
        sequences = [sequence(inputs["text"][i], inputs["mlm_labels"][i], i) if i < captions else nothing]
        if texts:
            sequences.append(sequence(*texts[i]) if i < len(texts) else nothing)
        rows.append({name: np.stack([s[name] for s in sequences]) for name in nothing})

    def padded(array):
        return jnp.asarray(np.pad(array, [(0, num_rows - captions)] + [(0, 0)] * (array.ndim - 1)))

    order = np.argsort(~scored, axis=1, kind="stable")[:, :most_regions]
    text_lengths = (inputs["text"] > 0).sum(1)
    fields = stack(rows)
    fields.update(
        boxes=padded(np.where(region_mask[..., None], inputs["boxes"][..., :4], 0)),
        region_mask=padded(region_mask),
        region_hidden=padded(hidden),
        image_size=jnp.maximum(padded(inputs["im_info"][:, None, :2]), 1),
        mrc_regions=padded(order.astype(np.int32)),
        mrc_positions=padded((order + text_lengths[:, None]).astype(np.int32)),
        mrc_targets=padded(np.take_along_axis(targets, order[..., None], 1)),
        mrc_mask=padded(np.take_along_axis(scored, order, 1)),
        relationship=padded(inputs["relationship_label"].astype(np.int32)),
    )
    if network["IMAGE_FEAT_PRECOMPUTED"]:
        fields["region_features"] = padded(np.where(region_mask[..., None], inputs["boxes"][..., 4:], 0))
    else:
        fields["pixels"] = padded(inputs["image"].transpose(0, 2, 3, 1))[:, None]
    return make_batch(fields, PretrainTargets)


def relative(ours, official, tolerance):
    scale = np.abs(official).max()
    np.testing.assert_allclose(np.asarray(ours), official, rtol=0, atol=tolerance * scale)


def compare_gradients(case, gradients, vocab_size, tolerance):
    official = vlbert_names.to_official({path: np.asarray(v) for path, v in flat(gradients).items()}, vocab_size)
    compare_official_gradients(case, official, tolerance)


def compare_official_gradients(case, official, tolerance):
    """Compare gradients, by the names of the recording, with the recorded ones and with the norm of every one."""
    for name, expected in case.grad.items():
        relative(official[name], expected, tolerance)
    norms = {name: norm for name, norm in case.meta["grad_norms"].items() if norm is not None}
    largest = max(norms.values())
    for name, expected in norms.items():
        ours = np.linalg.norm(official[name].astype(np.float64))
        # The gradient of a key bias is rounding noise, so the tolerance has a lower bound that
        # depends on the largest norm.
        assert abs(ours - expected) <= tolerance * max(expected, 1e-3 * largest), (name, ours, expected)
    for name in set(case.meta["grad_norms"]) - set(norms):
        assert name not in official or not np.any(official[name]), f"{name} is frozen in the official code"
