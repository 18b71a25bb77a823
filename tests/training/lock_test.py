"""A workdir belongs to one run at a time, until the process of the run ends."""

import errno
import json
import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT, toy_task
from tests.helpers.toy_runs import task_with, two_devices
from vlbert_jax.training import lock
from vlbert_jax.training.lock import only_run
from vlbert_jax.training.loop import train


def files(workdir):
    return {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}


def test_a_second_run_is_refused_in_one_line(tmp_path):
    config, refused = toy_task.make_config(total_steps=3), []

    def train_batches(config, start_step, *hosts):
        before = files(tmp_path)
        with pytest.raises(ValueError, match=f"^another run writes to {tmp_path} .process {os.getpid()} of ") as error:
            train(config, toy_task.toy, tmp_path, two_devices())
        assert files(tmp_path) == before
        refused.append(str(error.value))
        yield from toy_task.toy.train_batches(config, start_step, *hosts)

    train(config, task_with(train_batches=train_batches), tmp_path, two_devices())
    assert len(refused) == 1 and "\n" not in refused[0] and "stop it first, or choose another --workdir" in refused[0]
    train(config, toy_task.toy, tmp_path, two_devices())


SCRIPT = """
import pathlib, sys, time
from vlbert_jax.training.lock import only_run
with only_run(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_the_lock_ends_with_its_process(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=f"process {process.pid} of .*, since 2"):
            with only_run(tmp_path):
                pass
        process.kill()
    with only_run(tmp_path):
        pass


def test_a_lost_machine_gives_its_lock_back(tmp_path, monkeypatch):
    """A file server keeps the lock of a machine that vanished for a while; a run that lasts is refused."""
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.3)
    other = dict(host="another", process=7, started="2020")
    with only_run(tmp_path):
        (tmp_path / ".lock").write_text(json.dumps(other))
        with pytest.raises(ValueError, match="7 of another, since 2020.*if that machine is lost, remove .*/.lock"):
            with only_run(tmp_path):
                pass
    held = only_run(tmp_path)
    held.__enter__()
    (tmp_path / ".lock").write_text(json.dumps(other))
    monkeypatch.setattr(lock.time, "sleep", lambda _: held.__exit__(None, None, None))
    with only_run(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()


def test_a_file_system_without_locks_is_used(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with caplog.at_level("INFO", "vlbert_jax"), only_run(tmp_path):
        assert "has no locks (No locks available): start no second run in this workdir" in caplog.text
