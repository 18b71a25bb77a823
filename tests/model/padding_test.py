"""Test that values of padding change no bit of the loss, metrics and gradients of any task."""

import jax
import numpy as np
import pytest

from tests.helpers.batch_case import fields_of
from tests.helpers.synthetic_case import build, gradient_function, synthetic_batch, tiny_config
from vlbert_jax.batch import Batch, make_batch

INT = np.iinfo(np.int32)
FLOAT = np.finfo(np.float32)
WORST = {"lowest": (INT.min, -np.inf), "highest": (INT.max, FLOAT.max), "nan": (INT.max - 7, np.nan)}
DETECTOR = {"model.region_head.roi_operation": "pool", "model.region_head.mask_padding": True}
ADAPTIVE = {"model.region_head.roi_samples": 0, "data.geometry_on_device": True}
CASES = [
    ("pretrain", {"data.hide_pixels": True}),
    ("pretrain", {"losses.mrc_targets": "hard", "losses.normalize": "examples"} | ADAPTIVE),
    ("pretrain_precomputed", {}),
    ("vqa", {}),
    ("vqa", {"losses.answer": "softmax", "model.region_head.roi_chunk": 3} | ADAPTIVE),
    ("refcoco", DETECTOR),
    ("vcr", {"model.region_head.roi_chunk": 5}),
    ("vcr", {"losses.choice": "softmax"} | DETECTOR | ADAPTIVE | {"model.region_head.roi_samples": 1}),
]
# This is the mask of the real entries of each field. Fields that are masks are absent.
# `region_hidden` also blanks pixels of regions that do not fit the sequence, so it is absent.
MASKS = dict.fromkeys(("token_ids", "region_ids", "segment_ids", "position_ids"), "element_mask")
MASKS |= dict.fromkeys(
    ("boxes", "region_features", "box_geometry", "region_shapes", "region_classes")
    + ("region_targets", "region_hits", "region_positions"),
    "region_mask",
)
MASKS |= dict.fromkeys(("mlm_positions", "mlm_labels"), "mlm_mask")
MASKS |= dict.fromkeys(("mrc_regions", "mrc_positions", "mrc_targets"), "mrc_mask")
MASKS |= dict.fromkeys(("image_size", "answer_positions", "answer_targets", "relationship", "group"), "example")
MASKS |= dict(text_cut="example", pixels="inside")


def with_padding(batch: Batch, integer: int, real: float) -> Batch:
    """Return the batch with the given values in all its padding."""
    example = batch.element_mask.any((1, 2))
    fields = fields_of(batch)
    masks = dict(fields, example=example)
    if batch.pixels is not None:
        rows, columns = (np.arange(side)[None, None] for side in batch.pixels.shape[2:4])
        width, height = np.split(batch.image_size, 2, axis=2)
        inside = (rows < height)[..., None] & (columns < width)[:, :, None]
        masks["inside"] = inside & example[:, None, None, None]
    changed = {}
    for name in MASKS.keys() & fields.keys():
        value, mask = fields[name], masks[MASKS[name]]
        if name == "region_positions":
            mask = np.broadcast_to(mask[:, None], value.shape)
        mask = mask.reshape(*mask.shape, *[1] * (value.ndim - mask.ndim))
        worst = {"i": integer, "f": real, "b": True, "u": 255}[value.dtype.kind]
        changed[name] = np.where(mask, value, np.asarray(worst, value.dtype))
        assert not np.array_equal(changed[name], value), f"{name} has no padding"
    return make_batch(fields | changed, type(batch.targets))


@pytest.mark.slow
@pytest.mark.parametrize("recipe, fields", CASES, ids=str)
def test_values_of_padding_do_not_change_results(recipe, fields):
    config = tiny_config(recipe, **fields)
    batch = synthetic_batch(config)
    _, trained, constants = build(config)
    run = gradient_function(config)
    expected = jax.device_get(run(trained, constants, batch))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
    for what, worst in WORST.items():
        found = jax.device_get(run(trained, constants, with_padding(batch, *worst)))
        for (path, leaf), other in zip(
            jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(found), strict=True
        ):
            np.testing.assert_array_equal(other, leaf, err_msg=f"{what} {jax.tree_util.keystr(path)}")
