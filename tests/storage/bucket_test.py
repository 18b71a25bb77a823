"""Addresses, requests, local copies, and the lock of a run in a bucket."""

import argparse
import importlib.util
import json
import os
import threading
import time

import pytest

import vlbert_jax
from tests.helpers.bucket_case import SECRET, bucket_maker
from vlbert_jax import convert
from vlbert_jax.files import user_file, with_addresses
from vlbert_jax.storage import bucket as requests
from vlbert_jax.storage import lease
from vlbert_jax.storage.bucket import Bucket, StorageError, check_address
from vlbert_jax.storage.copies import leave_copy, make_copy, remove_copy, unsent_copy
from vlbert_jax.storage.lease import LOCK, Lease
from vlbert_jax.weights.checksums import damage_of
from vlbert_jax.weights.read import read_weights
from vlbert_jax.weights.shipped import ASSETS, locate_weights

# gcsfs sends files below 5 MB at once.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")


@pytest.fixture(scope="module", params=["s3", "gs"])
def make_bucket(request, tmp_path_factory):
    with bucket_maker(request.param, tmp_path_factory.mktemp("cache")) as make:
        yield make


@pytest.mark.parametrize(
    "address, message",
    [
        ("http://bucket/run", "http:// is not supported; give a folder, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER"),
        (f"s3://key:{SECRET}@bucket/run", "a s3:// address holds no credentials; store them where s3fs finds them"),
        ("gs:///run", "gs:///run names no bucket; give gs://BUCKET/FOLDER"),
        ("gs://bucket/run", r"gs://bucket/run needs gcsfs, which is not installed: pip install 'vlbert_jax\[gcs\]'"),
        ("s3://bucket/run", r"s3://bucket/run needs s3fs, which is not installed: pip install 'vlbert_jax\[s3\]'"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_in_one_line(address, message, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_address(address)
    with pytest.raises(argparse.ArgumentTypeError, match="is an address; give a file or folder"):
        user_file(address)


def test_errors_hold_no_credentials(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    error = OSError(f"GET http://host/object?X-Amz-Signature=123abc failed: {SECRET}")
    text, final = requests._reason(error, 1.0)
    assert text == "OSError: GET http://host/object failed: ***" and not final


def test_requests(make_bucket, tmp_path):
    bucket = Bucket(f"{make_bucket()}/a/b/")
    assert bucket.sizes() == {}
    bucket.write("x/one.txt", b"1")
    bucket.write("x/one.txt", b"one")
    bucket.write("empty", b"")
    Bucket(f"{bucket.address}c").write("neighbor", b"is not below a/b")
    assert bucket.sizes() == {"x/one.txt": 3, "empty": 0}
    bucket.download(bucket.sizes(), tmp_path)
    assert (tmp_path / "x/one.txt").read_text() == "one" and (tmp_path / "empty").read_bytes() == b""
    with pytest.raises(FileNotFoundError):
        bucket.read("nothing")
    bucket.delete(["empty", "nothing"])
    assert bucket.sizes() == {"x/one.txt": 3}
    with pytest.raises(StorageError, match=r"^cannot write \w+://\S+: there is no such bucket$"):
        Bucket(f"{make_bucket()}-other/run").write("x", b"")


def test_large_files_are_sent_from_disk(make_bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "SMALL", 10)
    (tmp_path / "large").write_bytes(bytes(100_000))
    bucket = Bucket(make_bucket())
    bucket.upload(tmp_path, ["large"])
    assert bucket.read("large") == bytes(100_000)


def test_a_second_run_is_refused_and_a_lost_one_is_not_waited_for_forever(make_bucket, monkeypatch):
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.6)
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.1)
    bucket = Bucket(make_bucket())
    first, number = Lease(bucket), os.getppid()
    bucket.write(LOCK, json.dumps(json.loads(bucket.read(LOCK)) | dict(process=number)).encode())  # a process that runs
    with pytest.raises(ValueError, match=rf"^another run writes to {bucket.address} \(process {number} of .*stop it"):
        Lease(bucket)
    other = dict(host="another", process=7, started="2020", token="x")
    stop = threading.Event()

    def renew():
        for count in range(1000):
            bucket.write(LOCK, json.dumps(other | dict(renewals=count)).encode())
            if stop.wait(0.05):
                return

    thread = threading.Thread(target=renew)
    thread.start()
    time.sleep(0.1)
    with pytest.raises(ValueError, match=r"process 7 of another, since 2020\)"):
        Lease(bucket)
    stop.set()
    thread.join()
    time.sleep(0.2)
    with pytest.raises(StorageError, match="was taken over by process 7 of another"):
        first.renew()
    first.release()
    assert LOCK in bucket.sizes()  # it belongs to the other one
    second = Lease(bucket)  # the other machine is lost
    second.renew()
    assert json.loads(bucket.read(LOCK))["renewals"] == 1
    content = json.loads(bucket.read(LOCK))
    second.release()
    # The number of a process of this host before its restart says nothing about the process that has it now.
    bucket.write(LOCK, json.dumps(content | dict(process=number, system="before")).encode())
    Lease(bucket).release()
    assert bucket.sizes() == {}


def test_copies_end_with_their_process_unless_they_hold_results(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    killed, kept, held = (make_copy("gs://bucket/runs/one") for _ in range(3))
    assert held.name == "one" and with_addresses(f"in {held}/x") == "in gs://bucket/runs/one/x"
    leave_copy(killed)  # the lock of a killed process ends so, too
    leave_copy(kept, unsent=True)
    assert unsent_copy("gs://bucket/runs/one/") == kept and unsent_copy("gs://bucket/runs/one") is None
    assert not killed.exists() and held.exists()
    for folder in (kept, held):
        remove_copy(folder)
        assert not folder.exists()


def test_models_are_read_from_an_address(make_bucket, tmp_path):
    """`convert`, `predict` and `config.init` read a folder and a file of weights."""
    name, bucket = "demo-vqa", Bucket(f"{make_bucket()}/models")
    files = (path for path in (ASSETS / name).rglob("*") if path.is_file())
    bucket.upload(ASSETS, [path.relative_to(ASSETS).as_posix() for path in files])
    address = f"{bucket.address}/{name}"
    found, expected = read_weights(f"{address}/model.safetensors"), read_weights(name)
    assert found.config == expected.config and found.tensors.keys() == expected.tensors.keys()
    assert locate_weights(address) == locate_weights(address)  # it is copied once
    assert vlbert_jax.load(address).config.data.vocab == str(locate_weights(address) / "vocabularies/vocab")
    assert convert.main([address, str(tmp_path / "model.safetensors")]) == 0
    with pytest.raises(FileNotFoundError, match="there is nothing at .*/other; check the address"):
        locate_weights(f"{bucket.address}/other")


def test_convert_writes_to_an_address(make_bucket, capsys):
    """A folder and a file are stored when they are complete; what is there is replaced only if that is asked for."""
    address = f"{make_bucket()}/out"
    for target in (f"{address}/folder", f"{address}/model.safetensors"):
        assert convert.main(["demo-vqa", target]) == 0
        assert f"written: {target} (" in capsys.readouterr().out
        assert read_weights(target).config["task"] == "answer"
        assert convert.main(["demo-vqa", target]) == 2
        assert f"error: {target} exists; choose another target, or replace it" in capsys.readouterr().err
    bucket = Bucket(f"{address}/folder")
    bucket.write("state/of_before", b"")
    assert convert.main(["demo-vqa", bucket.address, "--overwrite"]) == 0
    assert "state/of_before" not in bucket.sizes() and "state/_METADATA" in bucket.sizes()
    bucket.write("mine", b"")
    assert convert.main(["demo-vqa", bucket.address, "--overwrite"]) == 2
    assert "contains other files and is not replaced" in capsys.readouterr().err


def test_a_folder_that_is_stored_in_part_is_refused(make_bucket, tmp_path, monkeypatch):
    """Whichever request is the last one: the folder is complete, or its files are missing."""
    address, sent = f"{make_bucket()}/folder", []
    upload = Bucket.upload

    def ends(bucket, folder, names):
        sent.append(list(names))
        upload(bucket, folder, sent[-1][:1])
        if len(sent) == 2:
            raise StorageError("the bucket is gone")

    monkeypatch.setattr(Bucket, "upload", ends)
    assert convert.main(["demo-vqa", address]) == 2
    assert sent[0] == ["checksums.json"]
    folder = locate_weights(address)
    assert damage_of(folder)
