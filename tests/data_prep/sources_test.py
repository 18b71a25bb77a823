"""Test which files of a folder or archive are taken for images, and what is said about the others."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from data_prep.manifest import SourceError
from data_prep.sources import ArchiveFolder, open_source
from vlbert_jax.data.image_files import find_images, open_image
from vlbert_jax.data.region_files import Unusable

FORMATS = {
    "a.jpg": "JPEG", "c.jfif": "JPEG", "d.JPG": "JPEG", "e.jpeg": "JPEG", "f.png": "PNG", "g.webp": "WEBP",
    "h.jpe": "JPEG", "i.jp2": "JPEG2000", "j.bmp": "BMP", "k.avif": "AVIF", "l.gif": "GIF", "m.tif": "TIFF",
}  # fmt: skip
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
OTHERS = {"b.HEIC": HEIC, "nosuffix": b"\xff\xd8\xff", "._a.jpg": b"\0\5\x16\7", "notes.txt": b"x"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return a folder of images of all suffixes and of other files."""
    folder = tmp_path_factory.mktemp("photos")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
    for name, form in FORMATS.items():
        image.save(folder / name, form)
    for name, content in OTHERS.items():
        (folder / name).write_bytes(content)
    return folder


def zipped(folder, to):
    with zipfile.ZipFile(to, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    return to


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_images_of_every_suffix_are_taken_and_others_are_named(form, photos, tmp_path):
    source = open_source(photos if form == "folder" else zipped(photos, tmp_path / "photos.zip"))
    assert [path.rpartition("@/")[2] for path in source.paths] == sorted(FORMATS)
    assert set(source.passed_over) == set(OTHERS)
    for path in source.paths:
        assert open_image(source.files.read(path), path).shape == (48, 64, 3)


def test_a_source_of_other_files_only_says_which(tmp_path):
    (tmp_path / "b.HEIC").write_bytes(HEIC)
    (tmp_path / "c.xyz").write_bytes(b"")
    with pytest.raises(SourceError, match=r"no image; 2 passed over because of .* \(b.HEIC, c.xyz\); .*HEIC: convert"):
        open_source(tmp_path)


def test_predict_takes_the_same_files_and_warns_of_others(photos, tmp_path, caplog):
    (photos / "folder").mkdir(exist_ok=True)
    for place in (str(photos), str(photos / "*")):
        caplog.clear()
        assert find_images([place]) == [str(photos / name) for name in sorted(FORMATS)]
        (record,) = caplog.records
        # Hidden files do not match a pattern.
        assert record.levelname == "WARNING" and f"{4 + (place == str(photos))} passed over" in record.getMessage()
        assert "(b.HEIC, " in record.getMessage() and "folder" in record.getMessage()
    caplog.clear()
    lower = [str(photos / name) for name in sorted(FORMATS) if ".j" in name]
    assert find_images([str(photos / "*.j*")]) == lower
    assert not caplog.records
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="no image is there; 1 passed over because of the suffix .notes.txt"):
        find_images([str(tmp_path)])


def test_heic_is_named_whatever_its_suffix_is(tmp_path):
    """Telephones and messengers give such files the suffix .jpg."""
    (tmp_path / "a.jpg").write_bytes(HEIC)
    for source in (tmp_path / "a.jpg", str(tmp_path / "a.jpg"), HEIC):
        with pytest.raises(ValueError, match="Pillow does not read HEIC: convert it to JPEG"):
            open_image(source)
    with pytest.raises(Unusable, match="Pillow does not read HEIC: convert it to JPEG"):
        ArchiveFolder(tmp_path).read_jpeg("a.jpg")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "AVIF")  # its head is similar
    assert open_image(file.getvalue()).shape == (8, 8, 3)
