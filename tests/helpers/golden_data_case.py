"""Find recordings of the official datasets, and check images, features and boxes against them."""

import pathlib

import jax.numpy as jnp
import numpy as np

from tests.helpers.golden_folders import golden_folders
from vlbert_jax.data import tokenizer
from vlbert_jax.model.region_head import prepare_pixels

FOLDERS = {path.name: path for folder in golden_folders("data") for path in sorted(folder.iterdir()) if path.is_dir()}

# Decoders and resizers differ by up to two gray levels. The mean color that replaces an unreadable
# image is rounded to uint8.
GRAY_LEVELS = 2.0


def load_tokenizer():
    vocab = FOLDERS["common"] / "vocab.txt"
    return tokenizer.load_tokenizer(str(vocab), len(vocab.read_text("utf-8").splitlines()))


def device_pixels(example, hide: bool):
    """Return the network's input: BGR minus means, zero where hidden, [3, height, width]."""
    width, height = example["image_size"][0].astype(int)
    pixels = prepare_pixels(
        jnp.asarray(example["pixels"]),
        jnp.asarray(example["image_size"]),
        jnp.asarray(example["boxes"][None]),
        jnp.asarray(example["region_hidden"][None]) if hide else None,
    )
    return np.asarray(pixels)[0, :height, :width].transpose(2, 0, 1)


def check_pixels(probes, example, whole: pathlib.Path, hide: bool, where: str):
    """Compare an image with the recorded probes, and with the file `whole` if it exists."""
    pixels = device_pixels(example, hide)
    assert list(pixels.shape) == probes["shape"], where
    at = np.ix_(range(3), probes["grid_y"], probes["grid_x"])
    np.testing.assert_allclose(pixels[at], probes["grid"], atol=GRAY_LEVELS, err_msg=where)
    np.testing.assert_allclose(pixels.mean((1, 2)), probes["channel_mean"], atol=0.5, err_msg=where)
    blank = (pixels == 0).all(0)
    all_zero = probes["zero_fraction"] == 1  # an unreadable image, which vlbert_jax fills with rounded means
    if not all_zero:
        np.testing.assert_allclose(blank.mean(), probes["zero_fraction"], atol=1e-5, err_msg=where)
    if whole.exists():
        with np.load(whole) as file:
            expected = file["image"]
        np.testing.assert_allclose(pixels, expected, atol=GRAY_LEVELS, err_msg=where)
        if not all_zero:
            np.testing.assert_array_equal(blank, (expected == 0).all(0), err_msg=where)


def check_features(item, example, where: str):
    """Compare region features with the recorded arrays, or with their sums and first columns."""
    features = example["region_features"][: len(item["boxes"])]
    if "features" in item:
        np.testing.assert_allclose(features, item["features"], rtol=1e-4, atol=1e-5, err_msg=where)
    if "feature_row_sum" in item:
        np.testing.assert_allclose(features.sum(1), item["feature_row_sum"], rtol=1e-4, err_msg=where)
        np.testing.assert_allclose(features[:, :8], item["feature_first8"], rtol=1e-4, atol=1e-5, err_msg=where)


def check_boxes(item, example, where: str):
    """Compare boxes and image size after resizing, mirroring and clamping."""
    k = len(item["boxes"])
    assert example["region_mask"].sum() == k == example["region_mask"][:k].sum(), where
    np.testing.assert_allclose(example["image_size"][0], item["im_info"][:2], rtol=0, err_msg=where)
    boxes = np.array(item["boxes"])[:, :4]
    np.testing.assert_allclose(example["boxes"][:k], boxes, rtol=1e-5, atol=1e-5, err_msg=where)
