"""Test streams of batches: order, mixing, shares of processes, and fingerprints of their data."""

import itertools
import threading

import grain
import ml_collections
import numpy as np
import pytest

from tests.helpers import HANG_SECONDS
from vlbert_jax.data.records import Records, corpus_fingerprint, extractor_of, open_split
from vlbert_jax.data.streams import (
    AHEAD_BYTES,
    batch_bytes,
    batches_ahead,
    in_order,
    iterate,
    mixed,
    paired,
    per_host,
    shuffled,
    stream_seed,
)


def marked(name: str):
    """Return an example that records its stream, its record and its random value."""

    def example(number: int, rng: np.random.Generator):
        return {name: np.array([number, rng.integers(1 << 30)])}

    return example


def stream(process_index: int, process_count: int, start: int = 0, global_batch: int = 8):
    """Return a stream of two orientations, mixed and paired with text, as in pre-training."""
    hosts = dict(
        batch_size=per_host(global_batch, process_count),
        process_index=process_index,
        process_count=process_count,
    )
    wide = shuffled(range(0, 30), stream_seed(3, "wide"), marked("caption"), **hosts)
    tall = shuffled(range(30, 40), stream_seed(3, "tall"), marked("caption"), **hosts)
    text = shuffled(range(17), stream_seed(3, "text"), marked("text"), **hosts)
    batches = paired(mixed([wide, tall], [30, 10]), text, lambda a, b: a | b)
    return iterate(batches[start:], num_threads=2, prefetch=3)


def global_batches(process_count: int, start: int, count: int):
    hosts = [stream(p, process_count, start) for p in range(process_count)]
    for _ in range(count):
        parts = [next(host) for host in hosts]
        assert {len(part["caption"]) for part in parts} == {8 // process_count}
        yield {name: np.concatenate([p[name] for p in parts]).tolist() for name in parts[0]}


def test_global_batches_do_not_depend_on_processes_or_the_first_step():
    expected = list(global_batches(1, 0, 20))
    for process_count, start in itertools.product((1, 2, 4), (0, 1, 7, 13)):
        got = list(global_batches(process_count, start, 20 - start))
        assert got == expected[start:], (process_count, start)


def test_number_of_threads():
    """All threads run at once, also if they outnumber the prefetched elements."""
    together = threading.Barrier(6)

    def met(number: int) -> dict:
        together.wait(timeout=HANG_SECONDS)
        return dict(number=np.int64(number))

    elements = iterate(grain.MapDataset.range(6).map(met), num_threads=6, prefetch=2)
    assert [int(element["number"]) for element in elements] == list(range(6))


def test_every_record_once_per_epoch_in_another_order_each_epoch():
    hosts = dict(batch_size=4, process_index=0, process_count=1)
    batches = iterate(shuffled(range(20), 5, marked("x"), **hosts), 0, 0)
    epochs = [np.concatenate([next(batches)["x"] for _ in range(5)]) for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch[:, 0]) == list(range(20))
    assert len({tuple(epoch[:, 0]) for epoch in epochs}) == 3
    random_values = np.concatenate(epochs)[:, 1]
    assert len(set(random_values.tolist())) == len(random_values)  # each visit of a record has new random values


def test_streams_have_different_orders():
    seeds = [stream_seed(0, name) for name in ("a", "b")] + [stream_seed(1, "a")]
    assert len(set(seeds)) == 3
    assert stream_seed(0, "a") == seeds[0]


def test_a_batch_has_one_orientation_in_proportion():
    wide = [batch["caption"][:, 0] < 30 for batch in itertools.islice(stream(0, 1), 80)]
    assert all(mask.all() or not mask.any() for mask in wide)
    assert sum(mask.all() for mask in wide) == 60
    assert not all(mask.all() for mask in wide[:8])  # spread over the stream, not consecutive


def test_pairs_are_strictly_one_to_one():
    hosts = dict(batch_size=8, process_index=0, process_count=1)
    text = iterate(shuffled(range(17), stream_seed(3, "text"), marked("text"), **hosts), 0, 0)
    for both in itertools.islice(stream(0, 1), 7):
        np.testing.assert_array_equal(both["text"], next(text)["text"])


@pytest.mark.parametrize("process_count", [1, 2, 4])
@pytest.mark.parametrize("size", [16, 17, 1])
def test_in_order_gives_each_record_once_and_equal_numbers_of_batches(process_count, size):
    lengths, seen = set(), []
    for p in range(process_count):
        dataset = in_order(
            range(100, 100 + size),
            lambda number: {"x": np.array(number)},
            lambda like: {"x": np.full_like(like["x"], -1)},
            batch_size=8 // process_count,
            process_index=p,
            process_count=process_count,
        )
        batches = [batch["x"] for batch in iterate(dataset, 2, 2)]
        assert {len(x) for x in batches} == {8 // process_count}
        lengths.add(len(batches))
        seen += np.concatenate(batches).tolist()
    assert lengths == {-(-size // 8)}
    assert sorted(x for x in seen if x >= 0) == list(range(100, 100 + size))


def test_processes_share_a_batch_evenly():
    assert per_host(12, 4) == 3
    with pytest.raises(ValueError, match="10 examples per batch cannot be shared by 4 hosts"):
        per_host(10, 4)


def test_an_empty_stream_is_an_error():
    with pytest.raises(ValueError, match="no record"):
        mixed([], [])


def test_records_are_numbered_consecutively():
    records = Records([{"x": 0}, {"x": 1}], [], [{"x": 2}])
    assert [records[i]["x"] for i in range(len(records))] == [0, 1, 2]
    assert len(Records([], [])) == 0


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("region_captions/scenes", "data_prep.build scenes --data_dir="),
        ("text_corpus/scenes", "data_prep.build scenes --data_dir="),
        ("vcr_images/scenes", "data_prep.build scene_tasks --data_dir="),
        ("vqa_images/custom", "data_prep.build vqa --source=FOLDER --corpus=custom --data_dir="),
        (
            "region_captions/custom",
            "data_prep.build conceptual_captions --source=FOLDER --corpus=custom --data_dir=",
        ),
        (
            "text_corpus/books_wikipedia",
            "data_prep.build text --source=FILES --corpus=books_wikipedia --data_dir=",
        ),
    ],
)
def test_a_missing_corpus_is_reported_with_its_command(tmp_path, name, command):
    (tmp_path / name / "incomplete.1.0.0").mkdir(parents=True)  # a killed build leaves this folder
    (tmp_path / name / "incomplete.1.0.0" / "dataset_info.json").write_text("{}")
    with pytest.raises(FileNotFoundError) as error:
        open_split(tmp_path, name, "train")
    assert f"python -m {command}{tmp_path}" in str(error.value)


def test_fingerprints_of_different_data_differ(tmp_path):
    """A fingerprint covers names, sizes and contents of small files of the newest build.

    It ignores the source of the data and incomplete builds.
    """
    table = tmp_path / "table"
    for version in ("1.0.0", "1.1.0", "incomplete.2.0.0"):
        (table / version).mkdir(parents=True)
        for name in ("info.json", "train.array_record"):
            (table / version / name).write_text(version + name)
    fingerprints = [corpus_fingerprint(table)]
    assert fingerprints[0].startswith("2 files, ")
    (table / "1.0.0" / "info.json").write_text("of an older build")
    (table / "1.1.0" / "manifest.json").write_text("source")
    assert corpus_fingerprint(table) == fingerprints[0]
    (table / "1.1.0" / "info.json").write_text("1.1.0info.JSON")  # the same length as before
    fingerprints.append(corpus_fingerprint(table))
    (table / "1.1.0" / "train.array_record").rename(table / "1.1.0" / "val.array_record")
    fingerprints.append(corpus_fingerprint(table))
    fingerprints.append(corpus_fingerprint(table / "1.1.0" / "info.json"))
    assert len(set(fingerprints)) == 4
    assert corpus_fingerprint(tmp_path / "nothing") == ""


@pytest.mark.parametrize("place", [0, 1_000_000, 1_999_999])
def test_a_fingerprint_covers_the_content_of_large_files(place, tmp_path):
    """Files of equal size, such as weights of one architecture, have different fingerprints."""
    path = tmp_path / "bert.safetensors"
    path.write_bytes(bytes(2_000_000))
    before = corpus_fingerprint(path)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"1")
    assert corpus_fingerprint(path) != before


def test_batches_ahead_take_bounded_memory():
    assert batches_ahead(16, 4, 10) == 16 and batches_ahead(2, 4, 10) == 4 and batches_ahead(0, 4, 10) == 0
    assert batches_ahead(16, 4, AHEAD_BYTES // 3) == 3  # three batches fill the limit
    assert batches_ahead(16, 4, 2 * AHEAD_BYTES) == 1  # the minimum is one batch
    shapes = dict(pixels=((1, 20, 10, 3), np.uint8), boxes=((5, 4), np.float32))
    assert batch_bytes(ml_collections.ConfigDict(dict(batch_size=8)), shapes, 2) == 4 * (600 + 80)


def test_versions_are_numbers(tmp_path):
    """Extractor and fingerprint are those of 1.10.0, which is newer than 1.9.0."""
    for version in ("1.9.0", "1.10.0"):
        (tmp_path / "a/b" / version).mkdir(parents=True)
        (tmp_path / "a/b" / version / "manifest.json").write_text(f'{{"extractor": "of {version}"}}')
        (tmp_path / "a/b" / version / "records").write_text(version)
    assert extractor_of(tmp_path, "a/b") == "of 1.10.0"
    newest = corpus_fingerprint(tmp_path / "a/b")
    (tmp_path / "a/b/1.9.0/records").write_text("another")
    assert corpus_fingerprint(tmp_path / "a/b") == newest
    (tmp_path / "a/b/1.10.0/records").write_text("another")
    assert corpus_fingerprint(tmp_path / "a/b") != newest
