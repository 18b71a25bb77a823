"""Test that a builder ends with records or with one line, whatever is in a file that it reads.

Every place of a JSON file gets a value that no builder expects: another type, an integer that no record can store, a
text that is no Unicode, lists that are nested too deeply.
"""

import bz2
import gzip
import itertools
import json
import lzma
import shutil

import pytest

from data_prep import build
from data_prep.inputs import mark_of
from data_prep.json_lines import read_json, read_json_lines
from data_prep.manifest import SourceError
from data_prep.sources import ArchiveFolder
from tests.helpers import GOLDEN
from tests.helpers.golden_folders import task_folders
from tests.helpers.vqa_case import Download, jpeg, put
from vlbert_jax.data.region_files import Unusable, decode_regions
from vlbert_jax.files import parse_json, read_lines

VALUES = [None, 10**30, "\ud800", [], {}, True, 1.5, "a\0b", "x" * 300_000, float("nan"), "DEEP"]
DEEP = "[" * 100_000 + "]" * 100_000


def text_of(value):
    return json.dumps(value).replace('"DEEP"', DEEP)


def places(value, path=()):
    """Yield the path to each place of a JSON value; one item of each list stands for all."""
    yield path
    if isinstance(value, dict):
        for name in itertools.islice(value, 12):
            yield from places(value[name], (*path, name))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def replaced(value, path, new):
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def own(root):
    put(root / "0.jpg", jpeg())
    for split in ("train", "val"):
        rows = [dict(id=i, image="0.jpg", text="a", text2="b", label="ab"[i]) for i in range(2)]
        put(root / f"{split}.jsonl", "\n".join(map(json.dumps, rows)))


def vqa(root):
    download = Download()
    download.write(root)


def copied(name, *keep):
    def copy(root):
        source = task_folders(name)[0] if "/" not in name else GOLDEN / name
        shutil.copytree(source, root)
        for path in (root, *root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)

    return copy


# Command with options -> what writes the source, and its file.
SOURCES = {
    "own": (own, "train.jsonl"),
    "hateful_memes": (copied("hateful_memes"), "dev.jsonl"),
    "retrieval --dataset=coco": (copied("retrieval_coco"), "dataset_coco.json"),
    "visual7w": (copied("visual7w_pointing"), "dataset_v7w_pointing.json"),
    "gqa --splits=testdev": (copied("gqa"), "testdev_balanced_questions.json"),
    "vqa --images --answers=5": (vqa, "vqa/v2_mscoco_train2014_annotations.json"),
    "vqa --features --splits=test": (vqa, "vgbua_res101_precomputed/test2015_resnet101_faster_rcnn_genome/8.json"),
    "vcr --splits=val": (copied("data/vcr_a/data/vcr"), "val.jsonl"),
    "refcoco": (copied("data/refcoco_a/data/coco"), "refcoco+/instances.json"),
}


@pytest.mark.parametrize("command", SOURCES)
def test_any_value_gives_records_or_one_line(command, tmp_path, capsys):
    write, name = SOURCES[command]
    source, data_dir = tmp_path / "source", tmp_path / "data"
    write(source)
    path = source / name
    content = path.read_text()
    lines = [content] if name.endswith("json") else content.strip().split("\n")
    first = json.loads(lines[0])
    several = places(first) if name.endswith("jsonl") else [place for place in places(first) if place[0:1] != ("info",)]
    refused = 0
    for (number, place), _ in zip(enumerate(several), range(12), strict=False):
        for value in {number % len(VALUES): 0, (number + 4) % len(VALUES): 0}:
            path.write_text("\n".join([text_of(replaced(first, place, VALUES[value])), *lines[1:]]))
            shutil.rmtree(data_dir, ignore_errors=True)
            status = build.main([*command.split(), f"--source={source}", f"--data_dir={data_dir}", "--corpus=x"])
            error = capsys.readouterr().err.rpartition("\r")[2].strip().split("\n")[-1]
            assert status == 0 or (status == 2 and error.startswith("error: ")), (place, VALUES[value])
            assert status == 0 or path.name in error or "x" * 99 in error, (place, VALUES[value], error)
            refused += status == 2
    assert refused > 5


EMPTY = {
    "hateful_memes": ("hateful_memes", "dev.jsonl", "there is no example in the split dev"),
    "vqa --images": ("", "vqa/v2_OpenEnded_mscoco_test2015_questions.json", "there is no question"),
    "vcr": ("data/vcr_a/data/vcr", "test.jsonl", "there is no question"),
    "entities": ("flickr30k_entities", "Sentences/2110403237.txt", "no phrase is marked"),
}


@pytest.mark.parametrize("command", EMPTY)
def test_a_file_without_examples_is_named(command, tmp_path, capsys):
    """Such a split would silently be none; a pointer of Git LFS is a text without marked phrases."""
    folder, name, reason = EMPTY[command]
    source = tmp_path / "source"
    (copied(folder) if folder else vqa)(source)
    path = next(source.glob("Sentences/*")) if "Sentences" in name else source / name
    path.write_text('{"questions": []}' if command.startswith("vqa") else "version 1\n" if "txt" in name else "")
    assert build.main([*command.split(), f"--source={source}", f"--data_dir={tmp_path}/data", "--corpus=x"]) == 2
    assert f"{path}" in (error := capsys.readouterr().err.rpartition("\r")[2]) and reason in error


def test_boxes_without_area_and_choices_that_are_no_boxes(tmp_path, capsys):
    copied("visual7w_pointing")(tmp_path / "source")
    path = tmp_path / "source/dataset_v7w_pointing.json"
    content = json.loads(path.read_text())
    for place, value, reason in (
        (("boxes", 0, "width"), 0, "box 0 (from 0): the box is 0 x "),
        (("images", 0, "qa_pairs", 0, "multiple_choices"), [], "multiple_choices is [], not a list of numbers"),
    ):
        path.write_text(json.dumps(replaced(content, place, value)))
        assert build.main(["visual7w", f"--source={tmp_path}/source", f"--data_dir={tmp_path}", "--splits=train"]) == 2
        assert reason in capsys.readouterr().err


def test_json_of_another_program():
    for text, reason in {
        DEEP: "nested too deeply", '{"a": "b\\ud83d"}': "'{\"a\": \"b\\ud83d' ends with half of a surrogate pair",
        b"\xff": "can't decode", "": "Expecting value", "9" * 5000: "4300 digits",
    }.items():  # fmt: skip
        with pytest.raises(ValueError) as error:
            parse_json(text)
        assert reason in str(error.value)
    assert parse_json('["\\ud83d\\ude00", "\\\\ud83d"]') == ["\N{GRINNING FACE}", "\\ud83d"]
    assert parse_json('{"a": 1}'.encode("utf-16")) == {"a": 1}


def test_names_that_no_file_can_have(tmp_path):
    files = ArchiveFolder(tmp_path)
    (tmp_path / "x").mkdir()
    for name in ("a\0b", "a" * 300, "x.zip@/a\0b", f"x.zip@/{'a' * 300}", f"{'x' * 300}.zip@/a", "x\0.zip@/a"):
        assert not files.has(name)
        files.place(name)
        with pytest.raises(OSError):
            files.read(name)


def test_a_link_that_points_nowhere_is_no_fault_of_a_folder(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"12")
    before = mark_of(tmp_path)
    (tmp_path / "b.jpg").symlink_to("nowhere")
    assert mark_of(tmp_path) != before and mark_of(tmp_path).startswith("2 bytes")


def test_a_text_of_another_encoding_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes("é".encode("utf-16"))
    with pytest.raises(ValueError, match=r"a\.txt: the text is not UTF-8 .*; save it as UTF-8"):
        read_lines(tmp_path / "a.txt")


def test_a_compressed_file_is_named(tmp_path):
    path = tmp_path / "val.json"
    for module, name in ((gzip, "gzip"), (bz2, "bzip2"), (lzma, "xz")):
        path.write_bytes(module.compress(b"[]"))
        for read in (lambda: read_json(path, list), lambda: list(read_json_lines(path))):
            with pytest.raises(SourceError, match=f"val.json: the file is compressed by {name}; unpack it"):
                read()


@pytest.mark.parametrize("size", [float("inf"), 10**30, 1e308, 2**31, -1, 0])
def test_an_image_has_a_possible_size(size):
    with pytest.raises(Unusable):
        decode_regions(dict(image_w=size, image_h=4, num_boxes=1, boxes="AAAAAAAAAAAAAIA/AACAPw=="), False)


@pytest.mark.parametrize(
    "command, place",
    [
        ("retrieval --dataset=coco", ("images", 0, "sentences", 0, "sentid")),
        ("vqa --images --answers=5", ("annotations", 0, "question_id")),
        ("refcoco", ("annotations", 0, "id")),
    ],
)
def test_integers_that_no_record_can_store(command, place, tmp_path, capsys):
    write, name = SOURCES[command]
    write(tmp_path / "source")
    path = tmp_path / "source" / name
    path.write_text(json.dumps(replaced(json.loads(path.read_text()), place, 2**63)))
    assert build.main([*command.split(), f"--source={tmp_path}/source", f"--data_dir={tmp_path}/data"]) == 2
    error = capsys.readouterr().err.rpartition("\r")[2]
    assert f"{path}" in error and f"{place[-1]}" in error and "which has more than 64 bits" in error
