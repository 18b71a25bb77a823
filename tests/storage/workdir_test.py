"""Runs in buckets: train, kill, resume, evaluate, predict, convert; against emulators on the loopback."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.helpers import ROOT, toy_task
from tests.helpers.bucket_case import bucket_maker, train_at
from tests.helpers.toy_runs import rows_of, task_with, two_devices
from vlbert_jax import main, report, tasks
from vlbert_jax.storage import lease
from vlbert_jax.storage.bucket import Bucket
from vlbert_jax.storage.workdir import committed_steps, local_workdir
from vlbert_jax.training.evaluate import evaluate_run
from vlbert_jax.training.loop import train
from vlbert_jax.weights.checksums import damage_of
from vlbert_jax.weights.orbax import read_checkpoint
from vlbert_jax.weights.shipped import locate_weights

# gcsfs sends files below 5 MB at once.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")


@pytest.fixture(scope="module", params=["s3", "gs"])
def make_bucket(request, tmp_path_factory):
    with bucket_maker(request.param, tmp_path_factory.mktemp("cache")) as make:
        yield make


@pytest.fixture(scope="module")
def in_a_folder(tmp_path_factory):
    """Return the config, rows and state of an uninterrupted run in a folder."""
    config, folder = toy_task.make_config(second_loss_from=6), tmp_path_factory.mktemp("uninterrupted")
    _, state = train(config, toy_task.toy, folder, two_devices())
    return config, rows_of(folder), state


PROGRAM = """
import sys, time
sys.modules["torch"] = None
from tests.helpers import toy_task
from tests.helpers.toy_runs import task_with, two_devices
from vlbert_jax.storage import workdir
from vlbert_jax.training.loop import train
from vlbert_jax.weights.checksums import damage_of

workdir.INTERVAL = 0.1

def train_batches(config, start_step, *hosts):
    for step, batch in enumerate(toy_task.toy.train_batches(config, start_step, *hosts), start_step):
        if step == 13:
            time.sleep(600)
        yield batch

with workdir.local_workdir(sys.argv[1], True, damage_of) as folder:
    train(toy_task.make_config(second_loss_from=6), task_with(train_batches=train_batches), folder, two_devices())
"""


def test_a_killed_run_continues_bit_equal(make_bucket, in_a_folder):
    """A run in a bucket, killed with SIGKILL and resumed from another copy, equals an uninterrupted one in a folder."""
    config, rows, state = in_a_folder
    address, environment = f"{make_bucket()}/runs/first", os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", PROGRAM, address], env=environment, cwd=ROOT) as process:
        bucket = Bucket(address)
        while committed_steps(bucket.sizes())[:1] != [10]:
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    for name in ("state/half", "meta/half"):  # of a save that was killed: without a marker it does not count
        bucket.write(f"checkpoints/15/{name}", b"half")
    starts = []

    def train_batches(config, start_step, *hosts):
        starts.append(start_step)
        return toy_task.toy.train_batches(config, start_step, *hosts)

    resumed_rows, resumed = train_at(address, config, task_with(train_batches=train_batches))
    assert starts == [10] and resumed_rows == rows
    jax.tree.map(np.testing.assert_array_equal, resumed, state)
    sizes = bucket.sizes()
    assert committed_steps(sizes) == [20, 15, 10] and "checkpoints/15/state/half" not in sizes
    assert lease.LOCK not in sizes and {"metrics.jsonl", "config.json", "versions.json"} <= sizes.keys()
    assert any(name.startswith("tensorboard/") for name in sizes)
    assert not list(pathlib.Path(os.environ["XDG_CACHE_HOME"]).rglob("first"))  # no copy remains

    with local_workdir(address, False, damage_of) as folder:
        scores = evaluate_run(config, toy_task.toy, folder, two_devices())
    assert json.loads(bucket.read("scores.json")) == scores
    assert {name: scores[name] for name in rows[-1] if name in scores} == {
        name: value for name, value in rows[-1].items() if name in scores
    }
    weights = read_checkpoint(locate_weights(address))
    np.testing.assert_array_equal(weights["params"]["first"], np.asarray(state.params.first[...]))
    assert read_checkpoint(locate_weights(f"{address}/checkpoints/15"))["params"].keys() == weights["params"].keys()


def test_the_command_names_the_address_everywhere(make_bucket, monkeypatch, capsys, tmp_path):
    """Training and evaluation by the command; no text has the folder of the copy."""
    monkeypatch.setitem(tasks.TASKS, "toy", toy_task.REGISTERED)
    address = f"{make_bucket()}/runs/second"
    flags = ["main", "--config=tests/helpers/toy_task.py", f"--workdir={address}", "--config.report=True"]
    assert main.main([*flags, "--config.total_steps=8"]) == 0
    assert main.main([*flags, "--config.total_steps=8", "--mode=evaluate"]) == 0
    bucket = Bucket(address)
    texts = {name: bucket.read(name).decode() for name in ("log.txt", "README.md", "report/index.html", "scores.json")}
    texts["terminal"] = "".join(capsys.readouterr())
    cache = os.environ["XDG_CACHE_HOME"]
    assert not [name for name, text in texts.items() if f"{cache}/vlbert_jax/buckets" in text]
    assert f"{address}/report/index.html" in texts["log.txt"] and address in texts["report/index.html"]
    assert report.main([address, f"--out={tmp_path}/page"]) == 0
    assert "The run second" in (tmp_path / "page/index.html").read_text()
    assert report.main([f"{address}/none", f"--out={tmp_path}/page"]) == 2
    assert f"error: {address}/none holds no run" in capsys.readouterr().err
    assert main.main([*flags, "--config.total_steps=8", "--config.seed=7"]) == 2
    assert f"error: {address} holds a run with another config; these fields differ: seed" in capsys.readouterr().err
