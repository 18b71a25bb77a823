"""Test text corpora: their lines, the order of lines, and the validation split."""

import gzip
import json

from data_prep import build
from data_prep.text_corpus import TextCorpus
from tests.helpers.built_case import read_all


def test_records_keep_the_order_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(TextCorpus, "RECORDS_PER_SHARD", 150)
    (tmp_path / "a.doc").write_text("".join(f"line {i}\n" for i in range(700)))
    directory = build.run_builder(TextCorpus("many", tmp_path, [tmp_path / "a.doc"]))
    assert len(list(directory.glob("*array_record*"))) == 5
    assert [r["text"].decode() for r in read_all(directory, "train")] == [f"line {i}" for i in range(700)]


def test_text_lines(tmp_path):
    (tmp_path / "a.doc").write_bytes(b" one  two \r\n\r\n   \nthree\n")
    with gzip.open(tmp_path / "b.doc.gz", "wb") as file:
        file.write("caf\u00e9\nlast".encode())
    (tmp_path / "val.doc").write_bytes(b"held out\nb\xffd\n")
    sources = [tmp_path / "b.doc.gz", tmp_path / "a.doc"]
    directory = build.run_builder(TextCorpus("t", tmp_path, sources, [tmp_path / "val.doc"]))
    train = read_all(directory, "train")
    assert [r["text"].decode() for r in train] == ["caf\u00e9", "last", "one  two", "three"]
    assert [int(r["index"]) for r in train] == [0, 1, 2, 3]
    assert [r["text"].decode() for r in read_all(directory, "val")] == ["held out", "b\ufffdd"]
    (problem,) = json.loads((directory / "manifest.json").read_text())["problems"]
    assert problem["action"] == "repaired" and problem["line"] == 1


def test_the_validation_split_is_the_end_of_the_text(tmp_path):
    (tmp_path / "a.doc").write_text("".join(f"{i}\n\n" for i in range(10)))
    directory = build.run_builder(TextCorpus("t", tmp_path, [tmp_path / "a.doc"], val_fraction=0.2))
    assert [r["text"] for r in read_all(directory, "train")] == [b"%d" % i for i in range(8)]
    assert [(r["text"], r["index"]) for r in read_all(directory, "val")] == [(b"8", 0), (b"9", 1)]
