"""Decoding of image files of any format to upright RGB pixels.

This module imports neither JAX nor the detector, so that `data_prep` can use it.
"""

from __future__ import annotations

import glob
import io
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import UInt8
from PIL import Image, ImageOps

from vlbert_jax.data.image_addresses import download_image, is_address, shown_address

# Most pixels of an image: 268 MB once decoded. A small file can claim any size. The value is the
# default limit of Pillow, repeated here because a program may have changed Pillow's.
MOST_PIXELS = 89_478_485
# Suffixes by which images in a folder are found, in lower case.
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".jp2", ".bmp", ".gif", ".tif", ".tiff",
)  # fmt: skip
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")  # brands in the head of such files
HEIC_REMEDY = "Pillow does not read HEIC: convert it to JPEG"
ORIENTATION = 0x0112  # EXIF tag; 1 = upright as stored


def has_image_name(path: str) -> bool:
    """Return whether a file of a folder or archive is taken for an image, by its suffix.

    The companions `._a.jpg` that macOS writes are not images.
    """
    return path.lower().endswith(IMAGE_SUFFIXES) and not path.rpartition("/")[2].startswith("._")


def passed_over(paths: Sequence[str]) -> str:
    """Return a sentence about files that are not taken for images, "" if there are none."""
    if not paths:
        return ""
    listed = sorted(paths, key=lambda path: not path.lower().endswith((".heic", ".heif")))  # these first
    named = ", ".join(listed[:5]) + (", ..." if len(paths) > 5 else "")
    remedy = HEIC_REMEDY if listed[0].lower().endswith((".heic", ".heif")) else "rename those that are images"
    return f"{len(paths):,} passed over because of the suffix ({named}); {remedy}"


def find_images(places: Iterable[str]) -> list[str]:
    """Return the paths of all images at some places, in the order of the places.

    Args:
      places: files, folders (their images by name, without those of folders in them), patterns such as `*.jpg`, in
        which `**` stands for folders of any depth, and http or https addresses. A file is taken whatever its suffix is;
        of folders and patterns only images that are not yet in the list. A warning names what is passed over.

    Raises:
      ValueError: a folder has no image, or a pattern matches none.
    """
    found: list[str] = []
    for place in places:
        if is_address(place):  # its "?" is not a pattern
            found.append(place)
            continue
        if os.path.isdir(place):
            inside = [os.path.join(place, name) for name in sorted(os.listdir(place))]
        elif os.path.exists(place) or not glob.has_magic(place):
            found.append(place)  # whether it can be read is found out where it is opened
            continue
        else:
            inside = sorted(glob.glob(place, recursive=True))
        images = [path for path in inside if has_image_name(path) and os.path.isfile(path)]
        others = passed_over([os.path.basename(path) for path in inside if path not in images])
        if not images:
            suffixes = f"the suffix of an image is {', '.join(IMAGE_SUFFIXES)}"
            raise ValueError(f"{place}: no image is there; {others or suffixes}")
        if others:
            logging.getLogger(__name__).warning("%s: %s", place, others)
        found += [path for path in images if path not in found]
    return found


def open_image(source: str | Path | bytes, name: str = "") -> UInt8[np.ndarray, "y x 3"]:
    """Return the RGB pixels of an image, rotated as EXIF says.

    Transparent pixels become white, 16 bits are reduced to the upper 8, and the first frame of an
    animation is used.

    Args:
      source: path or content of an image file.
      name: name of the image in messages; by default the path.

    Raises:
      ValueError: the file is missing, cannot be decoded completely, or claims more than
        `MOST_PIXELS`; the message is one line.
    """
    name = name or ("image" if isinstance(source, bytes) else str(source))
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise ValueError(f"the file claims {width}x{height} pixels, more than {MOST_PIXELS:,}; reduce its size")
            return np.asarray(upright(image))
    except FileNotFoundError:
        raise ValueError(f"{name}: there is no such file") from None
    except Exception as error:  # Pillow raises many types for damaged images
        raise ValueError(f"{name}: {unreadable_reason(error, source)}") from None


def unreadable_reason(error: Exception, source: str | Path | bytes) -> str:
    """Return one line about an exception of Pillow for a path or the content of a file."""
    if isinstance(error, Image.UnidentifiedImageError):
        start = source if isinstance(source, bytes) else _start(source)
        if start[4:8] == b"ftyp" and start[8:12] in HEIC:
            return HEIC_REMEDY
        return "the file is not an image of a format that Pillow supports"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        limit = min(MOST_PIXELS, Image.MAX_IMAGE_PIXELS or MOST_PIXELS)
        return f"the file claims more than {limit:,} pixels; reduce its size"
    return " ".join(str(error).split()) or type(error).__name__


def _start(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(12)


def is_plain(image: Image.Image) -> bool:
    """Return whether the file decodes to what `upright` returns: an RGB JPEG without rotation."""
    return image.format == "JPEG" and image.mode == "RGB" and image.getexif().get(ORIENTATION, 1) == 1


def upright(image: Image.Image) -> Image.Image:
    """Return an opened image as RGB, rotated as EXIF says; `open_image` describes other modes."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _high_depth(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _high_depth(image: Image.Image) -> Image.Image:
    """Convert an image of integers or floats to RGB; Pillow would clip its values at 255."""
    values = np.asarray(image, np.float64)
    highest = values.max(initial=0)
    if image.mode.startswith("I;16"):
        most = 65535
    elif image.mode == "F" and highest <= 1:
        most = 1
    else:
        most = 255 if highest <= 255 else 65535
    # Round down, because Pillow takes the upper byte of color images of 16 bits.
    values = np.clip(np.nan_to_num(values) * (256 / (most + 1) if most > 1 else 255), 0, 255)
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def read_image(image: Any, addresses: bool = False) -> tuple[str, UInt8[np.ndarray, "y x 3"]]:
    """Return a name for messages, and the RGB pixels.

    Args:
      image: a path, an http or https address, an image of Pillow, or uint8 [y, x, 3].
      addresses: whether addresses are opened.

    Raises:
      ValueError: it is none of these, or the file cannot be read.
    """
    if is_address(image):
        name = shown_address(image)
        if not addresses:
            raise ValueError(f"{name}: addresses are not opened; give a file, or permit them: load(…, addresses=True)")
        return name, open_image(download_image(image), name)
    if isinstance(image, str | Path):
        return str(image), open_image(image)
    if isinstance(image, PIL.Image.Image):
        return "image", np.asarray(upright(image))
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"an image must be uint8 [y, x, 3], not {pixels.dtype} {list(pixels.shape)}")
    return "image", pixels
