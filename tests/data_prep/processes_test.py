"""Several processes and machines build what one process builds, and a killed build continues."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest

from data_prep import build, parts
from data_prep.manifest import Manifest, SourceError
from data_prep.parts import Workers
from data_prep.tables import ShareWritten, run_builder
from data_prep.text_corpus import TextCorpus
from tests.helpers import HANG_SECONDS, ROOT
from tests.helpers.processes_case import GRAY, NUMBER, SIZE, Dying, image_table


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return a folder of small images of different sizes and a text."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(NUMBER):
        pixels = np.full((20 + i, 30), 8 * i, np.uint8)
        image = PIL.Image.fromarray(pixels)
        (image if i in GRAY else image.convert("RGB")).save(folder / f"{i}.jpg")
    (folder / "a.doc").write_bytes(b"\n".join(b"line %d" % i if i % 7 else b"\xff word" for i in range(50)))
    return folder


def text_table(folder, data_dir) -> TextCorpus:
    table = TextCorpus("c", data_dir, [folder / "a.doc"], val_fraction=0.3)
    table.RECORDS_PER_SHARD = SIZE  # pyright: ignore[reportAttributeAccessIssue]
    return table


def files(directory: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def alone(photos, tmp_path_factory):
    """Return the files of the two tables that one process builds."""
    data_dir = tmp_path_factory.mktemp("alone")
    return [files(run_builder(builder(photos, data_dir))) for builder in (image_table, text_table)]


def test_one_process_builds_shards_of_the_items(alone):
    images, texts = alone
    assert len([name for name in images if "array_record" in name]) == 4
    manifest = json.loads(images["manifest.json"])
    assert [problem["line"] for problem in manifest["problems"]] == list(GRAY)
    assert manifest["converted"] == {"JPEG in mode L encoded as an RGB JPEG": 3} and manifest["repaired"] == 3
    assert json.loads(images["sizes.json"])[NUMBER - 1] == [f"{NUMBER - 1}.jpg", 30, 20 + NUMBER - 1, 9]
    # The part with the 35th line has records of both splits.
    assert [name.rpartition(".")[0] for name in texts if "array_record" in name] == 5 * ["text_corpus-train"] + 3 * [
        "text_corpus-val"
    ]


def test_several_processes_write_the_same_bytes(photos, alone, tmp_path, capsys):
    for builder, processes, expected in ((image_table, 2, alone[0]), (text_table, 3, alone[1])):
        assert files(run_builder(builder(photos, tmp_path), Workers(processes))) == expected
    assert "photos_images: 100%" in capsys.readouterr().err


def test_the_error_of_the_first_item_ends_the_build(photos, tmp_path, monkeypatch):
    """The message is that of one process, and finished parts are not written again."""
    broken, slow = photos / "9.jpg", photos / "25.jpg"
    content, other = broken.read_bytes(), slow.read_bytes()
    messages = []
    try:
        broken.write_bytes(content[:100])
        slow.write_bytes(b"")
        for processes in (1, 2):
            with pytest.raises(SourceError) as error:
                run_builder(image_table(photos, tmp_path / str(processes)), Workers(processes))
            messages.append(str(error.value))
    finally:
        broken.write_bytes(content)
        slow.write_bytes(other)
    assert messages[0] == messages[1] and messages[0].startswith("train.jsonl, line 10: the image 9.jpg cannot be used")
    incomplete = tmp_path / "1/photos_images/c/incomplete.1.0.0"
    assert [path.name for path in sorted(incomplete.iterdir())] == ["00000.images", "parts"]


def test_a_killed_worker_ends_the_build_and_the_next_one_continues(photos, alone, tmp_path):
    builder = image_table(photos, tmp_path)
    builder.__class__ = Dying
    with pytest.raises(SourceError, match="^a process of the build was killed, .* the same command continues"):
        run_builder(builder, Workers(2))
    finished = times(tmp_path)
    assert {"00000", "00001"} <= set(finished) < {"00000", "00001", "00002", "00003"}
    (tmp_path / "photos_images/c/incomplete.1.0.0/.00003.images.machine.1").write_bytes(b"cut")
    assert conclude(photos, tmp_path, finished) == alone[0]


def times(data_dir: pathlib.Path) -> dict[str, int]:
    """Return when each finished part of the images was written."""
    folder = data_dir / "photos_images/c/incomplete.1.0.0/parts"
    return {path.stem: path.stat().st_mtime_ns for path in folder.glob("0*.json")}


def conclude(photos, data_dir, finished: dict[str, int]) -> dict[str, bytes]:
    """Complete the images and return their files; none of the finished parts is written again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_prep.tables.shutil.rmtree", lambda path: None)
        directory = run_builder(image_table(photos, data_dir))
    for name, written in finished.items():
        assert (directory / "parts" / f"{name}.json").stat().st_mtime_ns == written
    shutil.rmtree(directory / "parts")
    return files(directory)


COMMAND = """
import pathlib, sys
from data_prep import build
from data_prep.build_options import workers_of
from data_prep.tables import run_builder
from tests.helpers.processes_case import Slow, image_table

def command(args):
    builder = image_table(pathlib.Path(args.source), args.data_dir)
    builder.__class__ = Slow
    run_builder(builder, workers_of(args))

if __name__ == "__main__":
    build.COMMANDS["own"] = command
    sys.exit(build.main(sys.argv[1:]))
"""


def test_signals_end_all_processes_and_the_next_build_continues(photos, alone, tmp_path):
    pids, script = photos.parent / "pids", tmp_path / "command.py"
    pids.mkdir()
    script.write_text(COMMAND)
    command = [sys.executable, script, "own", f"--source={photos}", f"--data_dir={tmp_path}", "--num_processes=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    finished: dict[str, int] = {}
    for number, message in ((signal.SIGINT, "stopped by Ctrl-C; "), (signal.SIGTERM, "stopped by SIGTERM; "),
                            (signal.SIGKILL, "")):  # fmt: skip
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
        end = time.monotonic() + HANG_SECONDS
        while not list(pids.iterdir()) and time.monotonic() < end:
            time.sleep(0.02)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        lines = process.communicate(timeout=HANG_SECONDS)[1].splitlines()
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -number)
        assert lines[-1].startswith(message) and not any("Traceback" in line for line in lines)
        for pid in pids.iterdir():
            while pathlib.Path("/proc", pid.name).exists():
                assert time.monotonic() < end
                time.sleep(0.02)
            pid.unlink()
        assert finished.items() <= times(tmp_path).items()
        finished = times(tmp_path)
    assert set(finished) == {"00000", "00001"} and conclude(photos, tmp_path, finished) == alone[0]


def test_machines_share_a_build(photos, alone, tmp_path):
    """Each machine writes its parts, in any order; the last command completes the table, also where one failed."""
    for share in (1, 2):
        with pytest.raises(ShareWritten, match=f"share {share}/3 of 4 parts is written; .* without --shard completes"):
            run_builder(image_table(photos, tmp_path), Workers(1, share, 3))
    finished = times(tmp_path)
    assert set(finished) == {"00001", "00002"}
    with pytest.raises(SourceError, match="has parts of a build with other options: .* start all shares with the same"):
        builder = image_table(photos, tmp_path)
        builder.manifest.options["images"] = False
        run_builder(builder, Workers(1, 0, 3))
    assert conclude(photos, tmp_path, finished) == alone[0]


def test_two_machines_may_write_the_same_part_at_once(tmp_path, monkeypatch):
    part = tmp_path / "00000.json"
    with parts._replacing(part) as mine:
        pathlib.Path(mine).write_text("ha")
        monkeypatch.setattr(parts.socket, "gethostname", lambda: "another")
        parts.write_json(part, "half")
        assert part.read_text() == '"half"'
        pathlib.Path(mine).write_text('"half"')
    assert [path.name for path in tmp_path.iterdir()] == ["00000.json"] and part.read_text() == '"half"'


def test_parts_of_another_build_are_removed(photos, alone, tmp_path):
    with pytest.raises(ShareWritten):
        run_builder(image_table(photos, tmp_path), Workers(1, 0, 2))
    stored = tmp_path / "photos_images/c/incomplete.1.0.0/parts/build.json"
    stored.write_text(json.dumps(json.loads(stored.read_bytes()) | dict(version="0")))
    for part in stored.parent.glob("0*.json"):
        part.write_text("{}")
    assert files(run_builder(image_table(photos, tmp_path))) == alone[0]


def test_manifests_of_parts_merge_in_order():
    whole, merged = Manifest("s", {}), Manifest("s", {})
    records = [dict(image=b"", boxes=[0], text="a"), dict(image=b"x", boxes=[0, 0], text="1"), dict(text="?")]
    for number, record in enumerate(records):
        part = merged.for_part()
        for manifest in (whole, part):
            manifest.extracted("e", f"file {number}")
            manifest.note("kept", f"file {number}", number, "reason")
            manifest.tally(record)
            manifest.count_targets([True, False])
            manifest.records["train"] = manifest.records.get("train", 0) + 1
        merged.merge(json.loads(json.dumps(part.to_json())))
    assert merged.to_json() == whole.to_json() and merged.summary() == whole.summary()
    assert whole.to_json()["no_text"] == "1" and whole.to_json()["first_file"] == "file 0"
    with pytest.raises(SourceError, match="file 0 was made by extractor e, file 9 by extractor f"):
        merged.merge(part.to_json() | dict(extractor="f", first_file="file 9"))


def test_a_share_cannot_run_a_detector(tmp_path, capsys):
    arguments = ["own", f"--source={tmp_path}", "--shard=0/2", "--detector=d"]
    assert build.main(arguments) == 2 and "first share data_prep.extract_regions" in capsys.readouterr().err
    for wrong in ("--shard=2/2", "--num_processes=0"):
        with pytest.raises(SystemExit):
            build.main(["own", f"--source={tmp_path}", wrong])
