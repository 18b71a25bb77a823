"""Test text corpora: their lines, the order of lines, and the validation split."""

import bz2
import gzip
import json
import lzma
import re

import pytest

from data_prep import build
from data_prep.text_corpus import TextCorpus, read_lines
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
    (tmp_path / "a.doc").write_text("".join(f"line {i}\n\n" for i in range(10)))
    directory = build.run_builder(TextCorpus("t", tmp_path, [tmp_path / "a.doc"], val_fraction=0.2))
    assert [r["text"] for r in read_all(directory, "train")] == [b"line %d" % i for i in range(8)]
    assert [(r["text"], r["index"]) for r in read_all(directory, "val")] == [(b"line 8", 0), (b"line 9", 1)]


TEXT = "".join(f"line {i} of caf\u00e9\n" for i in range(3000))


NAMES = ["gzip", "bzip2", "xz", "plain"]


@pytest.mark.parametrize("name", ["wiki.txt", "wiki.gz", "wiki.bz2", "wiki.doc"])
@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, bytes], ids=NAMES)
def test_the_content_decides_about_the_compression(name, compress, tmp_path):
    (tmp_path / name).write_bytes(compress(TEXT.encode()))
    assert list(read_lines(tmp_path / name)) == TEXT.splitlines()


def damaged(compress):
    content = bytearray(compress(TEXT.encode()))
    content[len(content) // 2 : len(content) // 2 + 20] = bytes(20)
    return bytes(content)


BAD = {
    "gzip, cut": (gzip.compress(TEXT.encode())[:-50], "cannot be read after .*download it again"),
    "bzip2, cut": (bz2.compress(TEXT.encode())[:-50], "cannot be read after .*download it again"),
    "xz, cut": (lzma.compress(TEXT.encode())[:-50], "cannot be read after .*download it again"),
    "gzip, damaged": (damaged(gzip.compress), "cannot be read after .*download it again"),
    "bzip2, damaged": (damaged(bz2.compress), "cannot be read after .*download it again"),
    "xz, damaged": (damaged(lzma.compress), "cannot be read after .*download it again"),
    "zip": (b"PK\x03\x04" + bytes(100), "is a zip archive; unpack it"),
    "UTF-16": (TEXT.encode("utf-16"), "lines are not UTF-8.*iconv"),
    "UTF-16 of ASCII": (b"\n".join(b"a\0b\0" for _ in range(9)), "9 of 9 lines are not UTF-8.*iconv"),
    "Latin-1": (TEXT.encode("latin-1"), "1,000 of 1,000 lines are not UTF-8.*iconv"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_text_is_one_line(kind, tmp_path, capsys):
    content, reason = BAD[kind]
    (tmp_path / "wiki.txt.gz").write_bytes(content)
    command = ["text", f"--source={tmp_path / 'wiki.txt.gz'}", "--corpus=t", f"--data_dir={tmp_path / 'data'}"]
    assert build.main(command) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"error: {tmp_path / 'wiki.txt.gz'}") and re.search(reason, line), line
    assert not list((tmp_path / "data").rglob("1.0.0"))
