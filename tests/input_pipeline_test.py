"""Test that the benchmark of the input pipeline runs, at toy size."""

import subprocess
import sys

import pytest

from tests.helpers import ROOT

SMALL = "--records=8 --height=40 --width=60 --boxes=3 --batch_size=4 --batches=2 --rounds=1 --num_threads=1".split()


def run(*options):
    command = [sys.executable, str(ROOT / "benchmarks/input_pipeline.py"), *SMALL, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path):
    done = run("--scores=top64")
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line[:1].islower())
    assert lines["scores"].startswith("top64, ") and "ms of CPU per record" in lines["vlbert_jax"]
    assert "official" not in lines
    wrong = run(f"--official={tmp_path}")
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].endswith("is not a checkout of the official code: it has no pretrain/data")
