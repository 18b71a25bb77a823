"""Data at an address: what a run reads is copied, kept for later runs, and bounded in size."""

import os

import pytest

from tests.helpers import toy_task
from tests.helpers.bucket_case import bucket_maker
from vlbert_jax import main, tasks
from vlbert_jax.storage import data
from vlbert_jax.storage.bucket import Bucket, StorageError
from vlbert_jax.storage.data import local_data

# gcsfs sends files below 5 MB at once.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")
WORDS = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n"


@pytest.fixture(scope="module", params=["s3", "gs"])
def make_bucket(request, tmp_path_factory):
    with bucket_maker(request.param, tmp_path_factory.mktemp("cache")) as make:
        yield make


@pytest.fixture
def stored(make_bucket):
    """Return a bucket with two tables, one of them in two versions, a gallery and a list of words."""
    bucket = Bucket(f"{make_bucket()}/data")
    for name in ("captions/one/0.9.0/x", "captions/one/0.10.0/x", "captions/one_val_gallery.json", "captions/other/x"):
        bucket.write(name, name.encode())
    bucket.write("words.txt", WORDS)
    return bucket


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_a_run_reads_is_copied_once(stored, caplog):
    names = ["captions/one", "words.txt", "train", ""]
    with caplog.at_level("INFO"):
        folder = local_data(stored.address, names)
    assert files_in(folder) == {"captions/one/0.10.0/x", "captions/one_val_gallery.json", "words.txt"}
    assert f"copying data of {stored.address} to {folder.parent}: 3 files, 0.0 MB" in caplog.text
    caplog.clear()
    (folder / "words.txt").write_bytes(b"kept")
    stored.write("captions/one/0.10.0/x", b"CAPTIONS/one/0.10.0/x")  # of the same size
    with caplog.at_level("INFO"):
        assert local_data(stored.address, names) == folder
    assert "1 files" in caplog.text and (folder / "words.txt").read_bytes() == b"kept"
    assert (folder / "captions/one/0.10.0/x").read_bytes() == b"CAPTIONS/one/0.10.0/x"
    with pytest.raises(FileNotFoundError, match=f"none of the tables and files of config.data is at {stored.address};"):
        local_data(stored.address, ["captions/none"])


def test_copies_are_bounded(stored, make_bucket, monkeypatch, tmp_path):
    """The copy that was not used for the longest time makes room; one that a process reads does not."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(data.MOST, str(400e-9))
    first = local_data(stored.address, ["words.txt"])
    other = Bucket(f"{make_bucket()}/data")
    other.write("large", bytes(350))
    with pytest.raises(StorageError, match=r"needs 0.0 GB more in .* may hold 4e-07 GB .*; set VLBERT_DATA_CACHE"):
        local_data(other.address, ["large"])
    assert first.exists()
    data._USED.pop(first.parent).close()
    assert (local_data(other.address, ["large"]) / "large").read_bytes() == bytes(350) and not first.exists()


def test_a_run_reads_its_data_from_an_address(stored, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(tasks.TASKS, "toy", toy_task.REGISTERED)
    flags = ["main", "--config=tests/helpers/toy_task.py", f"--workdir={tmp_path}/run", "--config.total_steps=4"]
    flags += [f"--config.data.data_dir={stored.address}"]
    flags += ["--config.data.vocab=words.txt", "--config.model.encoder.vocab_size=6"]
    assert main.main(flags) == 0
    assert (tmp_path / "run/vocabularies/vocab/vocab.txt").read_bytes() == WORDS
    texts = "".join((tmp_path / "run" / name).read_text() for name in ("log.txt", "README.md", "config.json"))
    assert stored.address in texts and os.environ["XDG_CACHE_HOME"] not in (tmp_path / "run/README.md").read_text()
    assert main.main([*flags, "--config.data.embedded=scenes"]) == 2
    assert f"error: a synthetic corpus (config.data.embedded) is not generated at {stored.address};" in (
        capsys.readouterr().err
    )
