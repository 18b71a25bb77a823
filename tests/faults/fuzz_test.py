"""The short form of fuzz.py: every reader of foreign bytes refuses damaged files in one line."""

import gzip
import importlib.util
import io
import json
import pickle
import re
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import sources, text_corpus
from data_prep.manifest import SourceError
from tests.faults import seeds
from tests.faults.fuzz import available, fuzz
from tests.faults.readers import BY_NAME
from tests.helpers.weights_case import field, varint
from vlbert_jax.weights.safe_pickle import load_pickle

INPUTS = 25  # of each reader


def test_damaged_files_are_refused_in_one_line(tmp_path):
    names = available(BY_NAME)
    assert len(names) > 55 and ("pytorch" in names) == bool(importlib.util.find_spec("torch"))
    rows = fuzz(names, INPUTS, 1, tmp_path)
    assert [row["reader"] for row in rows] == names
    faults = [fault for row in rows for fault in row["faults"]]
    assert not faults, faults
    assert sum(row["refused"] for row in rows) > sum(row["accepted"] for row in rows) > 0


def refused(reader: str, folder, change) -> str:
    """Return the message about the first seed of a reader after a change, "" if it is accepted."""
    one = BY_NAME[reader]
    path, (content, *_) = one.prepare(folder)
    path.write_bytes(change(content))
    try:
        one.function(path)
    except one.errors as error:
        return str(error)
    return ""


def with_value(value, *place):
    """Return the function that replaces a value of a JSON text; "*" is the first of an object or a list."""

    def change(content: bytes) -> bytes:
        node = tree = json.loads(content)
        for name in place[:-1]:
            node = node[next(iter(node)) if name == "*" and isinstance(node, dict) else 0 if name == "*" else name]
        node[place[-1]] = value
        return json.dumps(tree).encode()

    return change


HUGE = 10**400  # beyond a float
BLOB = field(7, field(1, varint(2**32) * 2))  # of 2^64 values, which 64 bits count as 0
# What the campaigns found: (reader, change of its first seed, message).
FOUND = [
    ("caffe", lambda content: content.replace(b"conv1", b"con\xff1", 1), "the name of a layer, is not UTF-8"),
    ("caffe", lambda _: field(100, field(1, b"fc") + field(7, BLOB)), r"layer fc has 0 values for the shape"),
    ("region_part", with_value(0, "names"), "names and broken are not lists of images"),
    ("region_part", with_value([1], "broken"), "names and broken are not lists of images"),
    ("region_store", with_value(5, "extractor"), "the extractor is not a text"),
    ("packed_regions", lambda content: content[:-30], "these are not packed regions"),
    ("region_records", lambda _: record_of(b"PK"), "cannot be read; the file is damaged"),
    ("region_json", with_value("", "classes"), "classes: the array is empty"),
    ("boxes", with_value(HUGE, 0, 0), "rows of numbers"),
    ("table_info", lambda _: b"[]", "dataset_info.json or features.json is missing or damaged"),
    ("table_features", lambda _: b"{}", "dataset_info.json or features.json is missing or damaged"),
    ("table_sizes", with_value(float("inf"), 0, 1), "sizes.json is damaged"),
    ("table_sizes", lambda _: b"[" * 10_000, "nested too deeply"),
    ("list_of_images", lambda _: b".\n", "'.' names no file"),
    ("answers_json", lambda _: b'{"a": 0, "b": "1"}', "list of answers"),
    ("entities", lambda content: re.sub(rb"<xmin>\d+", b"<xmin>1" + b"0" * 300, content), "more than 64 bits"),
    ("vcr_metadata", with_value(HUGE, "boxes", 0, 0), "four numbers"),
    ("refcoco_instances", with_value(HUGE, "annotations", 0, "bbox", 0), "four finite numbers"),
    ("gqa", with_value([], "*", "types"), "'types' is a list"),
    ("gqa", with_value([0], "*", "semantic"), "not an object"),
    ("gqa", with_value([0], "*", "entailed"), "not a text"),
    ("gqa_choices", with_value(0, "*", "valid"), "val_choices.json, question .* the field 'valid'"),
    ("gqa_scored_questions", with_value(None, "*", "types"), "'types' of question"),
    ("gqa_scored_questions", with_value({}, "*", "groups"), "'groups' of question"),
    ("gqa_scores", with_value({}, 0, "prediction"), "item 0"),
    ("caption_scores", lambda _: b"\xff", "not JSON"),
    ("versions", with_value("a", "devices"), "damaged .*devices is 'a'"),
    ("versions", with_value({}, "hosts"), "damaged .*hosts is"),
    ("metrics", lambda content: content.replace(b'"step": 2', b'"step": "a"', 1), "step is 'a'"),
    ("metrics", lambda content: content.replace(b"3.0", b"Infinity", 1), "step_time_ms is 'inf'"),
    ("run_config", with_value(0.5, "schema"), "its schema is '0.5'"),
]


def record_of(content: bytes) -> bytes:
    """Return a file of two records, with correct checksums, of some content."""
    import pathlib
    import tempfile

    from data_prep.region_store import _write_array_record

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "a")
        _write_array_record(path, iter([content, content]))
        return path.read_bytes()


@pytest.mark.parametrize("reader, change, message", FOUND, ids=[f"{name}-{i}" for i, (name, *_) in enumerate(FOUND)])
def test_what_was_found_is_refused(reader, change, message, tmp_path):
    assert re.search(message, refused(reader, tmp_path, change))


def test_damage_that_is_not_refused_changes_nothing(tmp_path):
    """A cache is made again, and of damaged checksums the checkpoint counts as damaged."""
    from vlbert_jax.weights.checksums import damage_of

    assert refused("gallery_cache", tmp_path / "cache", lambda content: content.replace(b"'descr'", b"'desc\0'")) == ""
    assert refused("checksums", tmp_path / "sums", lambda _: b'"a"') == ""
    assert "cannot be compared" in damage_of(tmp_path / "sums")


@pytest.mark.parametrize("content, message", [
    (b"\x80\x02Nr\xff\xff\xff\x7f.", "one has the number 2147483647"),
    (b"\x80\x02Np4000000000\n.", "one has the number 4000000000"),
    (pickle.dumps(np.array([None, 2], object), 2), "arrays of objects"),
    (b"\x80\x02cnumpy\nndarray\nJ\0\0\0\x40\x85R.", "not callable"),
])  # fmt: skip
def test_a_short_pickle_takes_no_memory(content, message, tmp_path):
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.pkl is not a pickle of plain .*{message}"):
        load_pickle(tmp_path / "a.pkl")


def test_a_long_name_takes_no_time(tmp_path):
    """PyTorch would search in its message about the name for longer than 8 seconds."""
    pytest.importorskip("torch")
    start = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {}))
    named = b"\x80\x02c" + b"a" * 70_000 + b"\nb\n."
    assert "by 70,002 characters" in refused("pytorch", tmp_path, lambda _: start + named)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a/data.pkl", named)
    assert "by 70,002 characters" in refused("pytorch", tmp_path, lambda _: packed.getvalue())


def test_a_small_compressed_file_takes_bounded_memory(tmp_path, monkeypatch):
    with gzip.open(tmp_path / "a.doc", "wb") as file:
        file.write(b"a line\n" + bytes(text_corpus.LONGEST))
    with pytest.raises(SourceError, match=r"a\.doc: line 2 has more than 67,108,864 bytes"):
        list(text_corpus.read_lines(tmp_path / "a.doc"))

    (tmp_path / "a.zip").write_bytes(seeds.archives()[1])
    files = sources.ArchiveFolder(tmp_path)
    assert files.read("a.zip@/b.png")
    monkeypatch.setattr(sources, "LARGEST", 10)
    with pytest.raises(OSError, match=r"b\.png in a\.zip claims [\d,]+ bytes, more than 10"):
        files.read("a.zip@/b.png")


def test_a_file_of_an_archive_has_a_name(tmp_path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a", b"")
    (tmp_path / "a.zip").write_bytes(content.getvalue().replace(b"a", b"\0"))
    with pytest.raises(SourceError, match=r"a\.zip: .*a file in it has no name"):
        sources.open_source(tmp_path / "a.zip")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
SCORED = ("gqa_scored_questions", "gqa_scores", "vqa_scores", "vqa_scored_annotations", "caption_scores",
          "caption_references", "boxes", "answers_json", "table_sizes", "tokenizer_config")  # fmt: skip


@pytest.mark.parametrize("name", SCORED)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_json_of_any_shape(name, tmp_path, data):
    """Any value is in any place, down to three levels."""
    one = BY_NAME[name]
    path = tmp_path / one.file
    if not path.exists():
        path, (content, *_) = one.prepare(tmp_path)
        path.with_suffix(".seed").write_bytes(content)
    tree = json.loads(path.with_suffix(".seed").read_bytes())
    places = [(), *((a,) for a in keys(tree)), *((a, b) for a in keys(tree) for b in keys(tree[a]))]
    places += [(a, b, c) for a in keys(tree) for b in keys(tree[a]) for c in keys(tree[a][b])]
    place, value = data.draw(st.sampled_from(places)), data.draw(JSON)
    if place:
        node = tree
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = value
    path.write_text(json.dumps(tree if place else value))
    try:
        one.function(path)
    except one.errors as error:
        assert path.name in str(error)


def keys(node) -> list:
    return list(node)[:3] if isinstance(node, dict) else list(range(len(node)))[:2] if isinstance(node, list) else []
