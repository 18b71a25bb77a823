"""The report is written at every evaluation; trackers get metrics, examples and hyperparameters."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from tests.helpers import ROOT, toy_task
from tests.helpers.toy_runs import rows_of, task_with, two_devices
from vlbert_jax.tasks.base import Examples
from vlbert_jax.training import description, trackers
from vlbert_jax.training.logs import readable_seconds
from vlbert_jax.training.loop import train
from vlbert_jax.visualization.cards import Card, RankedAnswer
from vlbert_jax.visualization.report import paragraph


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """Return workdir, config, the reports' rows, and how often batches were made and the model was traced."""
    seen = dict(batches=0, traces=0, rows=[])

    def report_batches(config):
        seen["batches"] += 1
        return [toy_task._batch(np.random.default_rng(7), 16)]

    def report_rows(model, batch, config):
        seen["traces"] += 1
        return {"logits": model(batch)}

    def report_examples(shown, config, scores):
        seen["rows"].append(np.asarray(shown[0][1]["logits"]))
        pixels, boxes = np.full((20, 30, 3), 90, np.uint8), np.array([[0, 0, 30, 20], [3, 3, 9, 9]])
        card = Card(pixels, boxes, question="what <is> it?", answers=[RankedAnswer("a cup", 0.75, 1.0)])
        return Examples([("Examples", paragraph(f"accuracy {scores['accuracy']:.4f}"))], [card])

    workdir = tmp_path_factory.mktemp("reported")
    config = toy_task.make_config(total_steps=8, log_every_steps=4, eval_every_steps=4, report=True)
    task = task_with(report_batches=report_batches, report_rows=report_rows, report_examples=report_examples)
    pages = []
    task.__class__.report_title = lambda self, config: pages.append(rows_of(workdir)[-1]["step"]) or "A toy"
    _, state = train(config, task, workdir, two_devices())
    return workdir, config, seen, pages, state


def test_a_report_per_evaluation_that_compiles_one_program(reported):
    workdir, _, seen, pages, _ = reported
    assert pages == [4, 8] and (seen["batches"], seen["traces"]) == (1, 1)
    assert not np.array_equal(*seen["rows"])  # each with the weights of its step
    page = (workdir / "report/index.html").read_text()
    assert "Finished: 8 of 8 updates" in page and f"accuracy {rows_of(workdir)[-1]['accuracy']:.4f}" in page
    about = json.loads((workdir / "versions.json").read_text())
    assert about["command"] in page.replace("&#x27;", "'") and "of updates; " in page and about["machine"] in page
    assert f"python -m vlbert_jax.report {workdir} OTHER_WORKDIR" in page


def test_the_report_changes_no_number(reported, tmp_path):
    workdir, _, _, _, state = reported
    config = toy_task.make_config(total_steps=8, log_every_steps=4, eval_every_steps=4)
    _, plain = train(config, toy_task.toy, tmp_path, two_devices())
    assert rows_of(tmp_path) == rows_of(workdir)
    np.testing.assert_array_equal(plain.params.first[...], state.params.first[...])
    assert not (tmp_path / "report").exists()


def events_of(folder):
    """Return the values in the event files of TensorBoard: (tag, value)."""
    values = []
    for path in sorted(folder.iterdir()):
        data, place = path.read_bytes(), 0
        while place < len(data):  # TFRecord: length, its checksum, the event, its checksum
            size = int.from_bytes(data[place : place + 8], "little")
            event = event_pb2.Event.FromString(data[place + 12 : place + 12 + size])
            values += [(value.tag, value) for value in event.summary.value]
            place += size + 16
    return values


def test_tensorboard_has_scalars_images_texts_and_hyperparameters(reported):
    values = events_of(reported[0] / "tensorboard")
    tags = [tag for tag, _ in values]
    assert tags.count("train/loss") == 2 and tags.count("val/accuracy") == 2
    image = next(value.image for tag, value in values if tag.startswith("examples/1"))
    assert image.width == 640 and image.encoded_image_string[:4] == b"\x89PNG"
    texts = {tag: value.tensor.string_val[0].decode() for tag, value in values if value.tensor.string_val}
    assert "| learning_rate | 0.01 |" in str(texts) and "what <is> it?" in str(texts)
    assert sum("hparams" in tag for tag in tags) == 3
    session = next(value for tag, value in values if tag == "_hparams_/session_start_info")
    assert b"learning_rate" in session.metadata.plugin_data.content


def test_commands_are_shown_without_folders_of_programs():
    assert description.command_line(["/x/python3", "-m", "a", "--b=c d"]) == "python3 -m a '--b=c d'"
    assert description.command_line(["/x/python3", "/x/vlbert-train", "--b"]) == "vlbert-train --b"


@pytest.mark.parametrize("seconds, text", [
    (0.26, "0.3 s"), (59.0, "59 s"), (61.0, "1 min 1 s"), (3660.0, "1 h 1 min"), (93_600.0, "1 d 2 h"),
])  # fmt: skip
def test_durations_have_two_units(seconds, text):
    assert readable_seconds(seconds) == text


def test_a_tracker_that_is_unknown_or_not_installed(monkeypatch):
    with pytest.raises(ValueError, match="config.tracker is 'mlflow'; it can be empty or 'wandb'"):
        trackers.check_tracker(toy_task.make_config(tracker="mlflow"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="not installed: pip install wandb"):
        trackers.check_tracker(toy_task.make_config(tracker="wandb"))


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path):
    pytest.importorskip("wandb")
    fields = ["total_steps=4", "log_every_steps=2", "eval_every_steps=0", "tracker=wandb", "data.num_threads=1"]
    program = (
        "import sys; from tests.helpers import toy_task; from vlbert_jax import main; "
        "from vlbert_jax.tasks import TASKS; "
        "TASKS['toy'] = toy_task.REGISTERED; sys.exit(main.main(sys.argv))"
    )
    command = [sys.executable, "-c", program, "--config=tests/helpers/toy_task.py", f"--workdir={tmp_path}"]
    environment = dict(os.environ, WANDB_MODE="offline", WANDB_SILENT="true")
    done = subprocess.run([*command, *(f"--config.{field}" for field in fields)], cwd=ROOT, env=environment,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    logged = file.read_bytes()  # records of protobuf, which hold values as JSON
    for row in rows_of(tmp_path):
        assert f"{row['split']}/loss".encode() in logged and json.dumps(row["loss"]).encode() in logged
    assert re.fullmatch(r"[0-9a-f]{8}\n", (tmp_path / "wandb_id").read_text())
