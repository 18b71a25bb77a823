"""Several processes of one run with a workdir in a bucket: each has a copy of its own, and process 0 stores."""

import json
import signal
import time

import jax
import numpy as np
import pytest

from tests.helpers.bucket_case import bucket_maker
from tests.helpers.toy_processes import end, start
from tests.helpers.toy_runs import rows_of
from vlbert_jax.storage.bucket import Bucket
from vlbert_jax.storage.workdir import committed_steps
from vlbert_jax.weights.orbax import read_checkpoint
from vlbert_jax.weights.shipped import locate_weights

# fsdp=4 divides parameters over both processes, which have two devices each.
FIELDS = ["--config.prng_impl=threefry2x32", "--config.mesh.data=1", "--config.mesh.fsdp=4", "--config.report"]
FIELDS += ["--config.step_delay=0.1"]  # slow enough to be killed

# gcsfs sends files below 5 MB at once.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")


@pytest.fixture(scope="module", params=["s3", "gs"])
def make_bucket(request, tmp_path_factory):
    with bucket_maker(request.param, tmp_path_factory.mktemp("cache")) as make:
        yield make


@pytest.fixture(scope="module")
def in_a_folder(tmp_path_factory):
    """Return the workdir of an uninterrupted run of two processes in a folder that they share."""
    folder = tmp_path_factory.mktemp("shared")
    assert end(start(folder, 2, *FIELDS, f"--workdir={folder}/run")) == ([0, 0], [[], []])
    return folder / "run"


def test_a_killed_run_of_two_processes_continues_bit_equal(make_bucket, in_a_folder, tmp_path):
    """Both processes are killed; the next ones continue, evaluate, and equal an uninterrupted run in a folder."""
    address = f"{make_bucket()}/runs/two"
    flags, environment = [*FIELDS, f"--workdir={address}"], make_bucket.environment | {"STORE_SECONDS": "0.1"}
    bucket = Bucket(address)
    processes = start(tmp_path, 2, *flags, **environment)
    while not committed_steps(bucket.sizes()) and all(process.is_alive() for process in processes):
        time.sleep(0.1)
    for process in processes:
        process.kill()
    assert end(processes)[0] == [-signal.SIGKILL] * 2
    killed_at = committed_steps(bucket.sizes())[0]
    assert 5 <= killed_at < 20

    processes = start(tmp_path, 2, *flags, **environment)
    logs = [process.log for process in processes]
    assert end(processes) == ([0, 0], [[], []]), logs[0].read_text()
    assert f"step {killed_at} of {address}" in logs[0].read_text()
    assert end(start(tmp_path, 2, *flags, "--mode=evaluate", **environment)) == ([0, 0], [[], []])
    sizes = bucket.sizes()
    assert committed_steps(sizes) == [20, 15, 10] and ".lock" not in sizes
    bucket.download({name: sizes[name] for name in ("metrics.jsonl", "predictions/val.json")}, tmp_path)
    assert rows_of(tmp_path) == rows_of(in_a_folder)
    found, expected = (read_checkpoint(folder) for folder in (locate_weights(address), in_a_folder))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    scores, last = json.loads(bucket.read("scores.json")), rows_of(in_a_folder)[-1]
    assert scores["step"] == 20 and scores["loss"] == last["loss"]
