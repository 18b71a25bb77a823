"""Builds and extractions at addresses: shared by machines, continued after a kill, and equal to those in folders."""

import contextlib
import json
import pathlib
from typing import Any, cast

import numpy as np
import PIL.Image
import pytest

import vlbert_jax
from data_prep import build, parts
from data_prep.extract_regions import extract
from data_prep.manifest import SourceError
from data_prep.parts import ONE, Workers
from data_prep.region_store import open_records
from data_prep.sources import open_source
from data_prep.stored_boxes import StoredBoxes
from data_prep.tables import ShareWritten, draw_once, run_builder
from tests.helpers.bucket_case import SECRET
from tests.helpers.processes_case import NUMBER, image_table
from vlbert_jax import __version__
from vlbert_jax.detector.regions import Regions
from vlbert_jax.storage import bucket as requests
from vlbert_jax.storage.bucket import Bucket, StorageError
from vlbert_jax.storage.data import local_data
from vlbert_jax.storage.mirror import StoredParts, mirrored

TABLE = "photos_images/c/1.0.0"
UNFINISHED = "photos_images/c/incomplete.1.0.0"

# gcsfs sends files below 5 MB at once.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that continues on a machine of this name, which has a cache of its own."""
    return lambda name: monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache of {name}"))


@pytest.fixture
def written(monkeypatch):
    """Return the list of the parts that this process writes."""
    numbers, write = [], parts._Maker.write
    monkeypatch.setattr(parts._Maker, "write", lambda maker, n, *rest: (numbers.append(n), write(maker, n, *rest)))
    return numbers


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(NUMBER):
        PIL.Image.fromarray(np.full((20 + i, 30, 3), 8 * i, np.uint8)).save(folder / f"{i}.jpg")
    return folder


@pytest.fixture(scope="module")
def in_a_folder(photos, tmp_path_factory):
    """Return the files of the table that is built in a folder."""
    return contents(run_builder(image_table(photos, tmp_path_factory.mktemp("alone"))))


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored(address: str, folder: str) -> dict[str, bytes]:
    bucket = Bucket(f"{address}/{folder}")
    return {name: bucket.read(name) for name in bucket.sizes()}


def built(photos, address, workers: Workers = ONE, **options):
    """Build the table at an address; return the directory as this machine has it."""
    with mirrored(address, f"{workers.shard}/{workers.shards}") as folder:
        table = image_table(photos, folder)
        table.manifest.options |= options
        with contextlib.suppress(ShareWritten):
            return run_builder(table, workers)


def test_machines_share_a_build(place, photos, in_a_folder, machine, written, capsys):
    """Each machine stores its parts; one of them completes the table, which equals that of a folder."""
    address = f"{place[0]()}/data"
    for share in (2, 1):
        machine(share)
        built(photos, address, Workers(1, share, 3))
    names = Bucket(f"{address}/{UNFINISHED}").sizes().keys()
    assert names == {"parts/build.json"} | {
        "00001.images", "parts/00001.json", "00002.images", "parts/00002.json"
    }  # fmt: skip
    with pytest.raises(SourceError, match="has parts of a build with other options: .* start all shares with the same"):
        built(photos, address, Workers(1, 0, 3), images=False)
    machine("another")
    with mirrored(address) as folder:
        directory = run_builder(image_table(photos, folder))
        assert not list(directory.glob("*.array_record*"))  # they are not copied through this machine
        assert StoredBoxes(directory).usable(4, np.array([[0, 0, 10, 8.0]])) == [True]
    assert written == [2, 1, 0, 3] and not folder.parent.exists()
    assert stored(address, TABLE) == in_a_folder and not stored(address, UNFINISHED)
    assert f"{address}/{TABLE}: images {NUMBER}" in capsys.readouterr().out
    machine("a third")
    built(photos, address)
    assert f"{address}/{TABLE}: already built from {photos}" in capsys.readouterr().out
    assert (local_data(address, ["photos_images/c"]) / TABLE / "sizes.json").read_bytes() == in_a_folder["sizes.json"]
    with pytest.raises(SourceError, match="was built with .*, not .*: remove it"):
        built(photos, address, images=False)


@pytest.mark.parametrize("fault", ["refused", "stalled"])
def test_a_bucket_that_fails_ends_a_build_in_one_line(
    place, photos, in_a_folder, machine, written, fault, monkeypatch, caplog
):
    """Finished parts are kept on the machine, and the next build stores them, though some requests still fail."""
    make, proxy = place
    address = f"{make()}/data"
    machine("one")
    monkeypatch.setattr(requests, "PAUSE", 0.01)
    proxy.awake.clear()
    content = parts.read_part

    def then_fails(folder, number):  # between the end of a part and its storage
        if number == 2:
            proxy.fault = fault
            monkeypatch.setattr(requests, "PATIENCE", 0.3)
            monkeypatch.setattr(requests, "ATTEMPTS", 2)
        return content(folder, number)

    try:
        with monkeypatch.context() as patch, caplog.at_level("DEBUG"), pytest.raises(StorageError) as error:
            patch.setattr(parts, "read_part", then_fails)
            built(photos, address)
    finally:
        proxy.fault = ""
        proxy.awake.set()
    reason = "no answer within 0 s" if fault == "stalled" else "access is denied; check the rights of this account"
    line = str(error.value)
    assert f"cannot write {address}/{UNFINISHED}/00002.images" in line and reason in line and "\n" not in line
    assert "What is finished is kept in" in line and SECRET not in line + caplog.text
    assert "parts/00001.json" in stored(address, UNFINISHED) and "parts/00002.json" not in stored(address, UNFINISHED)

    monkeypatch.setattr(requests, "PATIENCE", 5.0)
    monkeypatch.setattr(requests, "ATTEMPTS", 6)
    proxy.fault, proxy.share = "broken", 0.05
    built(photos, address)
    proxy.fault = ""
    assert written == [0, 1, 2, 3] and stored(address, TABLE) == in_a_folder and not stored(address, UNFINISHED)


@pytest.mark.parametrize("last", ["sizes.json", "manifest.json"])
def test_a_build_that_is_killed_while_it_is_completed(place, photos, in_a_folder, machine, written, last, monkeypatch):
    """A table counts when its manifest is stored; another machine completes it, or deletes what remains."""
    address, upload = f"{place[0]()}/data", Bucket.upload

    def ends(bucket, folder, names):
        names = sorted(names)
        upload(bucket, folder, names)
        if last in names:
            raise KeyboardInterrupt

    machine("one")
    monkeypatch.setattr(Bucket, "upload", ends)
    with pytest.raises(KeyboardInterrupt):
        built(photos, address)
    monkeypatch.setattr(Bucket, "upload", upload)
    assert stored(address, UNFINISHED)
    machine("another")
    built(photos, address)
    assert written == [0, 1, 2, 3] and stored(address, TABLE) == in_a_folder and not stored(address, UNFINISHED)


def test_of_two_builds_that_start_at_once_one_is_refused(place, photos, machine, monkeypatch):
    address, claim = f"{place[0]()}/data", StoredParts.store_claim
    if address.startswith("gs"):
        pytest.skip("the emulator of GCS does not refuse to replace an object")

    def second(stored_parts):
        content = json.loads((stored_parts.folder / "parts/build.json").read_bytes()) | dict(version="another")
        stored_parts.bucket.write("parts/build.json", json.dumps(content).encode())
        claim(stored_parts)

    machine("one")
    monkeypatch.setattr(StoredParts, "store_claim", second)
    with pytest.raises(SourceError, match=f"has parts of a build with other version: another, not {__version__}"):
        built(photos, address)


def test_parts_of_another_build_are_deleted(place, photos, in_a_folder, machine, written):
    address = f"{place[0]()}/data"
    machine("one")
    built(photos, address, Workers(1, 0, 2), images=False)
    built(photos, address)
    assert written == [0, 2, 0, 1, 2, 3] and stored(address, TABLE) == in_a_folder


def test_no_object_becomes_a_file_elsewhere(place, tmp_path):
    with pytest.raises(StorageError, match=r"/x/\.\./\.\./y would be a file outside of its folder"):
        Bucket(place[0]()).download({"x/../../y": 1}, tmp_path)


def test_the_command_reads_and_writes_addresses(place, photos, machine, tmp_path, capsys):
    """Tables and lists equal those of folders; what a command reads is copied, and only what it still needs."""
    lines = [json.dumps(dict(image=f"img/{i}.jpg", label="dark" if i < 9 else "light")) for i in range(NUMBER)]
    texts = {"train.jsonl": "\n".join(lines[:20]), "val.jsonl": "\n".join(lines[20:])}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "img").symlink_to(photos)
    address = place[0]()
    source = Bucket(f"{address}/own")
    source.upload(tmp_path, [*texts, *(f"img/{i}.jpg" for i in range(NUMBER))])
    machine("one")
    flags = ["own", "--corpus=c", f"--source={tmp_path}", f"--data_dir={tmp_path}/data"]
    assert build.main(flags) == 0
    flags = ["own", "--corpus=c", f"--source={source.address}", f"--data_dir={address}/data"]
    assert build.main(flags) == 0
    output = "".join(capsys.readouterr())
    assert f"--config.data.data_dir={address}/data" in output and "cache of one" not in output
    found, expected = stored(address, "data"), contents(tmp_path / "data")
    del expected[".build_lock"]
    assert found.keys() == expected.keys() and "own/c_labels.txt" in found
    manifests = [name for name in found if name.endswith("manifest.json")]
    for name in manifests:
        assert source.address.encode() in found[name] and b"cache of one" not in found.pop(name)
    assert found.items() <= expected.items()
    source.write("train.jsonl", texts["train.jsonl"].replace("dark", "black").encode())
    machine("another")
    assert build.main(flags) == 2
    assert f"error: {address}/data/own/c/1.0.0 was built" in capsys.readouterr().err
    for flag, message in (
        ("--detector=weights", "--detector writes regions next to the images, which are at"),
        ("--regions=http://x/regions", "http:// is not supported; give a folder, gs://BUCKET/FOLDER"),
        (f"--regions={address}/nothing", f"there is nothing at {address}/nothing; check the address"),
    ):
        assert build.main([*flags, flag]) == 2
        assert f"error: {message}" in capsys.readouterr().err


def test_a_synthetic_corpus_is_generated_once(place, machine):
    address, calls = place[0](), []

    def write(folder, settings):
        calls.append(settings)
        (folder / "a").mkdir()
        (folder / "a/words.txt").write_text("words")
        (folder / "s.json").write_text(json.dumps(settings))

    for name in ("one", "another"):
        machine(name)
        with mirrored(address) as folder:
            draw_once(folder / "s", dict(seed=0), write, ())
            assert (folder / "s/a/words.txt").read_text() == "words"
    assert len(calls) == 1
    with mirrored(address) as folder, pytest.raises(SourceError, match="was generated with .*'seed': 0.*, not"):
        draw_once(folder / "s", dict(seed=1), write, ())


class Finder:
    """A detector of regions that depend on the pixels; it stops before a number of images.

    `meanwhile` is called before the first image.
    """

    fingerprint, batch_size = dict(detector="of the tests"), 1

    def __init__(self, most: int = 10**6, meanwhile=lambda: None):
        self.most, self.meanwhile, self.seen = most, meanwhile, 0

    def detect(self, images):
        for image in images:
            if not self.seen:
                self.meanwhile()
            if self.seen == self.most:
                raise KeyboardInterrupt
            self.seen += 1
            values = np.full((2, 3), image.mean(), np.float32)
            boxes = np.array([[0, 0, 5, 5], [5, 5, 9, 9]], np.float32)
            yield Regions(
                boxes=boxes, source="", labels=("", ""), features=values, class_probabilities=values,
                attribute_probabilities=values,
            )  # fmt: skip


def extracted(photos, address, share, finder, form="array_record"):
    with mirrored(f"{address}/regions", f"{share[0]}/{share[1]}") as out:
        extract(open_source(photos), cast(Any, finder), out, shard=share, form=form)


@pytest.mark.parametrize("form", ["array_record", "json"])
def test_machines_share_an_extraction(place, photos, machine, tmp_path, monkeypatch, form):
    """A killed share continues at its image on its machine; the last share concludes; all equals a folder."""
    monkeypatch.setattr("data_prep.region_store.PART", 4)
    for number in (0, 1):
        extract(open_source(photos), cast(Any, Finder()), tmp_path / "regions", shard=(number, 2), form=form)
    address = place[0]()
    machine("one")
    with pytest.raises(KeyboardInterrupt):
        extracted(photos, address, (0, 2), Finder(6), form)
    machine("another")
    with pytest.raises(SourceError, match="format was .*, is now tsv; use the same detector"):
        extracted(photos, address, (1, 2), Finder(), "tsv")
    finder = Finder()

    def meanwhile():
        machine("one")
        extracted(photos, address, (0, 2), finder, form)

    extracted(photos, address, (1, 2), Finder(meanwhile=meanwhile), form)
    assert finder.seen == NUMBER // 2 - 6
    expected = {name: content for name, content in contents(tmp_path / "regions").items() if not name.endswith("lock")}
    assert stored(address, "regions") == expected
    if form == "array_record":
        copy = local_data(address, ["regions"]) / "regions"
        assert json.loads(open_records(copy).read("7"))["num_boxes"] == 2
    finder = Finder()
    extracted(photos, address, (0, 2), finder, form)
    assert not finder.seen


@pytest.mark.slow
def test_fine_tuning_at_addresses(place, photos, machine, tmp_path):
    """Images, tables and the run are in a bucket; the call continues on another machine."""
    lines = [json.dumps(dict(image=f"{i}.jpg", label="dark" if i % 15 < 8 else "light")) for i in range(NUMBER)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:15]))
    (tmp_path / "val.jsonl").write_text("\n".join(lines[15:]))
    address = place[0]()
    Bucket(f"{address}/own").upload(tmp_path, ["train.jsonl", "val.jsonl"])
    Bucket(f"{address}/own").upload(photos, [f"{i}.jpg" for i in range(NUMBER)])
    run = dict(total_steps=4, eval_every_steps=4, warmup_steps=2, batch_size=8, report=False)
    machine("one")
    first = vlbert_jax.fine_tune(f"{address}/own", "demo-pretrain", f"{address}/run", **run)
    assert {"run/metrics.jsonl", "run/data/own/own_labels.txt"} <= Bucket(address).sizes().keys()
    machine("another")
    again = vlbert_jax.fine_tune(f"{address}/own", "demo-pretrain", f"{address}/run", **run)
    assert again.scores == first.scores and "classify_accuracy" in first.scores
    assert {answer.text for answer in again.classify(photos / "3.jpg")} <= {"dark", "light"}
