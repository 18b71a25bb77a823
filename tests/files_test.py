"""Test that files and folders are replaced atomically."""

import argparse
import errno
import os
import pathlib
import runpy
import sys

import pytest

from data_prep import build, extract_regions
from data_prep.build_options import parse_options
from tests.helpers import ROOT
from vlbert_jax import convert, predict, report
from vlbert_jax.data.records import open_split
from vlbert_jax.files import atomic_write, disk_full, read_lines, required_path, user_file, user_path, user_paths
from vlbert_jax.tasks.answer import accuracy
from vlbert_jax.training.config import parse_command


def test_paths_of_a_user(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    for given, expected in {
        "~/data": "/home/someone/data", "~": "/home/someone", "data/": "data", "./a//b": "a/b", "../a": "../a", "": "",
        "a~b": "a~b", "a/~/b": "a/~/b", "/x": "/x", "gs://bucket//x/": "gs://bucket//x/", "org/name": "org/name",
    }.items():
        assert user_path(given) == user_path(expected) == expected
    assert user_paths("~/a,b/,gs://c/d/") == "/home/someone/a,b,gs://c/d/" and user_paths("") == ""
    with pytest.raises(argparse.ArgumentTypeError, match="gs://c/d is an address; give a file or folder"):
        user_file("gs://c/d")
    with pytest.raises(argparse.ArgumentTypeError, match="is empty; give a file or folder"):
        user_file("")
    assert user_file("~/a") == pathlib.Path("/home/someone/a")
    assert required_path("gs://bucket//x/") == "gs://bucket//x/" and required_path("~/a/") == "/home/someone/a"


@pytest.mark.parametrize("main, arguments", [
    (build.main, ["scenes", "--data_dir="]), (build.main, ["vqa", "--source= ", "--data_dir=data"]),
    (extract_regions.main, ["images", "--detector=d", "--out="]), (convert.main, ["", "target"]), (report.main, [""]),
], ids=["build", "source", "extract_regions", "convert", "report"])  # fmt: skip
def test_an_empty_path_is_not_the_current_folder(main, arguments, capsys):
    """Such as --data_dir=$DATA where the variable is not set."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "is empty; give a file or folder" in capsys.readouterr().err


def write(path, content):
    """Write a file, or a folder with one file for a dict."""
    if isinstance(content, dict):
        path.mkdir()
        for name, text in content.items():
            (path / name).write_text(text)
    else:
        path.write_text(content)


def read(path):
    """Return the content of a file, or a dict with the contents of the files in a folder."""
    return {file.name: file.read_text() for file in path.iterdir()} if path.is_dir() else path.read_text()


@pytest.mark.parametrize("new", ["new", {"a": "new"}])
@pytest.mark.parametrize("old", [None, "old", {"a": "old", "b": "old"}])
def test_the_target_is_replaced_atomically(tmp_path, old, new):
    target = tmp_path / "folder" / "target"
    if old is not None:
        target.parent.mkdir()
        write(target, old)
    with atomic_write(target, replaces_folder=True) as partial:
        write(partial, new)
        assert (read(target) if target.exists() else None) == old
    assert read(target) == new
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_file_does_not_replace_a_folder(tmp_path):
    write(tmp_path / "target", {"a": "old"})
    with pytest.raises(IsADirectoryError, match="target"), atomic_write(tmp_path / "target") as partial:
        partial.write_text("new")
    assert read(tmp_path / "target") == {"a": "old"} and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", ["half", {"a": "half"}])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file(tmp_path, content, error):
    target = tmp_path / "target"
    write(target, "old")
    with pytest.raises(error), atomic_write(target) as partial:
        write(partial, content)
        raise error
    assert read(target) == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("left", ["half", {"a": "half", "b": "half"}])
def test_a_partial_file_of_a_killed_process_is_removed(tmp_path, left):
    target = tmp_path / "target"
    with atomic_write(target) as partial:
        partial.write_text("first")
    write(partial, left)  # as a killed process leaves it
    with atomic_write(target) as partial:
        write(partial, {"a": "new"})
    assert read(target) == {"a": "new"}
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_points_to_the_replaced_file(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with atomic_write(tmp_path / "link") as partial:
        partial.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_an_error_without_a_path_gets_the_target(tmp_path):
    with pytest.raises(OSError, match="target") as caught, atomic_write(tmp_path / "target"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_reported_and_the_incomplete_checkpoint_removed(tmp_path):
    (tmp_path / "10").mkdir()
    (tmp_path / "20.orbax-checkpoint-tmp").mkdir()
    with pytest.raises(OSError, match=r"no space left.*run the same command again"), disk_full(tmp_path):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["10"]
    with pytest.raises(ValueError, match="other"), disk_full(tmp_path):
        raise ValueError("other")


PARSERS = {
    "convert": (convert.parse_arguments, ["a", "b"], ["push"]),
    "predict": (
        predict.parse_arguments, ["--image=a"],
        ["choices", "head", "phrases", "text2", *(option.lstrip("-") for option in predict.text_options())],
    ),
    "extract_regions": (extract_regions.parse_arguments, ["i", "--detector=d", "--out=o"], []),
    "answer_accuracy": (accuracy.parse_arguments, ["--questions=q", "--annotations=a", "--results=r"], []),
}
NO_PATHS = ["corpus", "splits", "positive"]
PARSERS |= {
    f"build {name}": (parse_options, [name, *(["--source=s"] if "scene" not in name else [])], NO_PATHS)
    for name in build.COMMANDS
}


@pytest.mark.parametrize("name", PARSERS)
def test_every_path_of_a_command_is_expanded(name, monkeypatch):
    """A shell leaves the ~ of --name=~/folder; a path that one place expands and another does not is another folder."""
    parse, argv, texts = PARSERS[name]
    monkeypatch.setenv("HOME", "/home/someone")
    taken = 0
    for field, value in vars(parse(argv)).items():
        if field in texts or field == "name" or isinstance(value, bool | int | float | tuple):
            continue
        positions = {"source": 0, "target": 1} if name == "convert" else {"images": 0} if "extract" in name else {}
        given = list(argv)
        if field in positions:
            given[positions[field]] = "~/x/"
        else:
            given.append(f"--{field.replace('image_folder', 'images')}=~/x/")
        try:
            found = vars(parse(given))
        except SystemExit:  # one of some choices
            continue
        found = {key: str(value[-1] if isinstance(value, list) and value else value) for key, value in found.items()}
        assert "/home/someone/x" in found.values() and not any("~" in text for text in found.values()), field
        taken += 1
    assert taken


def test_every_path_of_a_config_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = tmp_path / "mine.py"
    recipe.write_text("from configs.vqa import demo as get_config\n")
    fields = ("data.data_dir", "data.vocab", "data.answers", "data.texts", "init.bert", "init.checkpoint")
    argv = ["main", "--config=~/mine.py", "--workdir=~/run/", *(f"--config.{field}=~/{field}" for field in fields)]
    config, workdir, *_ = parse_command(argv)
    assert workdir == tmp_path / "run"
    for field in fields:
        block, name = field.split(".")
        assert config[block][name] == f"{tmp_path}/{field}"
    config = parse_command(["main", "--config=vqa:demo", "--config.init.checkpoint=gs://bucket//run/"]).config
    assert config.init.checkpoint == "gs://bucket//run/" and config.data.data_dir == "data"


def test_a_corpus_is_built_where_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/a.txt").write_text("a line\n")
    assert build.main(["text", "--source=~/a.txt", "--corpus=t", "--data_dir=~/data"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert len(open_split(tmp_path / "home/data", "text_corpus/t", "train")) == 1


def test_a_folder_to_which_a_thread_still_writes_is_removed(tmp_path, monkeypatch):
    remove, late = os.rmdir, iter(range(3))

    def rmdir(path, **options):
        if next(late, None) is not None:
            (partial / "late").touch()  # as if by another thread, after the files were listed
        remove(path, **options)

    with pytest.raises(OSError, match="full"), atomic_write(tmp_path / "target") as partial:
        partial.mkdir()
        monkeypatch.setattr(os, "rmdir", rmdir)
        raise OSError(28, "full")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_only_line_ends_separate_lines(end, tmp_path):
    text = "fire\u2028truck\x0b\x0c\x1c\x1d\x1e\x85\u2029"
    (tmp_path / "list.txt").write_bytes(f"\ufeff{text}{end}{end}dog{end}".encode())
    assert read_lines(tmp_path / "list.txt") == [text, "", "dog"]


BENCHMARK_PATHS = {  # script -> its options that are paths
    "assets": ("data_dir", "workdirs"),
    "controlled": ("workdirs", "data_dir"),
    "fine_tuning": ("checkpoint", "workdirs", "data_dir"),
    "held_out_scenes": ("data_dir", "caption_data_dir", "vocab", "pretrain", "vqa", "refcoco"),
    "predict": ("image",),
}


@pytest.mark.parametrize("script", BENCHMARK_PATHS)
def test_benchmarks_expand_paths(script, monkeypatch):
    class Parsed(Exception):
        pass

    def stop(parser, argv=None):
        raise Parsed(parse(parser, argv))

    parse = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", [script, *(f"--{name}=~/{name}/" for name in BENCHMARK_PATHS[script])])
    with pytest.raises(Parsed) as parsed:
        runpy.run_path(str(ROOT / f"benchmarks/{script}.py"), run_name="__main__")
    (found,) = parsed.value.args
    for name in BENCHMARK_PATHS[script]:
        assert str(getattr(found, name)) == f"/home/someone/{name}"
