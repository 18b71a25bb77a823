"""The launch scripts: what they say they would run, what they refuse, and how they restart."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
GPU_NODE = ROOT / "launch" / "gpu_node.sh"
OURS = ("XLA_FLAGS", "XLA_PYTHON_CLIENT_MEM_FRACTION", "JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR")


def launch(*arguments, script=GPU_NODE, cwd=ROOT, **environment):
    clean = {k: v for k, v in os.environ.items() if k not in OURS}
    return subprocess.run(
        [script, *arguments], cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=60
    )


def fake_python(path, body):
    """A program in place of the interpreter; it counts its starts in `path`/starts."""
    program = path / "python"
    program.write_text(f"#!/bin/sh\necho \"$@\" >> '{path}/starts'\n{body}\n")
    program.chmod(0o755)
    return [f"--python={program}", f"--workdir={path}/run", "--restart-delay=0"]


def starts(path):
    return (path / "starts").read_text().splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_help(script):
    result = launch("--help", script=script)
    assert result.returncode == 0 and not result.stderr
    assert "--dry-run" in result.stdout and "--config" in result.stdout


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / ".ci" / "run"], ids=lambda p: p.name)
@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck here")
def test_shellcheck(script):
    result = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_dry_run_prints_the_command_and_runs_nothing(tmp_path):
    workdir = tmp_path / "run"
    result = launch("--dry-run", "--config=configs/pretrain.py:base_prec", f"--workdir={workdir}", "--gpus=3", "--",
                    "--config.batch_size=64", "--config.data.data_dir=/a b")
    assert result.returncode == 0, result.stderr
    assert not workdir.exists()
    command = next(line for line in result.stdout.splitlines() if "vlbert_jax.main" in line)
    assert f"--config=configs/pretrain.py:base_prec --workdir={workdir} --config.batch_size=64" in command
    assert r"/a\ b" in command  # can be pasted into a shell
    assert r"CUDA_VISIBLE_DEVICES=0\,1\,2" in command
    assert "JAX_PLATFORMS=cuda" in command and "XLA_FLAGS=--xla_gpu" in command


def test_works_from_any_directory_and_names_the_workdir(tmp_path):
    result = launch("--dry-run", "--config=configs/pretrain.py:base_prec", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "--workdir=workdirs/pretrain_base_prec" in result.stdout
    assert "CUDA_VISIBLE_DEVICES" not in result.stdout  # all of them


def test_the_environment_wins():
    result = launch("--dry-run", XLA_FLAGS="--xla_mine=1", JAX_PLATFORMS="cpu")
    assert "--xla_mine=1 " in result.stdout and "JAX_PLATFORMS=cpu" in result.stdout
    assert result.stdout.index("--xla_gpu_") < result.stdout.index("--xla_mine")  # of two equal flags the last counts


@pytest.mark.parametrize(
    "arguments",
    [
        ["--gpu=2"],
        ["--gpus=0"],
        ["--gpus="],
        ["--gpus=two"],
        ["--devices=0;1"],
        ["--gpus=1", "--devices=0"],
        ["--restarts=-1"],
        ["--memory=2"],
        ["--config=configs/none.py"],
        ["--config.batch_size=64"],
        ["configs/pretrain.py"],
    ],
    ids=" ".join,
)
def test_mistakes_are_refused(arguments):
    result = launch("--dry-run", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("gpu_node.sh: ") and not result.stdout


def test_success_ends_it(tmp_path):
    result = launch(*fake_python(tmp_path, "exit 0"), "--", "--config.seed=3")
    assert result.returncode == 0
    assert starts(tmp_path) == [
        f"-m vlbert_jax.main --config=configs/pretrain.py:base_e2e --workdir={tmp_path}/run --config.seed=3"
    ]


def test_failures_are_restarted_a_bounded_number_of_times(tmp_path):
    result = launch(*fake_python(tmp_path, "exit 7"), "--restarts=2")
    assert result.returncode == 7
    assert len(starts(tmp_path)) == 3
    assert "restart 2 of 2" in result.stderr


def test_a_restart_that_works_is_a_success(tmp_path):
    result = launch(*fake_python(tmp_path, f"test $(wc -l < '{tmp_path}/starts') -eq 2"))
    assert result.returncode == 0
    assert len(starts(tmp_path)) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_run_and_nothing_restarts(tmp_path, number):
    body = f"trap 'echo saved > {tmp_path}/saved; exit 1' TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done"
    # Where the tests themselves run in the background SIGINT is ignored, which a shell cannot undo.
    start = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", start, GPU_NODE, *fake_python(tmp_path, body)], cwd=ROOT, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(timeout=10) != 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert (tmp_path / "saved").read_text() == "saved\n"
    assert len(starts(tmp_path)) == 1
