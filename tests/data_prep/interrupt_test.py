"""Test that Ctrl-C ends a build in one line, leaves no table that counts as built, and loses no finished table."""

import os
import signal
import subprocess
import sys

import pytest

from data_prep import build, vqa
from data_prep.region_captions import RegionCaptions
from tests.helpers import GOLDEN, ROOT
from tests.helpers.built_case import read_all

CAPTIONS = GOLDEN / "data/cc_a/data_full/conceptual-captions"


def test_ctrl_c_in_the_command(tmp_path):
    (tmp_path / "a.doc").write_text("".join(f"line {i}\n" for i in range(700)))
    arguments = ["text", f"--source={tmp_path}/a.doc", f"--data_dir={tmp_path}", "--corpus=c"]
    code = f"""if True:
        import os, signal, sys
        from data_prep import build, text_corpus
        lines = text_corpus.read_lines
        def interrupted(*args):
            for i, line in enumerate(lines(*args)):
                if i == 600: os.kill(os.getpid(), signal.SIGINT)
                yield line
        text_corpus.read_lines = interrupted
        sys.exit(build.main({arguments}))
    """
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 130, result.stderr
    *bar, last = result.stderr.strip().split("\n")
    assert last == f"stopped by Ctrl-C; the same command builds the tables that {tmp_path} lacks"
    assert not result.stdout and "Traceback" not in result.stderr and all("line" in line for line in bar)
    assert not list(tmp_path.rglob("1.0.0")) and not list(tmp_path.rglob("manifest.json"))
    assert build.main(arguments) == 0
    assert len(read_all(tmp_path / "text_corpus/c/1.0.0", "train")) == 700


@pytest.fixture
def interrupt(monkeypatch):
    """Return the function that makes a method of a builder press Ctrl-C after some calls."""

    def change(cls, name: str, after: int):
        method, calls = getattr(cls, name), []

        def interrupted(*args):
            calls.append(1)
            if len(calls) == after:
                os.kill(os.getpid(), signal.SIGINT)
            return method(*args)

        monkeypatch.setattr(cls, name, interrupted)
        return lambda: monkeypatch.setattr(cls, name, method)

    return change


def test_ctrl_c_while_threads_read_images(interrupt, tmp_path, capsys):
    arguments = ["captions", f"--source={CAPTIONS}", f"--data_dir={tmp_path}", "--corpus=c", "--num_threads=2"]
    for place, call in (("_record", 2), ("absorb", 1)):  # in a thread that reads ahead; after the records are written
        restore = interrupt(RegionCaptions, place, call)
        assert build.main(arguments) == 130
        last = capsys.readouterr().err.strip().split("\n")[-1]
        assert last == f"stopped by Ctrl-C; the same command builds the tables that {tmp_path} lacks"
        assert not list(tmp_path.rglob("1.0.0"))
        restore()
    assert build.main(arguments) == 0 and list(tmp_path.rglob("1.0.0/manifest.json"))


def test_ctrl_c_between_two_tables_keeps_the_first(interrupt, tmp_path, capsys):
    source = build.build_scene_tasks(tmp_path, num_train=6, num_val=3, num_test=2, tasks=())["source"] / "coco"
    arguments = ["vqa", f"--source={source}", f"--data_dir={tmp_path}", "--corpus=v", "--images"]
    restore = interrupt(vqa.VQAQuestions, "records", 1)
    assert build.main(arguments) == 130
    assert [path.parent.parent.name for path in tmp_path.rglob("1.0.0")] == ["vqa_images"]
    restore()
    assert build.main(arguments) == 0
    assert "vqa_images/v/1.0.0: already built" in capsys.readouterr().out
    assert {path.parent.parent.name for path in tmp_path.rglob("1.0.0")} == {"vqa_images", "vqa"}
