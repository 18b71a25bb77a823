"""Test the decoding, resizing and masking of images, and the geometry of their boxes."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from vlbert_jax.data.images import canvas_size, decode_image, place_boxes, place_image, resized_size
from vlbert_jax.data.masking import Samples, draw_samples, mask_regions, mask_words


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a smooth RGB image, which decoders and resizers handle with small errors."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def some_samples(**fields) -> Samples:
    samples = Samples(0.0, 0.0, 0.0, np.zeros(0), np.zeros(0, int), np.zeros(0))
    return dataclasses.replace(samples, **fields)


# --- Images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", mode) for mode in ("RGB", "L", "CMYK")]
    + [("PNG", mode) for mode in ("RGB", "L", "RGBA", "P", "1")],
)
def test_every_color_mode_is_decoded_as_by_pillow(kind, mode):
    image = Image.fromarray(photo(37, 53))
    if mode == "CMYK":  # some black, so that the K channel is not 0
        image = Image.merge("CMYK", [*image.split(), Image.fromarray(photo(37, 53, seed=1)).convert("L")])
    data = encoded(image.convert(mode), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    # simplejpeg and Pillow both contain libjpeg-turbo; two builds of it may differ by one gray level.
    np.testing.assert_allclose(decode_image(data).astype(int), expected, atol=1)


def test_exif_rotation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    data = encoded(Image.fromarray(photo(30, 50)), "JPEG", exif=exif)
    assert decode_image(data).shape == (30, 50, 3)


def test_invalid_bytes_are_an_error():
    with pytest.raises(ValueError, match="cannot decode an image of 9 bytes"):
        decode_image(b"not a jpg")


def official_size(w, h, size, max_size):
    """Return the size by the official formula in Python floats."""
    short, long = float(min(w, h)), float(max(w, h))
    if long / short * size > max_size:
        size = int(max_size * short / long)
    if (w <= h and w == size) or (h <= w and h == size):
        return w, h
    return (size, int(size * h / w)) if w < h else (int(size * w / h), size)


def test_resized_size_is_the_official_one():
    rng = np.random.default_rng(0)
    cases = [(int(w), int(h)) for w, h in rng.integers(10, 4000, (3000, 2))]
    cases += [(600, 1000), (1000, 600), (600, 600), (1200, 2000), (500, 500), (333, 999), (3, 5)]
    for scale in [(600, 1000), (600, 1200), (60, 100), (96, 128)]:
        for size in cases:
            official = official_size(*size, *scale)
            if min(official) > 0:
                assert resized_size(size, scale) == official, (size, scale)
    assert resized_size((640, 480), (600, 1000)) == (800, 600)
    assert resized_size((5000, 2), (600, 1000)) == (1000, 1)  # the official code returns (0, 0)


def test_every_resized_image_fits_its_canvas():
    assert canvas_size((600, 1000), "landscape") == (608, 1024)
    assert canvas_size((600, 1000), "portrait") == (1024, 608)
    assert canvas_size((600, 1000), "square") == (1024, 1024)
    for w, h in [(5000, 2), (3, 4000)] + np.random.default_rng(1).integers(2, 3000, (2000, 2)).tolist():
        width, height = resized_size((w, h), (600, 1000))
        canvas = canvas_size((600, 1000), "landscape" if w >= h else "portrait")
        assert height <= canvas[0] and width <= canvas[1]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(53, 37), (80, 60), (30, 20), (53, 60)])
def test_an_image_is_resized_as_by_pillow(size, flip):
    pixels = photo(37, 53)
    canvas = place_image(pixels, size, (64, 96), flip)
    expected = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)).astype(int)
    inside = canvas[: size[1], : size[0]]
    np.testing.assert_allclose(inside[:, ::-1] if flip else inside, expected, atol=1)
    assert not canvas[size[1] :].any() and not canvas[:, size[0] :].any()


def test_shrinking_antialiases():
    """One-pixel stripes become gray; bilinear sampling without antialiasing keeps some of them."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = place_image(stripes, (20, 20), (32, 32), False)[:20, :20].astype(int)
    assert abs(small[:, 2:-2] - 127).max() < 40


def test_too_small_a_canvas_is_an_error():
    with pytest.raises(ValueError, match="53x37 does not fit a canvas of 64x32"):
        place_image(photo(37, 53), (53, 37), (32, 64), False)


# --- Boxes ----------------------------------------------------------------------------------------


def test_boxes_by_hand():
    boxes = np.array([[10, 20, 30, 40], [-5, 0, 500, 500]], np.float32)
    placed = place_boxes(boxes, (160, 110), (872, 600), flip=False)
    # The box of the whole image ends at (w0 - 1) * ratio, not at w - 1.
    np.testing.assert_allclose(placed[0], [0, 0, 159 * 5.45, 109 * 600 / 110], rtol=1e-6)
    np.testing.assert_allclose(placed[1], [54.5, 109.0909, 163.5, 218.1818], rtol=1e-6)
    np.testing.assert_allclose(placed[2], [0, 0, 871, 599])  # clamped
    flipped = place_boxes(boxes, (160, 110), (872, 600), flip=True)
    np.testing.assert_allclose(flipped[0, [0, 2]], [871 - 159 * 5.45, 871], rtol=2e-5)  # 4.45, not 0
    np.testing.assert_allclose(flipped[1, [0, 2]], [871 - 163.5, 871 - 54.5], rtol=1e-6)
    np.testing.assert_array_equal(flipped[:, [1, 3]], placed[:, [1, 3]])


def test_ratios_are_float32_reciprocals():
    """The official code multiplies by a rounded reciprocal, so 600 / 120 gives 5.0000005."""
    placed = place_boxes(np.array([[0, 100, 50, 100]], np.float32), (160, 120), (800, 600), False)
    assert placed[1, 1] == np.float32(100) * np.float32(5.0000005) != 500


# --- Masking --------------------------------------------------------------------------------------


def test_replacements_are_never_special_tokens():
    ordinary = np.array([7, 9, 11])
    samples = draw_samples(np.random.default_rng(0), 500, 3, ordinary)
    assert set(samples.replacements.tolist()) == {7, 9, 11}
    assert samples.words.shape == (500,) and samples.regions.shape == (3,)
    again = draw_samples(np.random.default_rng(0), 500, 3, ordinary)
    np.testing.assert_array_equal(samples.words, again.words)
    assert not np.array_equal(samples.words[:3], samples.regions)


def test_whole_words_are_masked_by_the_official_thresholds():
    words = [[10], [20, 21], [30], [40, 41, 42], [50], [60]]
    p = 0.15
    uniform = np.array([p * 0.79, p * 0.81, p, p * 0.899, p * 0.95, 0.9])
    samples = some_samples(words=uniform, replacements=np.arange(100, 120))
    ids, labels = mask_words(words, samples, p, mask_id=1)
    # The words are: masked, random tokens, not a target (p is not below p), random tokens,
    # an unchanged target, not a target.
    assert ids.tolist() == [1, 101, 102, 30, 104, 105, 106, 50, 60]
    assert labels.tolist() == [10, 20, 21, -1, 40, 41, 42, 50, -1]
    ids, labels = mask_words(words, samples, 0.0, mask_id=1)
    assert ids.tolist() == [token for word in words for token in word] and (labels == -1).all()


def test_frequencies_of_masking():
    rng = np.random.default_rng(0)
    samples = draw_samples(rng, 60_000, 60_000, np.array([3]))
    ids, labels = mask_words([[2]] * 60_000, samples, 0.15, mask_id=1)
    targets = labels == 2
    assert abs(targets.mean() - 0.15) < 0.005
    shares = [(ids[targets] == i).mean() for i in (1, 3, 2)]
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.012)
    targets, hidden = mask_regions(samples, 0.15)
    assert abs(targets.mean() - 0.15) < 0.005 and not (hidden & ~targets).any()
    assert abs(hidden[targets].mean() - 0.9) < 0.012
    assert not any(x.any() for x in mask_regions(samples, 0.0))


def test_too_few_random_values_are_an_error():
    samples = some_samples(words=np.zeros(2), replacements=np.zeros(2, int))
    with pytest.raises(ValueError, match="2 words of 3 tokens, but random numbers for 2 words"):
        mask_words([[1], [2, 3]], samples, 0.15, 1)
