"""What the campaigns share: which rows are missing, the undisturbed run, the comparison with it, the rows on disk."""

import json
import pathlib
import platform
from collections.abc import Callable

import jax
import numpy as np

from tests.helpers.toy_runs import rows_of
from vlbert_jax.training.description import machine
from vlbert_jax.weights.orbax import read_checkpoint


def differences(first: pathlib.Path, second: pathlib.Path) -> dict[str, int]:
    """Return the number of rows and of arrays of parameters in which two finished runs differ."""
    rows, expected = rows_of(first), rows_of(second)
    arrays, others = (jax.tree.leaves(read_checkpoint(workdir)) for workdir in (first, second))
    return dict(
        rows=abs(len(rows) - len(expected)) + sum(a != b for a, b in zip(rows, expected, strict=False)),
        arrays=sum(not np.array_equal(a, b) for a, b in zip(arrays, others, strict=True)),
    )


def missing_seeds(results: pathlib.Path, rows: int) -> list[int]:
    """Return the seeds below `rows` without a row in `results`; say so where there is none."""
    stored = results.read_text().splitlines() if results.exists() else []
    finished = {row["seed"] for row in map(json.loads, stored)}
    missing = [seed for seed in range(rows) if seed not in finished]
    if not missing:
        print(f"{results}: all {rows} rows are there")
    return missing


def run_rows(
    folder: pathlib.Path,
    results: pathlib.Path,
    seeds: list[int],
    finish: Callable[[pathlib.Path, str], float],
    disturbed: Callable[[pathlib.Path, int, float], dict],
    is_expected: Callable[[dict], bool],
    shown: Callable[[dict], object] = lambda row: row,
) -> int:
    """Append a row for each seed to `results`, and return the exit status: 1 if one is not as expected.

    Args:
      folder: folder of the runs.
      results: file of the rows.
      seeds: seeds of the rows.
      finish: lets the run of this name in the folder finish; returns its seconds.
      disturbed: returns the row of a seed; it gets the seconds of an undisturbed run with compiled programs.
      is_expected: returns whether a row is as it should be.
      shown: what is printed of a row.

    Raises:
      SystemExit: two runs that nothing disturbs differ.
    """
    finish(folder, "undisturbed")
    seconds, bad = finish(folder, "again"), 0  # with compiled programs
    if any(differences(folder / "again", folder / "undisturbed").values()):
        raise SystemExit("error: two runs that nothing disturbs differ on this machine; nothing can be compared")
    for seed in seeds:
        row = disturbed(folder, seed, seconds) | dict(python=platform.python_version(), machine=machine())
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        bad += not is_expected(row)
        print(f"seed {seed}: {shown(row)}", flush=True)
    return 1 if bad else 0
