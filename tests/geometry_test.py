"""Test the geometry of boxes: the sine embedding, and the numbers of other models."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.golden_folders import golden_folders
from vlbert_jax.geometry import box_geometry, box_numbers, region_geometry

UNITER_DATA = [path for folder in golden_folders("one_stream") for path in sorted(folder.glob("data_uniter_*.json"))]
FIXTURES = sorted(p for f in golden_folders("model") for p in f.glob("i_coordinate_embeddings*.npz"))


@pytest.mark.parametrize("path", FIXTURES, ids=str)
@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_equals_the_official_embedding(path, xp):
    with np.load(path) as fixture:
        rows, expected = fixture["in/boxes"], fixture["out/emb"]
    # The official rows carry an image size for each box, so each box is its own image here.
    got = box_geometry(xp.asarray(rows[:, None, :4]), xp.asarray(rows[:, 4:6]), dim=expected.shape[-1] // 2)
    assert isinstance(got, np.ndarray if xp is np else jnp.ndarray)
    assert got.dtype == np.float32
    # The official code in float32 differs from itself in float64 by at most 1.1e-5.
    np.testing.assert_allclose(np.asarray(got).reshape(expected.shape), expected, atol=1e-4, rtol=0)


def test_order_by_hand():
    """The values of a box are sines and cosines of its center and size at two wavelengths.

    Center and size are 25 %, 50 %, 50 % and 100 % of the image.
    """
    got = box_geometry(np.array([[0, 0, 100, 50]], np.float32), np.array([200, 50], np.float32), dim=2)
    long = np.sqrt(1000.0)
    expected = [f(p / w) for p in (25, 50, 50, 100) for f in (np.sin, np.cos) for w in (1, long)]
    np.testing.assert_allclose(got[0], expected, atol=1e-5)


def test_batches_equal_single_images_and_padding_is_finite():
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.uniform(0, 90, (2, 3, 5, 4)).astype(np.float32), axis=-1)
    sizes = rng.uniform(90, 100, (2, 3, 2)).astype(np.float32)
    sizes[1, 2] = 0  # a padding example of the last batch
    got = box_geometry(boxes, sizes, dim=8)
    assert got.shape == (2, 3, 5, 64) and np.isfinite(got).all()
    np.testing.assert_array_equal(got[1, 0], box_geometry(boxes[1, 0], sizes[1, 0], dim=8))


@pytest.mark.parametrize("path", UNITER_DATA, ids=lambda path: path.stem)
@pytest.mark.parametrize("xp", (np, jnp))
def test_seven_numbers_are_those_of_uniter(path, xp):
    for case in json.loads(path.read_text())["box_geometry"]:
        size = xp.asarray([case["width"], case["height"]], xp.float32)
        ours = region_geometry(xp.asarray(case["boxes"], xp.float32), size, 7)
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(case["img_pos_feat"], np.float32))


def test_fewer_numbers():
    boxes, size = np.array([[10, 5, 30, 25]], np.float32), np.array([100, 50], np.float32)
    six = [0.1, 0.1, 0.3, 0.5, 0.2, 0.4]
    np.testing.assert_allclose(box_numbers(boxes, size, 6), [six], rtol=1e-6)
    np.testing.assert_allclose(box_numbers(boxes, size, 4), [six[:4]], rtol=1e-6)
    np.testing.assert_allclose(box_numbers(boxes, size, 5), [[*six[:4], 0.08]], rtol=1e-6)
    np.testing.assert_array_equal(region_geometry(boxes, size, 2048), box_geometry(boxes, size))
