"""Opening a person's image of any kind as upright RGB pixels. Needs no JAX: `data_prep` uses it too."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import UInt8
from PIL import Image, ImageOps

MOST_PIXELS = Image.MAX_IMAGE_PIXELS  # 89 million, 268 MB once decoded; a small file can claim any size
ORIENTATION = 0x0112  # of EXIF: 1 = as stored
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # the limit above is checked here


def open_image(source: str | Path | bytes, name: str = "") -> UInt8[np.ndarray, "y x 3"]:
    """RGB pixels of a file, or of its bytes, which messages then call `name`.

    Turned as EXIF says. Transparent pixels show white, 16 bits lose the lower 8, of an animation the first frame is
    taken. Raises ValueError with one line for what is no whole image, or claims more than `MOST_PIXELS`.
    """
    name = name or ("image" if isinstance(source, bytes) else str(source))
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise ValueError(f"it claims {width}x{height} pixels, more than {MOST_PIXELS:,}; make it smaller")
            return np.asarray(upright(image))
    except FileNotFoundError:
        raise ValueError(f"{name}: no such file") from None
    except Exception as error:  # Pillow raises many kinds for bytes that are no whole image
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "not an image of any kind that Pillow knows"
        elif isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
            reason = f"it claims more than {MOST_PIXELS:,} pixels; make it smaller"
        raise ValueError(f"{name}: {reason}") from None


def is_plain(image: Image.Image) -> bool:
    """Whether the file as it is decodes to what `upright` gives: an RGB JPEG that EXIF does not turn."""
    return image.format == "JPEG" and image.mode == "RGB" and image.getexif().get(ORIENTATION, 1) == 1


def upright(image: Image.Image) -> Image.Image:
    """An opened image as RGB, turned as EXIF says; of other modes see `open_image`."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":  # Pillow would cut off at 255
        values = np.asarray(image, np.float64)
        most = 1 if image.mode == "F" and values.max(initial=0) <= 1 else 255 if values.max(initial=0) <= 255 else 65535
        if image.mode.startswith("I;16"):
            most = 65535
        # Floor, as Pillow takes the upper byte of colour images of 16 bits.
        values = np.clip(np.nan_to_num(values) * (256 / (most + 1) if most > 1 else 255), 0, 255)
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def read_image(image: Any) -> tuple[str, UInt8[np.ndarray, "y x 3"]]:
    """A name for messages, and RGB pixels. Raises ValueError for what is no picture."""
    if isinstance(image, str | Path):
        return str(image), open_image(image)
    if isinstance(image, PIL.Image.Image):
        return "picture", np.asarray(upright(image))
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"a picture is uint8 [y, x, 3], this is {pixels.dtype} {list(pixels.shape)}")
    return "picture", pixels
