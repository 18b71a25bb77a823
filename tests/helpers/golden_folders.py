"""Find folders of recordings: tests/golden, and $VLBERT_GOLDEN if that is set."""

import os
import pathlib

import pytest

from tests.helpers import GOLDEN

WAYS = (dict(scan_layers=True, remat="full"), dict(scan_layers=False, remat="none"))


def golden_folders(kind: str) -> list[pathlib.Path]:
    """Return the existing folders of a kind: model, data, detector or tasks."""
    roots = [GOLDEN]
    if os.environ.get("VLBERT_GOLDEN"):
        roots.append(pathlib.Path(os.environ["VLBERT_GOLDEN"]))
    return [root / kind for root in roots if (root / kind).is_dir()]


def task_folders(name: str) -> list[pathlib.Path]:
    """Return the folders of recordings of a task, such as gqa_a of gqa, of all seeds."""
    return sorted(folder for root in golden_folders("tasks") for folder in root.glob(f"{name}_*") if folder.is_dir())


def by_turns(paths: list[pathlib.Path]) -> list:
    """Return parameters (path, options of the encoder): the layers are scanned and unrolled by turns.

    With $VLBERT_GOLDEN every recording has both. That both give the same values and gradients is tested without
    recordings (tests/model/encoder_test.py), with the other combinations of the options.
    """
    ways = {i: WAYS if os.environ.get("VLBERT_GOLDEN") else WAYS[i % 2 :][:1] for i in range(len(paths))}
    return [
        pytest.param(path, way, id=f"{path.stem}-{'scanned' if way['scan_layers'] else 'unrolled'}")
        for i, path in enumerate(paths)
        for way in ways[i]
    ]
