"""The files of predictions of user-supplied data: SPLIT.jsonl and SPLIT.csv, in the order of the user's file."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlbert_jax.files import atomic_write


def file_order(records: Sequence[Mapping]) -> list[int]:
    """Return the places of records in the order of their lines, orientations mixed."""
    index = [record.get("index", place) for place, record in enumerate(records)]
    return np.argsort(index, kind="stable").tolist()


def own_row(record: Mapping, answer: dict[str, Any], place: int = 0) -> dict[str, Any]:
    """Return `id`, the answer, and the other fields of the user's line.

    Args:
        record: A record of the texts, with `example_id` and `extra`.
        answer: The fields of the answer; they replace fields of the same name.
        place: The identifier of a record without one.
    """
    row = dict(id=str(record.get("example_id", place))) | answer
    return row | {name: value for name, value in json.loads(record.get("extra") or "{}").items() if name not in row}


def write_own(directory: Path, split: str, rows: Sequence[dict], probabilities: Mapping[str, Any]) -> None:
    """Write the rows as JSON lines and as a table.

    Args:
        directory: Folder of the files.
        split: Name of the split.
        rows: Rows of `own_row`; each may have `probabilities`, by label or by place.
        probabilities: Name of what is chosen, for the heading of a column -> its key in `probabilities`.
    """
    with atomic_write(directory / f"{split}.jsonl") as path, path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    names = dict.fromkeys(name for row in rows for name in row if name != "probabilities")
    with atomic_write(directory / f"{split}.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*names, *(f"probability of {name}" for name in probabilities)])
        for row in rows:
            cells = [_cell(row.get(name, "")) for name in names]
            writer.writerow(cells + [str(row["probabilities"][key]) for key in probabilities.values()])


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return "|".join(map(str, value))
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
