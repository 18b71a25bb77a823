"""Convert inputs in recordings of the official downstream modules to a Batch."""

import jax.numpy as jnp
import ml_collections
import numpy as np

from tests.helpers.golden_case import encoder_config, region_head, stack
from vlbert_jax.batch import Batch
from vlbert_jax.data.packing import pack

CLS, SEP = 101, 102


def texts(case) -> dict[str, np.ndarray]:
    """Return ids, segments, tags and mask of the text tokens, [b, n, s].

    RefCOCO+ has no recording of them, so they are computed from the expressions.
    """
    if "text_input_ids" in case.out:
        fields = {name: case.out[f"text_{name}"] for name in ("input_ids", "token_type_ids", "tags", "mask")}
        return {name: array if array.ndim == 3 else array[:, None] for name, array in fields.items()}
    expressions = case.inputs["expression"]
    ids = np.zeros((len(expressions), 1, expressions.shape[1] + 2), np.int64)
    for row, expression in zip(ids[:, 0], expressions, strict=True):
        words = expression[expression > 0]
        row[: len(words) + 2] = [CLS, *words, SEP]
    return dict(input_ids=ids, token_type_ids=0 * ids, tags=0 * ids, mask=ids > 0)


def fields_of(case) -> Batch:
    """Return the fields of the batch without targets."""
    words, boxes = texts(case), case.inputs["boxes"]
    vcr = case.meta["task"] == "vcr"  # the last column marks padding
    real = boxes[..., -1] > -0.5 if vcr else boxes[..., 0] > -1.5
    vocab_size = case.network["VLBERT"]["vocab_size"]
    b, n, _ = words["mask"].shape
    lengths = words["mask"].sum(-1)
    longest = int((lengths + real.sum(1)[:, None]).max())
    rows = []
    for i in range(b):
        sequences = []
        for j in range(n):
            mask = words["mask"][i, j]
            ids, segments, tags = (words[name][i, j][mask] for name in ("input_ids", "token_type_ids", "tags"))
            count = int(real[i].sum())
            sequences.append(pack(ids, segments, count, np.zeros(count, bool), tags, longest, vocab_size))
        rows.append({name: np.stack([s[name] for s in sequences]) for name in sequences[0]})
    fields = stack(rows)
    fields.update(
        boxes=jnp.asarray(np.where(real[..., None], boxes[..., :4], 0)),
        region_mask=jnp.asarray(real),
        image_size=jnp.asarray(case.inputs["im_info"][:, None, :2]),
    )
    if "image" in case.inputs:
        fields["pixels"] = jnp.asarray(case.inputs["image"].transpose(0, 2, 3, 1))[:, None]
    else:
        fields["region_features"] = jnp.asarray(np.where(real[..., None], boxes[..., 4:], 0))
    if "masks" in case.inputs:
        fields["region_shapes"] = jnp.asarray(case.inputs["masks"])
    positions = lengths[..., None] + np.arange(real.shape[1])
    fields["region_positions"] = jnp.asarray(np.where(real[:, None], positions, 0))
    return fields


def adjust(config: ml_collections.ConfigDict, case) -> None:
    """Apply the settings of the case to a shipped config."""
    config.compute_dtype = "float32"
    encoder = encoder_config(case)
    config.model.encoder = {name: getattr(encoder, name) for name in config.model.encoder}
    config.model.feature_size = case.meta["dims"]["VISUAL"]
    if "image" not in case.inputs:
        config.data.features, config.model.train_region_head = "precomputed", False
        return
    config.data.features, config.model.train_region_head = "image", True
    options = region_head(case)
    config.model.region_head.update(vars(options.backbone), dilated_c5=options.dilated_c5, roi_chunk=3)
    config.model.region_head.frozen_batch_norm = case.network["IMAGE_FROZEN_BN"]
