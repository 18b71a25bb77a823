"""Find folders of recordings: tests/golden, and $VLBERT_GOLDEN if that is set."""

import os
import pathlib

from tests.helpers import GOLDEN


def golden_folders(kind: str) -> list[pathlib.Path]:
    """Return the existing folders of a kind: model, data, detector or tasks."""
    roots = [GOLDEN]
    if os.environ.get("VLBERT_GOLDEN"):
        roots.append(pathlib.Path(os.environ["VLBERT_GOLDEN"]))
    return [root / kind for root in roots if (root / kind).is_dir()]


def task_folders(name: str) -> list[pathlib.Path]:
    """Return the folders of recordings of a task, such as gqa_a of gqa, of all seeds."""
    return sorted(folder for root in golden_folders("tasks") for folder in root.glob(f"{name}_*") if folder.is_dir())
