"""A build is shared among the workers of Apache Beam's local runner. `make test-storage` installs Beam."""

import json
import sys

import numpy as np
import PIL.Image
import pytest

from data_prep import beam, build

LOCAL = ["--runner=DirectRunner", "--direct_num_workers=2", "--direct_running_mode=multi_processing"]
NUMBER = 600  # images: three parts


@pytest.fixture
def source(tmp_path):
    """Return a folder of small images and texts about them."""
    folder = tmp_path / "source"
    folder.mkdir()
    for i in range(NUMBER):
        PIL.Image.fromarray(np.full((8, 9, 3), i % 256, np.uint8)).save(folder / f"{i}.jpg")
    for split, numbers in (("train", range(NUMBER - 10)), ("val", range(NUMBER - 10, NUMBER))):
        lines = [dict(image=f"{i}.jpg", text=f"a text {i}", label=f"label {i % 3}") for i in numbers]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def files(data_dir):
    paths = (path for path in data_dir.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(data_dir).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.slow
def test_workers_build_what_one_process_builds(source, tmp_path, capfd):
    pytest.importorskip("apache_beam")
    command = ["build", "own", f"--source={source}"]
    assert build.main([*command[1:], f"--data_dir={tmp_path / 'alone'}", "--num_processes=1"]) == 0
    capfd.readouterr()
    assert beam.main(["--shares=3", *LOCAL, "--", *command, f"--data_dir={tmp_path / 'shared'}"]) == 0
    assert [line for line in sorted(capfd.readouterr().err.splitlines()) if "share" in line] == [
        f"share {i}/3 is done" for i in range(3)
    ]
    assert files(tmp_path / "shared") == files(tmp_path / "alone")


@pytest.mark.slow
def test_the_last_line_names_the_share_that_failed(source, tmp_path, capfd):
    pytest.importorskip("apache_beam")
    image = source / "300.jpg"
    image.write_bytes(image.read_bytes()[:-20])
    shared = ["--shares=2", *LOCAL, "--", "build", "own", f"--source={source}", f"--data_dir={tmp_path / 'data'}"]
    assert beam.main(shared) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("error: share 1/2 failed: ") and "300.jpg" in last
    assert last.endswith("; the same command continues")


def test_a_runner_that_does_not_exist(capsys):
    pytest.importorskip("apache_beam")
    assert beam.main(["--runner=Nonsense", "--", "build", "own", "--source=images"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: the runner failed: Unexpected pipeline runner")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shares=3"], "build or extract_regions must follow --"),
        (["--shares=3", "--", "train"], "build or extract_regions must follow --"),
        (["--shares=1", "--", "build", "own"], "--shares=1 is less than two"),
        (["--", "build", "own", "--shard=0/2"], "--shard is set for every share; leave it out"),
        (["--", "build", "scenes"], "unrecognized arguments: --shard=0/2"),  # such a corpus has no shares
        (["--", "build", "own"], "required: --source"),
        (["--", "extract_regions"], "extract_regions has no options"),
    ],
)
def test_mistakes(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        beam.main(arguments)
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_beam_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    assert beam.main(["--", "build", "own", "--source=images"]) == 2
    assert capsys.readouterr().err == "error: Apache Beam is missing: pip install 'vlbert_jax[beam]'\n"
