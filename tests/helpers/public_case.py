"""Build public tasks from the recorded files, and read their tables."""

import json

import pytest

from data_prep import build
from tests.helpers.golden_folders import task_folders
from tests.helpers.vqa_case import read_all


def built(tmp_path, command, folder, *options):
    """Build a task and return its table of images and the records of each split in the order of the file."""
    arguments = [command, f"--source={folder}", f"--data_dir={tmp_path}", "--corpus=x", *options]
    assert build.main(arguments) == 0
    images, texts = (next((tmp_path / name / "x").glob("*.*.*")) for name in (f"{command}_images", command))
    splits: dict[str, list] = {}
    for name in json.loads((texts / "manifest.json").read_text())["records"]:
        splits.setdefault(name.rpartition("_")[0], []).extend(read_all(texts, name))
    records = {split: sorted(found, key=lambda record: record["index"]) for split, found in splits.items()}
    for found in records.values():
        assert [record["index"] for record in found] == list(range(len(found)))
    return read_all(images, "images"), records


def each(task):
    """Return the decorator that runs a test with each folder of recordings of a task."""
    return pytest.mark.parametrize("folder", task_folders(task), ids=lambda folder: folder.name)
