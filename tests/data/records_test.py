"""Test versions of a corpus and reports of damaged images."""

import json
import logging

import numpy as np
import PIL.Image
import pytest

from data_prep.tables import run_builder
from tests.helpers.processes_case import NUMBER, SIZE, image_table
from vlbert_jax.data import records
from vlbert_jax.data.examples import decode_record
from vlbert_jax.data.streams import in_order, iterate


def test_versions_are_ordered_as_numbers(tmp_path):
    """Extractor and fingerprint are those of 1.10.0, which is newer than 1.9.0."""
    for version in ("1.9.0", "1.10.0", "incomplete.ABC_2.0.0"):
        folder = tmp_path / "images" / version
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"extractor": f"of {version}"}))
        (folder / "records").write_text(version)
    assert records.extractor_of(tmp_path, "images") == "of 1.10.0"
    before = records.corpus_fingerprint(tmp_path / "images")
    (tmp_path / "images/1.9.0/records").write_text("old")
    assert records.corpus_fingerprint(tmp_path / "images") == before
    (tmp_path / "images/1.10.0/records").write_text("new")
    assert records.corpus_fingerprint(tmp_path / "images") != before


def test_a_damaged_image_is_reported_by_the_logger_of_the_module(caplog):
    with caplog.at_level(logging.WARNING):
        pixels = decode_record(dict(image=b"damaged", image_size=np.array([4, 2]), index=7))
    assert pixels.shape == (2, 4, 3)
    (message,) = caplog.records
    assert message.name == "vlbert_jax.data.examples" and "record 7" in message.message


def changed(content: bytes, place: int) -> bytes:
    """Return the content of a file with one changed bit."""
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


DAMAGE = {
    "a changed byte": lambda path, name: path.write_bytes(changed(path.read_bytes(), path.read_bytes().index(name))),
    "a cut file": lambda path, _: path.write_bytes(path.read_bytes()[:-70_000]),
    "an empty file": lambda path, _: path.write_bytes(b""),
    "a missing file": lambda path, _: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_of_records_is_named_in_one_line(damage, tmp_path):
    """The error passes the threads that read ahead, and names the record of the file."""
    (tmp_path / "photos").mkdir()
    for number in range(NUMBER):
        PIL.Image.new("RGB", (30, 20 + number)).save(tmp_path / f"photos/{number}.jpg")
    table = run_builder(image_table(tmp_path / "photos", tmp_path))
    file = table / "photos_images-images.array_record-00001"
    DAMAGE[damage](file, f"{SIZE + 1}.jpg".encode())

    split = records.open_split(tmp_path, "photos_images/c", "images")
    one = dict(batch_size=1, process_index=0, process_count=1)
    batches = iterate(in_order(range(NUMBER), lambda i: dict(size=split[i]["image_size"]), dict, **one), 2, 2)
    first = SIZE + 1 if damage == "a changed byte" else SIZE
    assert [int(next(batches)["size"][0, 1]) for _ in range(first)] == [20 + number for number in range(first)]
    with pytest.raises(ValueError, match=f"^{file}: record {first - SIZE} of {SIZE} cannot be read; .* again") as error:
        next(batches)
    assert "\n" not in str(error.value)


def test_the_command_of_a_missing_corpus_is_quoted(tmp_path):
    with pytest.raises(FileNotFoundError, match="vqa --source=FOLDER '--corpus=my photos' '--data_dir=.*/my data'"):
        records.open_split(tmp_path / "my data", "vqa/my photos", "train")
