"""Test that a damaged JSON file of ours or of a download ends in one line with the file and the remedy."""

import json
import re

import ml_collections
import numpy as np
import pytest
from safetensors.numpy import save_file

from data_prep import build, region_store
from data_prep.manifest import SourceError
from data_prep.text_corpus import TextCorpus
from data_prep.vqa import VQAQuestions
from vlbert_jax.data.records import extractor_of
from vlbert_jax.tasks import get_task
from vlbert_jax.training.description import facts_of
from vlbert_jax.training.metrics import read_rows
from vlbert_jax.weights import containers, official_config, read, two_stream_read
from vlbert_jax.weights.model_card import write_run_card

DAMAGE = {"cut": '{"options": {"a', "empty": "", "a list": "[]", "not text": b"\xff\xfe\x00"}


def _journal(folder):
    store = region_store.RegionStore(folder, {}, ("a", "b"), "json", 1)
    (part,) = store.shard(0)
    part.add("a", None, "broken")
    return part


def _table(folder):
    (folder / "a.doc").write_text("a line\n")
    builder = TextCorpus("t", folder, [folder / "a.doc"])
    return builder


def _companion(folder):
    config = ml_collections.ConfigDict(dict(companion=str(folder), subtask="q2a"))
    get_task("choice").companions(config)


def _draw(folder):
    build.draw_once(folder / "scenes", dict(seed=1), lambda *_: None, ())


def _questions(folder):
    questions = VQAQuestions.__new__(VQAQuestions)
    questions.sizes = folder / "sizes.json"
    next(questions.records())


# File -> (what reads it in its folder, remedy).
READERS = {
    "extraction.json": (region_store.store_extractor, "extract again"),
    "parts/00000.json": (lambda folder: list(region_store.broken_images(folder)), "remove this file and extract again"),
    "text_corpus/t/1.0.0/manifest.json": (lambda folder: build.is_built(_table(folder)), "it is built again"),
    "scenes/scenes.json": (_draw, "it is generated again"),
    "sizes.json": (_questions, "build again"),
    "captions/c/1.0.0/manifest.json": (lambda folder: extractor_of(folder, "captions/c"), "build it again"),
    "versions.json": (lambda folder: facts_of(folder, []), "the next start of the run writes it again"),
    "./versions.json": (lambda folder: write_run_card(folder, {}, 0, {}), "the next start of the run writes it again"),
    "config.json": (_companion, "config.companion"),
    "./config.json": (lambda folder: official_config.read_official_config(folder / "config.json"), "download it again"),
    "././config.json": (lambda folder: two_stream_read._settings(folder, None), "download it again"),
    "m/config.json": (lambda folder: read._read_config(folder / "m"), "train or convert again"),
    "model.safetensors.index.json": (lambda folder: containers._weight_files(folder), "download it again"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_ends_in_one_line(name, damage, tmp_path):
    read_it, remedy = READERS[name]
    path, content = tmp_path / name, DAMAGE[damage]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if name == "sizes.json" and damage == "a list":
        path.write_text("[1]")
    with pytest.raises((SourceError, ValueError), match=re.escape(remedy)) as error:
        read_it(tmp_path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_line_is_named(tmp_path):
    part = _journal(tmp_path)
    whole = part.journal.read_bytes()
    part.journal.write_bytes(whole + b'{"name": \n')
    with pytest.raises(SourceError, match="00000-of-00001-000000.journal, line 2, is damaged: .*; remove this file"):
        list(region_store.RegionStore(tmp_path, {}, ("a", "b"), "json", 1).shard(0))
    part.journal.write_bytes(whole + b'{"name": ')  # the process was killed
    (part,) = region_store.RegionStore(tmp_path, {}, ("a", "b"), "json", 1).shard(0)
    assert part.waiting == [1]

    rows = tmp_path / "metrics.jsonl"
    rows.write_text('{"step": 1, "split": "train"}\n{"step": 2,\n{"step": 3')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2, is damaged: .*; remove this line"):
        read_rows(rows)
    rows.write_text('{"step": 1, "split": "train"}\n{"step": 3')
    assert read_rows(rows) == [dict(step=1, split="train")]


def test_damaged_metadata_of_weights_are_named(tmp_path):
    path = tmp_path / "model.safetensors"
    for text in ("{", "[]", json.dumps(dict(task="answer"))):
        save_file({"a": np.zeros(1)}, path, {containers.CONFIG_METADATA: text})
        with pytest.raises(ValueError, match="model.safetensors: its metadata .* is damaged: .*; write or download"):
            containers.stored_in_file(path)


def test_a_table_without_a_manifest_is_named(tmp_path):
    builder = _table(tmp_path)
    (tmp_path / "text_corpus/t/1.0.0").mkdir(parents=True)
    with pytest.raises(SourceError, match="manifest.json cannot be read .*; remove the folder .*/text_corpus/t/1.0.0"):
        build.is_built(builder)
