"""Test versions of a corpus and reports of damaged images."""

import json
import logging

import numpy as np
import pytest

from vlbert_jax.data import records
from vlbert_jax.data.examples import decode_record


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


def test_the_command_of_a_missing_corpus_is_quoted(tmp_path):
    with pytest.raises(FileNotFoundError, match="vqa --source=FOLDER '--corpus=my photos' '--data_dir=.*/my data'"):
        records.open_split(tmp_path / "my data", "vqa/my photos", "train")
