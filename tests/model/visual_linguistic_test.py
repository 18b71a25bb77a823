"""Test examples with several images: each image gives the states that it gives alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers.pretrain_case import shrunk
from vlbert_jax.batch import IMG, Batch
from vlbert_jax.data.packing import pack
from vlbert_jax.model.config import model_options
from vlbert_jax.model.visual_linguistic import VisualLinguisticModel

ROWS, VOCAB = 3, 256  # ROWS is the number of regions of an image, including the whole image


def batch_of_pairs(model_config, features: str) -> Batch:
    """Return two examples with two images and one sequence for each image."""
    rng = np.random.default_rng(0)
    size = rng.integers(40, 64, (2, 2, 2)).astype(np.float32)
    low = rng.uniform(0, 20, (2, 2 * ROWS, 2))
    boxes = np.concatenate([low, low + rng.uniform(5, 20, low.shape)], -1).astype(np.float32)
    mask = np.array([[True, True, False, True, True, True], [True, True, True, True, False, False]])
    sequences = []
    for rows in ([0, 1, 2], [3, 4, 5]):
        packed = pack([5, 6, 7], [0] * 3, ROWS, [False] * ROWS, [rows[0]] * 3, 12, VOCAB)
        is_region = packed["token_ids"] == VOCAB + IMG
        packed["region_ids"][is_region] = rows
        sequences.append(packed)
    fields = {name: np.stack([np.stack([s[name] for s in sequences])] * 2) for name in sequences[0]}
    if features == "image":
        fields["pixels"] = rng.integers(0, 256, (2, 2, 64, 64, 3)).astype(np.uint8)
    else:
        fields["region_features"] = rng.normal(size=(2, 2 * ROWS, model_config.feature_size)).astype(np.float32)
    return Batch(**fields, boxes=boxes, region_mask=mask, region_hidden=np.zeros_like(mask), image_size=size)


def one_image(batch: Batch, image: int) -> Batch:
    """Return the batch with only one of the images and its sequence."""
    rows = slice(image * ROWS, (image + 1) * ROWS)
    fields = {name: value for name, value in vars(batch).items() if value is not None and name != "targets"}
    for name in ("boxes", "region_mask", "region_hidden", "region_features"):
        if name in fields:
            fields[name] = fields[name][:, rows]
    for name in ("pixels", "image_size", "token_ids", "region_ids", "segment_ids", "position_ids", "element_mask"):
        if name in fields:
            fields[name] = fields[name][:, image : image + 1]
    fields["region_ids"] = np.where(fields["region_ids"] >= 0, fields["region_ids"] - image * ROWS, -1)
    return Batch(**fields)


@pytest.mark.parametrize("variant, features", [("base_e2e", "image"), ("base_prec", "precomputed")])
def test_two_images_give_the_states_of_each_alone(variant, features):
    config = shrunk(variant, "nowhere")
    config.compute_dtype = "float32"
    encoder, head = model_options(config)
    gains = dict(text_visual_gain_init=1.0, region_visual_gain_init=1.0)  # a gain of 0 hides the image
    model = VisualLinguisticModel(dataclasses.replace(encoder, vocab_size=VOCAB, **gains), head, nnx.Rngs(0))
    batch = batch_of_pairs(config.model, features)
    both = nnx.jit(lambda model, batch: model.states(batch))(model, jax.tree.map(jnp.asarray, batch))
    for image in (0, 1):
        alone = nnx.jit(lambda model, batch: model.states(batch))(
            model, jax.tree.map(jnp.asarray, one_image(batch, image))
        )
        np.testing.assert_allclose(both[:, image], alone[:, 0], atol=1e-5)
    assert np.abs(np.asarray(both[:, 0] - both[:, 1])).max() > 0.1
