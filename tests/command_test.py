"""Test how commands end: at Ctrl-C while they are imported, at errors, and at Ctrl-C later."""

import gc
import importlib.util
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import ROOT
from vlbert_jax import command

# Command -> a module of another package that it imports, and its arguments.
IMPORTED = {
    "vlbert_jax.main": ("ml_collections", []),
    "vlbert_jax.predict": ("flax", ["--image=a.png"]),
    "vlbert_jax.report": ("jax", ["a"]),
    "vlbert_jax.tasks.answer.accuracy": ("numpy", []),
    "data_prep.build": ("numpy", ["text", "--source=a"]),
    "data_prep.extract_regions": ("tqdm", ["a", "--detector=b", "--out=c"]),
}
PRESS = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(9)\n"


@pytest.mark.parametrize("name", IMPORTED)
def test_ctrl_c_while_a_command_is_imported(name, tmp_path):
    module, arguments = IMPORTED[name]
    (tmp_path / f"{module}.py").write_text(PRESS)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    found = subprocess.run(
        [sys.executable, "-m", name, *arguments], cwd=ROOT, env=os.environ | dict(PYTHONPATH=path), capture_output=True
    )
    assert (found.returncode, found.stdout, found.stderr) == (-signal.SIGINT, b"", b"")  # 130 in a shell


def test_the_import_of_the_package_leaves_signals_alone():
    program = "import signal, vlbert_jax; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    start = "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    start += "os.execv(sys.argv[1], sys.argv[1:])"
    subprocess.run([sys.executable, "-c", start, sys.executable, "-c", program], cwd=ROOT, check=True)


def test_a_command_of_somebody_else_keeps_its_ctrl_c(tmp_path):
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool/__init__.py").write_text("import vlbert_jax\n")
    check = "import signal\nassert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    (tmp_path / "tool/__main__.py").write_text(check)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    subprocess.run([sys.executable, "-m", "tool"], cwd=tmp_path, env=os.environ | dict(PYTHONPATH=path), check=True)


def raising(error):
    def work():
        raise error

    return work


def test_the_status_and_the_line_of_an_error(capsys, monkeypatch):
    monkeypatch.delenv("VLBERT_DEBUG", raising=False)
    assert command.run_command(lambda: None) == 0
    assert command.run_command(raising(ValueError("a\n  b"))) == 2
    assert command.run_command(raising(ValueError(f"file: {'x' * 5000}; remedy"))) == 2
    assert command.run_command(raising(KeyError("a")), errors=(KeyError,), reworded=str.upper) == 2
    assert command.run_command(raising(KeyboardInterrupt()), interrupted="stopped") == 130
    first, second, third, last = capsys.readouterr().err.splitlines()
    assert first == "error: a b" and third == "error: 'A'" and last == "stopped"
    assert second.startswith("error: file: xxx") and second.endswith("xxx; remedy") and len(second) < 1010
    with pytest.raises(KeyError):
        command.run_command(raising(KeyError("a")))
    monkeypatch.setenv("VLBERT_DEBUG", "1")
    with pytest.raises(ValueError, match="a"):
        command.run_command(raising(ValueError("a")))


@pytest.mark.parametrize("wrong", ["missing", "folder", "loop", "folder/a/b", "x" * 300])
def test_a_path_that_cannot_be_read_is_named(wrong, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert command.run_command(lambda: (tmp_path / wrong).read_bytes()) == 2
    error = capsys.readouterr().err
    assert command.run_command((tmp_path / "folder/a").mkdir) == 2  # as of an option for a folder
    assert capsys.readouterr().err.endswith("folder/a: File exists; check this path and its permissions\n")
    assert error.startswith(f"error: {tmp_path / wrong}: ") and "; check this path and its permissions\n" in error


def test_ctrl_c_in_a_callback_of_the_garbage_collector():
    """Python drops exceptions of such a callback; JAX has one, and it runs often."""

    def press(phase, info):
        if phase == "stop":
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        command.catch_ctrl_c()
        gc.callbacks.append(press)
        gc.collect()
        gc.callbacks.remove(press)
        with pytest.raises(KeyboardInterrupt):
            time.sleep(9)
    finally:
        signal.signal(signal.SIGINT, before)


# What the writers of a checkpoint do on a full disk: threads find the event loop closed, and an error is not retrieved.
FAILED = """
import asyncio, gc, sys
from vlbert_jax.command import run_command

class Writer:
    def __init__(self, reason):
        self.reason = reason

    def __del__(self):
        raise RuntimeError(self.reason)

def work():
    for reason in sys.argv[1:]:
        Writer(reason)
    loop = asyncio.new_event_loop()
    asyncio.sleep(1)  # a coroutine that never starts
    for reason in ("No space left on device", "another reason"):
        loop.create_future().set_exception(ValueError(reason))
    gc.collect()
    raise OSError("no space left")

sys.exit(run_command(work))
"""


def test_a_failed_write_is_reported_once():
    command = [sys.executable, "-c", FAILED, "Event loop is closed", "something else"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.endswith("\nerror: no space left\n")
    assert "never awaited" not in done.stderr
    assert "Event loop is closed" not in done.stderr and "No space left on device" not in done.stderr
    assert "RuntimeError: something else" in done.stderr and "ValueError: another reason" in done.stderr


@pytest.mark.parametrize("platform", ["cuda", "cudaa"])
def test_a_platform_without_its_plugin(platform, tmp_path):
    if platform == "cuda" and importlib.util.find_spec("jax_cuda12_plugin"):
        pytest.skip("JAX has its plugin for CUDA")
    argv = [sys.executable, "-m", "vlbert_jax.main", "--config=vqa:demo", f"--workdir={tmp_path}/run"]
    found = subprocess.run(argv, cwd=ROOT, env=os.environ | dict(JAX_PLATFORMS=platform), capture_output=True)
    assert found.returncode == 2  # launch/gpu_node.sh starts it again after 1
    assert found.stderr.startswith(f"error: JAX_PLATFORMS is {platform!r}, and JAX finds no such device".encode())
    assert found.stderr.endswith(b"correct or unset JAX_PLATFORMS; for a GPU install vlbert_jax[cuda]\n")
    assert not list(tmp_path.iterdir())


def test_other_errors_are_no_errors_of_the_platform(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    for error in (AssertionError(), RuntimeError("other"), RuntimeError("Unable to initialize backend 'x'")):
        with pytest.raises(type(error)) as caught, command.platforms_explained():
            raise error
        assert caught.value is error
