"""launch/slurm.sbatch runs two tasks on a real SLURM of this machine, which requeues them once.

The test starts daemons, so it requires VLBERT_SLURM=1, root, and Debian's slurm-wlm and munge.
"""

import os
import shutil
import subprocess
import sys
import time

import pytest

from tests.helpers import HANG_SECONDS, ROOT
from vlbert_jax.training import metrics
from vlbert_jax.weights.orbax import newest_step

NEEDED = ("slurmctld", "slurmd", "sbatch", "munged")


@pytest.fixture
def cluster(tmp_path):
    """Start SLURM and yield the environment variables for sbatch and scontrol."""
    if "VLBERT_SLURM" not in os.environ or os.geteuid() or not all(map(shutil.which, NEEDED)):
        pytest.skip("requires VLBERT_SLURM=1, root, slurm-wlm and munge")
    script, folder = ROOT / "tests/launch/slurm_cluster.sh", tmp_path / "slurm"
    started = subprocess.run([script, "start", folder], capture_output=True, text=True)
    if started.returncode:
        pytest.skip(f"slurm does not start here: {started.stderr[-300:]}")
    try:
        yield dict(line.split("=", 1) for line in (folder / "environment").read_text().splitlines())
    finally:
        subprocess.run([script, "stop", folder], check=True)


@pytest.mark.slow
def test_two_requeued_tasks_finish(cluster, tmp_path):
    environment, run = os.environ | cluster | {"XLA_FLAGS": ""}, tmp_path / "run"
    program = tmp_path / "python"  # runs the toy task in place of vlbert_jax.main
    program.write_text(f"#!/bin/sh\nshift 2\nexec {sys.executable} -m tests.helpers.toy_process \"$@\"\n")
    program.chmod(0o755)
    job = ["launch/slurm.sbatch", "--sbatch=--ntasks-per-node=2", "--sbatch=--time=10", f"--python={program}"]
    job += ["--config=tests/helpers/toy_task.py", f"--workdir={run}"]
    fields = ["--config.total_steps=40", "--config.step_delay=0.1"]
    submitted = subprocess.run(
        [*job, "--", *fields], check=True, cwd=ROOT, env=environment, capture_output=True, text=True
    ).stdout  # fmt: skip
    number = submitted.partition("Submitted batch job ")[2].split()[0]
    output = run / f"slurm-{number}.out"

    def until(condition):
        deadline = time.monotonic() + HANG_SECONDS
        while not condition():
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.1)

    until(lambda: newest_step(run))
    subprocess.run(["scontrol", "requeue", number], check=True, env=environment)
    until(lambda: not subprocess.run(["squeue", "--noheader"], capture_output=True, env=environment).stdout)
    log = output.read_text()
    assert "asked to stop: step" in log and "requeued 1 time(s)" in log and "exit status 0" in log, log
    assert log.count("2 processes; this is process 0") == 2
    assert metrics.read_rows(run / "metrics.jsonl")[-1]["step"] == 40
    assert 5 < int(log.partition("asked to stop: step ")[2].split()[0]) < 40
