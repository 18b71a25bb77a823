"""Ctrl-C: a run is saved and ends; every command ends with one line; a second Ctrl-C ends at once."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import HANG_SECONDS, ROOT, toy_task
from tests.helpers.toy_runs import rows_of, task_with, two_devices
from vlbert_jax import main
from vlbert_jax.tasks import TASKS
from vlbert_jax.training.evaluate import evaluate_run
from vlbert_jax.training.loop import train
from vlbert_jax.training.preemption import Preemption, Stopped
from vlbert_jax.weights.orbax import newest_step


@pytest.fixture(autouse=True)
def handler(monkeypatch):
    """Set Python's handler: where the tests run in the background SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def interrupted(batches, number):
    for k, batch in enumerate(batches):
        if k == number:
            os.kill(os.getpid(), signal.SIGINT)
        yield batch


def with_interrupt(name, number):
    """Return the toy task that is interrupted in a call of `train_batches` or `eval_batches`."""

    def train_batches(config, *place):
        return interrupted(toy_task.toy.train_batches(config, *place), number)

    def eval_batches(config, *place):
        subsets = toy_task.toy.eval_batches(config, *place)
        return subsets | {"other": interrupted(subsets["other"], number)}

    return task_with(**{name: dict(train_batches=train_batches, eval_batches=eval_batches)[name]})


def test_ctrl_c_saves_and_stops(tmp_path, caplog):
    config = toy_task.make_config(eval_every_steps=0)
    with pytest.raises(Stopped, match="step 7 is saved") as stopped:
        train(config, with_interrupt("train_batches", 6), tmp_path / "stopped", two_devices())
    assert stopped.value.status == 130
    assert newest_step(tmp_path / "stopped") == 7
    assert "Ctrl-C again ends it at once" in caplog.text
    for name in ("stopped", "whole"):
        train(config, toy_task.toy, tmp_path / name, two_devices())
    assert rows_of(tmp_path / "stopped") == rows_of(tmp_path / "whole")


def test_ctrl_c_in_an_evaluation(tmp_path):
    config = toy_task.make_config(total_steps=2)
    train(config, toy_task.toy, tmp_path, two_devices())
    with pytest.raises(Stopped, match="in an evaluation") as stopped:
        evaluate_run(config, with_interrupt("eval_batches", 1), tmp_path, two_devices())
    assert stopped.value.status == 130 and not (tmp_path / "scores.json").exists()


def test_ignored_signals_stay_ignored(tmp_path):
    """A shell lets its background processes ignore Ctrl-C, which is not for them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = toy_task.make_config(total_steps=4, eval_every_steps=0)
    train(config, with_interrupt("train_batches", 2), tmp_path, two_devices())
    assert newest_step(tmp_path) == 4
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_the_status_of_the_command(tmp_path, monkeypatch, capsys):
    """In an update the run is saved; before the first one there is nothing to save."""
    flags = ["--config=tests/helpers/toy_task.py", f"--workdir={tmp_path}/run"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(TASKS, "toy", toy_task.REGISTERED)

    def interrupting(*_):
        os.kill(os.getpid(), signal.SIGINT)

    batches = toy_task.ToyTask.train_batches
    for name, function, line in (
        ("train_batches", lambda *args: interrupted(batches(*args), 2), "asked to stop: step 3 is saved"),
        ("build_model", interrupting, "stopped by Ctrl-C; the same command continues"),
    ):
        monkeypatch.setattr(toy_task.ToyTask, name, function)
        assert main.main(["main", *flags]) == 130
        errors = capsys.readouterr().err
        assert line in errors and "Traceback" not in errors


START = "import os, runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
MODULE = START + "sys.argv = sys.argv[1:]; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
# The main thread is in a call of C for a minute.
BUSY = START + """
import hashlib
from vlbert_jax.training.preemption import Preemption
with Preemption():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)
"""


def test_sigterm_ends_a_compilation():
    """SIGTERM in a long compilation ends the process; outside of one it does not."""
    limits = "from vlbert_jax.training import preemption; preemption.COMPILATION_SECONDS = 0.2\n"
    compiling = BUSY.replace("with Preemption():", limits + "with Preemption() as stop, stop.of_compilation():")
    not_compiling = BUSY.replace("with Preemption():", limits + "with Preemption() as stop:").replace(
        'hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)',
        'import time\n    time.sleep(1)\n    print(stop.reached(), stop.compiling)',
    )
    for script, status, printed in ((compiling, 143, ""), (not_compiling, 0, "True False\n")):
        process = subprocess.Popen(
            [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=HANG_SECONDS)
        assert (process.returncode, output) == (status, printed)
        assert ("SIGTERM in a compilation: ended; the same command continues" in errors) == (status == 143)


def test_compilations_of_a_run_are_marked(tmp_path, monkeypatch):
    """The compilations of updates, of the evaluation of a run, and of a run that is only evaluated may be given up."""
    marked = []
    monkeypatch.setattr(Preemption, "of_compilation", recording(marked, Preemption.of_compilation))
    config = toy_task.make_config(total_steps=20, second_loss_from=6)
    train(config, toy_task.toy, tmp_path, two_devices())
    assert len(marked) == 2 + 4  # two programs of updates; four batches of the first of two evaluations
    evaluate_run(config, toy_task.toy, tmp_path, two_devices())
    assert len(marked) == 2 + 4 + 4


def recording(calls, context):
    """Return a context manager that also notes each time it is entered."""

    @contextlib.contextmanager
    def recorded(self):
        with context(self):
            calls.append(self.compiling)
            yield

    return recorded


def test_a_second_ctrl_c_ends_at_once_also_in_a_call_of_c():
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert "Ctrl-C again ends it at once" in process.stderr.readline()  # it is reported at once, too
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 130 and time.monotonic() - began < 15
    assert errors.strip() == "ended at once; the same command continues from the newest checkpoint"


# Each command reads a named pipe, which blocks it.
COMMANDS = {
    "vlbert_jax.predict": (["--image=PIPE"], "stopped by Ctrl-C"),
    "vlbert_jax.convert": (["PIPE", "target"], "stopped by Ctrl-C; target is unchanged"),
    "data_prep.build": (
        ["vcr", "--source=.", "--categories=PIPE"], "stopped by Ctrl-C; the same command builds the tables that",
    ),
    "data_prep.extract_regions": (["list.txt", "--detector=PIPE", "--out=out"], "stopped; the same command continues"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_ends_with_one_line(command, tmp_path):
    pipe, (arguments, line) = tmp_path / "pipe", COMMANDS[command]
    os.mkfifo(pipe)
    (tmp_path / "list.txt").write_text("a.jpg\n")
    arguments = [argument.replace("PIPE", str(pipe)) for argument in arguments]
    process = subprocess.Popen(
        [sys.executable, "-c", MODULE, command, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    writer, deadline = None, time.monotonic() + HANG_SECONDS
    while writer is None and process.poll() is None and time.monotonic() < deadline:
        try:
            writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)  # fails until the command opens the pipe
        except OSError:
            time.sleep(0.1)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 130, errors
    assert errors.strip().splitlines()[-1].startswith(line) and "Traceback" not in errors
