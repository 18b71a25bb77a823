"""Resize images and boxes, and place them on canvases of fixed size (NumPy, one example at a time)."""

from __future__ import annotations

import contextlib
import io

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Float, Float32, Shaped, UInt8
from PIL import Image

from vlbert_jax.batch import PIXEL_MEANS

# The pixel means, rounded: an image of this color is nearly zero after the model subtracts them.
MEAN_RGB = (123, 116, 103)


# --- Images -----------------------------------------------------------------------------------------------


def decode_image(data: bytes) -> UInt8[np.ndarray, "y x 3"]:
    """Return the RGB pixels of an encoded image, as Pillow's `convert("RGB")` does; EXIF is ignored.

    Gray and color JPEG files are decoded by simplejpeg: it returns the same pixels, in 1.9 instead of
    2.6 ms of CPU for 600 x 800.

    Raises:
        ValueError: The data cannot be decoded.
    """
    try:
        image = Image.open(io.BytesIO(data))  # reads the header only
        if image.format == "JPEG" and image.mode in ("RGB", "L"):
            with contextlib.suppress(ValueError):  # of a damaged file, of which Pillow decides
                return simplejpeg.decode_jpeg(data, "RGB")
        return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow raises many types for damaged images
        raise ValueError(f"cannot decode an image of {len(data)} bytes: {error}") from error


def resized_size(size: tuple[int, int], scale: tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) after the resize of an image of `size` = (width, height) pixels.

    The short side becomes `scale[0]`, or less where the long side would exceed `scale[1]`
    (`Resize.get_size` of the official code).
    """
    width, height = size
    short, long = min(width, height), max(width, height)
    target = scale[0]
    if long * target > scale[1] * short:
        target = scale[1] * short // long
        if not target:  # the image is a line, on which the official code fails
            return (1, scale[1]) if width < height else (scale[1], 1)
    if width < height:
        return target, target * height // width
    return target * width // height, target


def canvas_size(scale: tuple[int, int], orientation: str) -> tuple[int, int]:
    """Return (height, width) that every resized image of an orientation fits into, in multiples of 32.

    `orientation` is landscape (width >= height), portrait, or square (fits both).
    """
    short, long = (-(-side // 32) * 32 for side in scale)
    sizes = {"landscape": (short, long), "portrait": (long, short), "square": (long, long)}
    return sizes[orientation]


def resize_image(pixels: UInt8[np.ndarray, "y x 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Return an image of another size = (width, height).

    The official code resizes with Pillow's antialiased bilinear filter. Where the image grows, OpenCV's
    bilinear filter is equal to it within one gray level and takes a seventh of the time (0.5 against
    3.5 ms of CPU to 600 x 800). Where the image shrinks, OpenCV does not antialias, so Pillow is used.
    """
    width, height = size
    if pixels.shape[:2] == (height, width):
        return pixels
    if height >= pixels.shape[0] and width >= pixels.shape[1]:
        return cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


def place_image(
    pixels: UInt8[np.ndarray, "y x 3"],
    size: tuple[int, int],
    canvas: tuple[int, int],
    flip: bool,
    factor: float | None = None,
) -> Shaped[np.ndarray, "cy cx 3"]:
    """Return an image on a zero canvas: resized (`resize_image`), perhaps mirrored, at the top left.

    Args:
        pixels: RGB.
        size: Width and height after the resize.
        canvas: Height and width of the canvas.
        flip: Whether to mirror the image.
        factor: If given, the image is prepared by `caffe_pixels` with this factor.

    Raises:
        ValueError: The canvas is too small.
    """
    width, height = size
    if height > canvas[0] or width > canvas[1]:
        raise ValueError(
            f"an image of {width}x{height} does not fit a canvas of {canvas[1]}x{canvas[0]} pixels"
        )
    out = np.zeros((*canvas, 3), np.uint8 if factor is None else np.float32)
    corner = out[:height, :width]
    pixels = resize_image(pixels, size) if factor is None else caffe_pixels(pixels, factor)
    if flip:
        cv2.flip(pixels, 1, corner)
    else:
        corner[...] = pixels
    return out


def caffe_scale(size: tuple[int, int], scale: tuple[int, int]) -> float:
    """Return the factor by which the detector resizes an image of `size` pixels (`_get_image_blob`).

    The short side becomes `scale[0]`, or less where the long side, rounded, would exceed `scale[1]`.
    """
    factor = scale[0] / min(size)
    return scale[1] / max(size) if np.round(factor * max(size)) > scale[1] else factor


def caffe_size(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """Return (width, height) of an image of `size` for the detector; OpenCV rounds half to even.

    A side is at least 3 pixels, because nothing of a shorter one remains after the stem. The original
    code fails on narrower images; here their remaining pixels are padding.
    """
    return tuple(max(round(side * factor), 3) for side in size)


def caffe_pixels(pixels: UInt8[np.ndarray, "y x 3"], factor: float) -> Float32[np.ndarray, "h w 3"]:
    """Return an RGB image as the detector reads it: BGR minus the pixel means, then OpenCV's bilinear resize.

    The step between samples is 1 / factor, not the ratio of the sides. Of size `caffe_size`.
    """
    height, width = pixels.shape[:2]
    image = pixels[..., ::-1].astype(np.float32)
    image -= np.array(PIXEL_MEANS, np.float32)
    if min(round(width * factor), round(height * factor)) < 1:  # a line, which OpenCV would resize to nothing
        image = cv2.resize(image, [max(round(side * factor), 1) for side in (width, height)])
    else:
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    width, height = caffe_size((width, height), factor)
    if image.shape[:2] == (height, width):
        return image
    out = np.zeros((height, width, 3), np.float32)
    out[: image.shape[0], : image.shape[1]] = image
    return out


def as_rgb(image: Shaped[np.ndarray, "y x 3"]) -> UInt8[np.ndarray, "y x 3"]:
    """Return an image of a batch as RGB for display; `caffe_pixels` is undone."""
    if image.dtype == np.uint8:
        return image
    return np.clip(np.round(image + np.array(PIXEL_MEANS, image.dtype)), 0, 255).astype(np.uint8)[..., ::-1]


# --- Boxes ------------------------------------------------------------------------------------------------


def resized(
    size: tuple[int, int], scale: tuple[int, int], caffe_resize: bool
) -> tuple[tuple[int, int], float | None]:
    """Return (width, height) after the resize, and the factor of both axes where it is that of the detector.

    Args:
        size: Width and height of the image.
        scale: Length of the short side, and the most that the long side may have.
        caffe_resize: Whether to resize as the Caffe detector does; without it the factor is None.
    """
    if not caffe_resize:
        return resized_size(size, scale), None
    factor = caffe_scale(size, scale)
    return caffe_size(size, factor), factor


def resize_ratios(original: tuple[int, int], size: tuple[int, int], kind: type = np.float32) -> Float[np.ndarray, "2"]:
    """Return the factors of x and y of a resize, computed in `kind` as 1 / original * size (official code)."""
    return (kind(1) / np.array(original, kind)) * np.array(size, kind)


def place_boxes(
    boxes: Float[np.ndarray, "n 4"],
    original: tuple[int, int],
    size: tuple[int, int],
    flip: bool,
    exact: bool = False,
    factor: float | None = None,
) -> Float32[np.ndarray, "n+1 4"]:
    """Return boxes (x1 y1 x2 y2) in pixels of the resized image, the whole image first.

    As in the official code, the whole image is (0, 0, w0 - 1, h0 - 1) before the resize, ratios are
    float32 reciprocals times the new side (so that 5.0000005 occurs), a flip maps x to w - 1 - x, and
    everything is clamped into the image last.

    Args:
        boxes: Boxes in pixels of the original image.
        original: Width and height before the resize.
        size: Width and height after it.
        flip: Whether the image is mirrored.
        exact: Compute in float64, as the official code does for objects with masks.
        factor: If given, the ratio of both axes, as for the detector.
    """
    w0, h0 = original
    kind = np.float64 if exact else np.float32
    placed = np.concatenate([np.array([[0, 0, w0 - 1, h0 - 1]], kind), np.asarray(boxes, kind)])
    last = np.array(size, kind) - kind(1)
    placed *= np.tile(resize_ratios(original, size, kind), 2) if factor is None else kind(factor)
    if flip:
        placed[:, [0, 2]] = last[0] - placed[:, [2, 0]]
    return np.clip(placed, kind(0), np.tile(last, 2)).astype(np.float32)
