"""A bucket that fails, stalls or refuses: requests are repeated, and what cannot be stored is kept and stored later."""

import jax
import numpy as np
import pytest

from tests.helpers import toy_task
from tests.helpers.bucket_case import SECRET, train_at
from tests.helpers.toy_runs import rows_of, task_with, two_devices
from vlbert_jax.storage import bucket as requests
from vlbert_jax.storage import workdir
from vlbert_jax.storage.bucket import Bucket, StorageError
from vlbert_jax.storage.workdir import committed_steps, local_workdir
from vlbert_jax.training.loop import train
from vlbert_jax.weights.checksums import damage_of

# gcsfs sends files below 5 MB at once.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")


@pytest.fixture(autouse=True)
def impatient(place, monkeypatch):
    """Shorten all pauses, and end every fault after the test."""
    monkeypatch.setattr(requests, "PAUSE", 0.01)
    monkeypatch.setattr(workdir, "INTERVAL", 0.05)
    monkeypatch.setattr(workdir, "FAILING", 0.05)
    yield
    place[1].fault = ""
    place[1].awake.set()


@pytest.fixture(scope="module")
def in_a_folder(tmp_path_factory):
    config, folder = toy_task.make_config(report=True), tmp_path_factory.mktemp("uninterrupted")
    _, state = train(config, toy_task.toy, folder, two_devices())
    return config, rows_of(folder), state


def fault_at(step, proxy, fault):
    """Return the toy task with a fault of the bucket from a batch on."""

    def train_batches(config, start_step, *hosts):
        for k, batch in enumerate(toy_task.toy.train_batches(config, start_step, *hosts), start_step):
            proxy.fault = fault if k == step else proxy.fault
            yield batch

    return task_with(train_batches=train_batches)


def test_requests_that_fail_are_repeated(place, in_a_folder, caplog):
    make, proxy = place
    config, rows, state = in_a_folder
    address = make()
    proxy.fault, proxy.failed = "broken", 0
    found, trained = train_at(address, config)
    assert proxy.failed >= 3 and found == rows
    jax.tree.map(np.testing.assert_array_equal, trained, state)
    proxy.fault = ""
    assert committed_steps(Bucket(address).sizes()) == [20, 15, 10] and "cannot" not in caplog.text


@pytest.mark.parametrize("fault", ["stalled", "refused"])
def test_what_cannot_be_stored_is_kept_and_stored_by_the_next_start(place, in_a_folder, fault, caplog, monkeypatch):
    make, proxy = place
    config, rows, state = in_a_folder
    address = f"{make()}/runs/one"
    monkeypatch.setattr(requests, "ATTEMPTS", 2)
    proxy.awake.clear()
    with caplog.at_level("DEBUG"), pytest.raises(StorageError) as error:
        monkeypatch.setattr(requests, "PATIENCE", 5.0)
        with local_workdir(address, True, damage_of) as folder:
            monkeypatch.setattr(requests, "PATIENCE", 0.3)
            train(config, fault_at(8, proxy, fault), folder, two_devices())
    reason = "no answer within 0 s" if fault == "stalled" else "access is denied; check the rights of this account"
    line = str(error.value)
    assert reason in line and f"The results are complete in {folder.parent}" in line and "\n" not in line
    assert "stores them first" in line and SECRET not in line + caplog.text
    assert caplog.text.count("the run continues, and its results are kept in") == 1
    assert rows_of(folder) == rows

    proxy.fault = ""
    proxy.awake.set()
    monkeypatch.setattr(requests, "PATIENCE", 5.0)

    def nothing(config, start_step, *hosts):
        assert start_step == 20  # all updates are done in what was kept
        return iter(())

    found, trained = train_at(address, config, task_with(train_batches=nothing))
    assert found == rows and not folder.exists()
    jax.tree.map(np.testing.assert_array_equal, trained, state)
    bucket = Bucket(address)
    assert committed_steps(bucket.sizes()) == [20, 15, 10] and b'"step": 20' in bucket.read("metrics.jsonl")


def test_a_bucket_that_refuses_is_one_line_before_anything_is_computed(place):
    make, proxy = place
    address = make()
    proxy.fault = "refused"
    with pytest.raises(StorageError, match=f"^cannot write {address}/.lock: access is denied") as error:
        with local_workdir(address, True, damage_of):
            raise AssertionError("the run starts")
    assert SECRET not in str(error.value)
