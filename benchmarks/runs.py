"""Runs of the documented command, and the file of their results: what the tables of trainings share."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from vlbert_jax.training.metrics import read_rows

ROOT = Path(__file__).resolve().parent.parent


def train(workdir: Path, config: str, *flags: str) -> tuple[dict, dict]:
    """Train a recipe in a process of its own, or continue it; the output is in WORKDIR/log.

    Returns:
      The last row of the validation split, and facts about the run: step, seconds, load, machine, commit.
    """
    command = [sys.executable, "-m", "vlbert_jax.main", f"--config={config}", f"--workdir={workdir}", *flags]
    workdir.mkdir(parents=True, exist_ok=True)
    print(f"{workdir} ...", file=sys.stderr, flush=True)
    began = time.monotonic()
    with open(workdir / "log", "w") as log:
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=True)
    seconds, load = round(time.monotonic() - began), round(os.getloadavg()[1], 1)
    last = [row for row in read_rows(workdir / "metrics.jsonl") if row["split"] == "val"][-1]
    about = json.loads((workdir / "versions.json").read_text())
    facts = dict(step=last["step"], seconds=seconds, load=load, machine=about["machine"], commit=about["revision"])
    return last, facts


def stored_rows(results: Path, *names: str) -> dict[tuple, dict]:
    """Return the rows of a file of results by the values of the fields `names`; none where there is no file."""
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    return {tuple(row[name] for name in names): row for row in rows}


def store(results: Path, row: dict) -> None:
    """Append a row to a file of results."""
    with results.open("a") as file:
        file.write(f"{json.dumps(row)}\n")


def shown(scores: list[float]) -> str:
    """Return the mean and the standard deviation of scores as a cell of a table."""
    if not scores:
        return "–"
    spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.3f}{spread}"
