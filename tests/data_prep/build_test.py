"""Test builds of the synthetic corpus, and builds that fail, are killed or have other settings."""

import io
import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from data_prep import build, inputs
from data_prep.manifest import SourceError
from data_prep.region_captions import RegionCaptions
from data_prep.scenes import corpus
from data_prep.text_corpus import TextCorpus
from tests.helpers import GOLDEN, ROOT
from tests.helpers.built_case import open_lines, read_all, words_of

OFFICIAL = GOLDEN / "data/cc_a"
SETTINGS = dict(seed=0, num_train=40, num_val=10, num_train_stories=30, num_val_stories=8)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """Build a small corpus; return its folder, settings and paths."""
    data_dir = tmp_path_factory.mktemp("data")
    return data_dir, SETTINGS, build.build_scenes(data_dir, **SETTINGS)


def test_build_scenes_writes_the_records(synthetic):
    _, _, paths = synthetic
    manifest = json.loads((paths["captions"] / "manifest.json").read_text())
    assert manifest["problems"] == [] and sum(manifest["records"].values()) == 50
    seen = []
    for split in ("train_landscape", "train_portrait"):
        records = read_all(paths["captions"], split)
        indices = [int(record["index"]) for record in records]
        assert indices == sorted(indices)
        seen += indices
        lines = [json.loads(line) for line in open_lines(paths["source"] / "train_frcnn.json")]
        for record in records:
            width, height = record["image_size"]
            assert (width >= height) == (split == "train_landscape")
            assert words_of(record) == lines[record["index"]]["caption"]
            assert Image.open(io.BytesIO(record["image"])).size == (width, height)
    assert sorted(seen) == list(range(40))
    assert [r["text"].decode() for r in read_all(paths["text"], "val")] == open_lines(paths["source"] / "val.doc")


def test_build_scenes_twice_does_nothing(synthetic):
    data_dir, settings, paths = synthetic
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*") if path.name != ".build_lock"}
    assert build.build_scenes(data_dir, **settings) == paths
    assert before == {path: path.stat().st_mtime_ns for path in data_dir.rglob("*") if path.name != ".build_lock"}


def test_build_scenes_refuses_other_settings(synthetic):
    data_dir, settings, _ = synthetic
    with pytest.raises(SourceError, match="remove it"):
        build.build_scenes(data_dir, **settings | dict(seed=7))


def test_build_scenes_restarts_after_an_interruption(tmp_path, monkeypatch):
    settings = dict(num_train=6, num_val=2, num_train_stories=2, num_val_stories=1)
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "vocabulary", lambda: 1 / 0)  # raises after the images are written
        with pytest.raises(ZeroDivisionError):
            build.build_scenes(tmp_path, **settings)
    assert not (tmp_path / "scenes").exists()
    stale = tmp_path / "region_captions/scenes/1.0.0"  # records of an earlier corpus
    stale.mkdir(parents=True)
    paths = build.build_scenes(tmp_path, **settings, feature_width=16)
    assert paths["vocab"].is_file()
    assert sum(len(read_all(paths["captions"], split)) for split in ("train_landscape", "train_portrait")) == 6
    record = read_all(paths["captions"], "train_landscape")[0]
    assert record["features"].shape == (len(record["boxes"]), 16)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == [
        "region_captions",
        "scenes",
        "text_corpus",
    ]


def test_other_sources_under_the_same_name_are_refused(tmp_path):
    """A build with other sources or splits under the name of an existing one is an error."""
    for name in "ab":
        (tmp_path / f"{name}.doc").write_text(f"{name}\n")
    a, b = tmp_path / "a.doc", tmp_path / "b.doc"
    build.run_builder(TextCorpus("t", tmp_path, [a]))
    build.run_builder(TextCorpus("t", tmp_path, [a]))
    for sources in (([a, b],), ([a], [b]), ([b],)):
        with pytest.raises(SourceError, match="remove it, or change --corpus"):
            build.run_builder(TextCorpus("t", tmp_path, *sources))
    build.build_scenes(tmp_path, num_train=2, num_val=2, num_train_stories=2, num_val_stories=2)
    with pytest.raises(SourceError, match="remove it, or change --corpus"):
        build.run_builder(RegionCaptions("scenes", tmp_path, tmp_path / "scenes", splits=("val",)))


def test_a_killed_build_leaves_no_complete_corpus(tmp_path):
    (tmp_path / "a.doc").write_text("".join(f"line {i}\n" for i in range(700)))
    code = f"""if True:
        import os, signal, sys
        from data_prep import build, text_corpus
        assert not {{"jax", "tensorflow"}} & set(sys.modules)
        text_corpus.TextCorpus.RECORDS_PER_SHARD = 256
        lines = text_corpus.read_lines
        def killed(*args):
            for i, line in enumerate(lines(*args)):
                if i == 600: os.kill(os.getpid(), signal.SIGKILL)
                yield line
        text_corpus.read_lines = killed
        arguments = ["--data_dir={tmp_path}", "--corpus=c", "--num_processes=1"]
        build.main(["text", "--source={tmp_path}/a.doc", *arguments])
    """
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == -9, result.stderr
    corpus = tmp_path / "text_corpus/c"
    assert [path.name[:11] for path in corpus.iterdir()] == ["incomplete."]
    # Two of three shards are finished; no reader accepts them.
    assert len(list(corpus.rglob("0*.train"))) == 2 and not list(corpus.rglob("dataset_info.json"))
    assert build.main(["text", f"--source={tmp_path}/a.doc", f"--data_dir={tmp_path}", "--corpus=c"]) == 0
    assert [path.name for path in corpus.iterdir()] == ["1.0.0"]
    assert len(read_all(corpus / "1.0.0", "train")) == 700


def test_errors_are_one_line(tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    index = '{"image": "train_image.zip@/0.jpg", "caption": ["a"], "frcnn": "train_frcnn.zip@/0.json"}\n'
    (empty / "train_frcnn.json").write_text(index)
    (tmp_path / "blank.doc").write_text("\n\n")
    captions = ["conceptual_captions", f"--data_dir={tmp_path}/data"]
    for arguments, expected in (
        ([*captions, f"--source={tmp_path}/nowhere"], "nowhere/train_frcnn.json: the file does not exist"),
        ([*captions, f"--source={empty}"], "train_frcnn.zip: neither this archive nor the folder"),
        ([*captions, f"--source={empty}", "--no_images"], "--features"),
        (
            ["text", f"--data_dir={tmp_path}/data", f"--source={tmp_path}/gone.doc"],
            "gone.doc: there is no such text file",
        ),
        (["text", f"--data_dir={tmp_path}/data", f"--source={tmp_path}/blank.doc"], "no usable item was found"),
    ):
        assert build.main([*arguments, *(["--splits=train"] if str(empty) in arguments[-1] else [])]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and expected in error
    assert not list((tmp_path / "data").rglob("1.0.0"))


@pytest.mark.parametrize("corpus", ["", " ", ".", "..", "../x", "/x", "a/b", "a\nb"])
def test_a_corpus_stays_in_its_folder(corpus, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a line\n")
    corpus = corpus.replace("/x", f"{tmp_path}/x") if corpus[:1] == "/" else corpus
    options = [f"--source={tmp_path}/a.txt", f"--corpus={corpus}", f"--data_dir={tmp_path}/data"]
    assert build.main(["text", *options]) == 2
    assert "--corpus=NAME without slashes" in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_dir() and path.name not in ("data", "text_corpus")]


def test_another_build_under_the_same_name_is_refused(tmp_path, capsys):
    arguments = ["conceptual_captions", f"--source={OFFICIAL}/data_full/conceptual-captions", f"--data_dir={tmp_path}"]
    assert build.main(arguments) == 0
    assert build.main(arguments) == 0
    assert build.main([*arguments, "--features"]) == 2
    assert "was built with" in capsys.readouterr().err


# Other or changed data under the same name


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tasks")
    settings = dict(num_train=6, num_val=3, num_test=2, feature_width=4)
    return data_dir, settings, build.build_scene_tasks(data_dir, **settings)["source"]


@pytest.mark.parametrize(
    "pattern",
    [
        "coco/vqa/*train2014_questions.json", "coco/vqa/*val2014_annotations.json", "coco/vgbua*/train*/*.json",
        "coco/train2014/*.jpg", "vcr/val.jsonl", "vcr/vcr1images/*/*.jpg", "coco/refcoco+/refs(unc).p",
        "coco/refcoco+/instances.json", "coco/annotations/instances_train*.json", "coco/refcoco+/proposal/*.json",
    ],
)  # fmt: skip
def test_a_changed_file_of_any_kind_is_noticed(tasks, pattern):
    data_dir, settings, source = tasks
    file = min(source.glob(pattern))
    content, before = file.read_bytes(), sorted(data_dir.rglob("*"))
    file.write_bytes(content + b"\n")
    with pytest.raises(SourceError, match=r"was built from .*; now it has .* bytes, .*: remove it, or change --corpus"):
        build.build_scene_tasks(data_dir, **settings)
    assert sorted(data_dir.rglob("*")) == before
    file.write_bytes(content)
    build.build_scene_tasks(data_dir, **settings)  # the content counts, not the time


def test_more_captions_and_other_captions_are_noticed(tmp_path, capsys):
    source = tmp_path / "cc"
    shutil.copytree(OFFICIAL / "data_full/conceptual-captions", source)
    arguments = ["conceptual_captions", f"--data_dir={tmp_path}/data", f"--source={source}"]
    assert build.main(arguments) == 0 and build.main(arguments) == 0
    assert f"already built from {source}" in capsys.readouterr().out
    index = source / "val_frcnn.json"
    lines = index.read_bytes()
    index.write_bytes(lines + lines.splitlines(keepends=True)[0])
    assert build.main(arguments) == 2
    assert f"was built from {index}" in capsys.readouterr().err
    index.write_bytes(lines)
    shutil.copytree(source, tmp_path / "other")
    arguments[-1] = f"--source={tmp_path}/other"
    assert build.main(arguments) == 2
    assert f"was built from {source}/train_frcnn.json, not {tmp_path}/other/train_frcnn" in capsys.readouterr().err
    shutil.rmtree(source)  # the same files have moved
    assert build.main(arguments) == 0
    arguments[-1] = f"--source={source}"
    (tmp_path / "other").rename(source)
    assert build.main(arguments) == 0
    shutil.rmtree(source)  # nothing is left to compare with
    assert build.main(arguments) == 0


def test_changed_text_and_manifests_without_inputs(tmp_path):
    a = tmp_path / "a.doc"
    a.write_text("a\nb\n")
    directory = build.run_builder(TextCorpus("t", tmp_path, [a]))
    a.write_text("a\nc\n")
    with pytest.raises(SourceError, match=r"was built from .*a.doc \(4 bytes, \w+\); now it has 4 bytes, \w+: remove"):
        build.run_builder(TextCorpus("t", tmp_path, [a]))
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest["inputs"]  # of an earlier version
    (directory / "manifest.json").write_text(json.dumps(manifest))
    build.run_builder(TextCorpus("t", tmp_path, [a]))
    (tmp_path / "b").mkdir()
    (tmp_path / "b/a.doc").write_text("a\nb\n")
    with pytest.raises(SourceError, match=r"was built from .*/a.doc, not .*/b/a.doc: remove it"):
        build.run_builder(TextCorpus("t", tmp_path, [tmp_path / "b/a.doc"]))


def test_marks_of_large_files(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "WHOLE", 100)
    monkeypatch.setattr(inputs, "BLOCK", 2)
    file = tmp_path / "a"
    marks = set()
    for content in (b"a" * 200, b"a" * 201, b"a" * 199 + b"b", b"b" + b"a" * 199):
        file.write_bytes(content)
        marks.add(inputs.mark_of(file))
    assert len(marks) == 4 and inputs.mark_of(tmp_path / "none") == "missing"
