"""Rows of results: one JSON object per finished run, in experiments/results/STUDY.jsonl and in the run's workdir."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.declaration import nearest
from experiments.study import Run, key_of
from vlbert_jax.files import atomic_write, json_object, read_json_object

# A row is `Run.declaration` and these: the scores of the last evaluation, the update, seconds of the last start,
# whether that start continued a run, load of the machine, its name, the commit (`jobs.revision`; null where the code is
# not a checkout), and the command.
TYPES = dict(
    recipe=str, overrides=dict, seed=int, after=dict | None, scores=dict, step=int, seconds=int | float, continued=bool,
    load=int | float, machine=str, commit=str | None, command=str,
)  # fmt: skip
OF_RUN = ("recipe", "overrides", "seed", "after", "mode")  # a row of a training has no `mode`
ROW = "row.json"  # file in the workdir of a finished run
REMEDY = "remove this line, and the next start writes it again from the workdir of the run or trains it again"

Rows = dict[str, dict[str, Any]]  # key of a run -> its row


def read_rows(path: Path) -> Rows:
    """Return the rows of a file by the keys of their runs; none where there is no file.

    A last line without an end is left out unless it is a complete row: the process that wrote it was killed.

    Raises:
        ValueError: A line is damaged, or two lines have the same run; the message names file, line and remedy.
    """
    rows: Rows = {}
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else (), 1):
        if not line.endswith(b"\n") and not _is_row(line):
            continue
        place = f"{path}, line {number},"
        row = _row(line, place)
        key = _key_of_row(row)
        if key in rows:
            raise ValueError(f"{place} has the same run as an earlier line; remove one of both")
        rows[key] = row
    return rows


def _row(line: bytes, place: str) -> dict[str, Any]:
    row = json_object(line, place, REMEDY, *TYPES)
    _check(row, place)
    return row


def _is_row(line: bytes) -> bool:
    try:
        return bool(_row(line, ""))
    except ValueError:
        return False


def _key_of_row(row: Mapping[str, Any]) -> str:
    return key_of({name: row[name] for name in OF_RUN if name in row})


def _check(row: Mapping[str, Any], place: str) -> None:
    for name, kind in TYPES.items():
        if not isinstance(row[name], kind) or (isinstance(row[name], bool) and kind is not bool):
            raise ValueError(f"{place} is damaged: {name} is {str(row[name])[:60]!r}; {REMEDY}")
    for name, value in row["scores"].items():
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise ValueError(f"{place} is damaged: the score {name} is {str(value)[:60]!r}; {REMEDY}")


def add_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a file of results.

    An incomplete last line is removed first. Its run has `ROW` in its workdir, from which the row is written again.
    A complete row without an end, such as of an editor, stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        file.seek(0)
        content = file.read()
        last = content[content.rfind(b"\n") + 1 :]
        if last and _is_row(last):
            file.write(b"\n")
        elif last:
            file.truncate(len(content) - len(last))
        file.write(f"{json.dumps(row, ensure_ascii=False)}\n".encode())


def store_in_workdir(workdir: Path, row: Mapping[str, Any]) -> None:
    """Write the row of a finished run to its workdir, atomically."""
    with atomic_write(workdir / ROW) as file:
        file.write_text(f"{json.dumps(row, ensure_ascii=False, indent=1)}\n", encoding="utf-8")


def row_in_workdir(workdir: Path, run: Run) -> dict[str, Any] | None:
    """Return the row of a finished run from its workdir; None where the run is not finished.

    Raises:
        ValueError: The file is damaged, or is the row of another run.
    """
    path = workdir / ROW
    if not path.exists():
        return None
    remedy = f"remove {workdir}, and the run is trained again"
    row = read_json_object(path, remedy, *TYPES)
    _check(row, str(path))
    if _key_of_row(row) != run.key:
        raise ValueError(f"{path} is the row of another run; {remedy}")
    return row


def score_of(row: Mapping[str, Any], metric: str) -> float | None:
    """Return a score of a row; None where the run has no such score or it was not finite."""
    return row["scores"].get(metric)


def check_metric(rows: Rows, runs: list[Run], column: str, metric: str) -> None:
    """Raise ValueError if rows of these runs exist and none has the metric."""
    found = [rows[run.key]["scores"] for run in runs if run.key in rows]
    if found and not any(metric in scores for scores in found):
        names = sorted({name for scores in found for name in scores})
        raise ValueError(f"the score {metric!r} of {column!r} is in no row{nearest(metric, names)}; "
                         f"the scores are: {', '.join(names)}")  # fmt: skip
