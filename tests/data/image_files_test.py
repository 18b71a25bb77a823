"""Test that images of every format become upright RGB, or that the error is one line."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from vlbert_jax.data.image_files import MOST_PIXELS, open_image

COLORS = np.zeros((24, 40, 3), np.uint8)
COLORS[:12, :20], COLORS[:12, 20:] = (200, 30, 30), (30, 200, 30)
COLORS[12:, :20], COLORS[12:, 20:] = (30, 30, 200), 90


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_lossless_formats(kind):
    content = encoded(Image.fromarray(COLORS), kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(open_image(content), COLORS)


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L", "YCbCr"])
def test_color_modes_of_jpeg(mode):
    pixels = open_image(encoded(Image.fromarray(COLORS).convert(mode), "JPEG", quality=98, subsampling=0))
    expected = np.asarray(Image.fromarray(COLORS).convert("L").convert("RGB")) if mode == "L" else COLORS
    assert np.abs(pixels[4:8, 4:16].astype(int) - expected[4:8, 4:16]).max() < 8


@pytest.mark.parametrize("turn, orientation", [(0, 1), (1, 8), (2, 3), (3, 6)])
def test_exif_rotation_is_applied(turn, orientation):
    """The image is rotated by the angle that EXIF stores, so that it is upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.rot90(COLORS, -turn)
    pixels = open_image(encoded(Image.fromarray(stored), "PNG", exif=exif))
    np.testing.assert_array_equal(pixels, COLORS)


def test_sixteen_bits_keep_their_upper_byte():
    values = np.linspace(0, 65535, 24 * 40).reshape(24, 40).astype(np.uint16)
    pixels = open_image(encoded(Image.fromarray(values), "PNG"))
    np.testing.assert_array_equal(pixels, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, -1))


def test_floats_are_fractions_of_255():
    values = np.linspace(0, 1, 24 * 40, dtype=np.float32).reshape(24, 40)
    pixels = open_image(encoded(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(pixels[..., 0], (values * 255).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white(mode):
    alpha = np.full((24, 40), 255, np.uint8)
    alpha[:, :20] = 0
    image = Image.fromarray(np.dstack([COLORS, alpha])).convert(mode)
    pixels = open_image(encoded(image, "PNG"))
    assert (pixels[:, :20] == 255).all()
    assert (pixels[:12, 20:] != 255).any()


def test_the_first_frame_of_an_animation_is_read():
    frames = [Image.fromarray(np.full((24, 40, 3), gray, np.uint8)) for gray in (50, 100, 150)]
    pixels = open_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert (pixels == 50).all()


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 20_000, 3)])
def test_extreme_sizes(shape):
    pixels = np.full(shape, 7, np.uint8)
    np.testing.assert_array_equal(open_image(encoded(Image.fromarray(pixels), "PNG")), pixels)


def png_with_size(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose header has this size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_001, 50_000])
def test_decompression_bomb_is_refused(side):
    with pytest.raises(ValueError, match=f"bomb.png: the file claims .*more than {MOST_PIXELS:,}"):
        open_image(png_with_size(side, side), "bomb.png")


def test_import_does_not_change_pillow():
    """The import keeps Pillow's limit and the warning filters; `open_image` has its own limit."""
    program = f"""if True:
        import warnings, PIL.Image
        PIL.Image.MAX_IMAGE_PIXELS = None
        before = [filter for filter in warnings.filters if filter[2] is PIL.Image.DecompressionBombWarning]
        from vlbert_jax.data.image_files import open_image
        after = [filter for filter in warnings.filters if filter[2] is PIL.Image.DecompressionBombWarning]
        assert before == after
        try:
            open_image({png_with_size(10_001, 10_001)!r}, "bomb.png")
        except ValueError as error:
            assert "bomb.png: the file claims 10001x10001 pixels" in str(error)
        else:
            raise AssertionError("a bomb was decoded")
    """
    subprocess.run([sys.executable, "-c", program], check=True, timeout=600)


def test_invalid_files_are_errors(tmp_path):
    complete = encoded(Image.fromarray(COLORS), "PNG")
    for content in (b"", b"hello", complete[: len(complete) // 2], png_with_size(30, 30)):
        (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(ValueError) as raised:
            open_image(tmp_path / "a.jpg")
        assert str(raised.value).startswith(str(tmp_path / "a.jpg")) and "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="absent.jpg: there is no such file"):
        open_image(tmp_path / "absent.jpg")
