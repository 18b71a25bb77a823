"""Runs of the documented command, and the file of their results: what the tables of trainings share."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def train(workdir: Path, config: str, *flags: str) -> tuple[dict, dict]:
    """Train a recipe in a process of its own, or continue it; the output is in WORKDIR/log.

    Returns:
      The last row of the validation split, and facts about the run: step, seconds, load, machine, commit.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    print(f"{workdir} ...", file=sys.stderr, flush=True)
    began, commit = time.monotonic(), revision(ROOT)
    with open(workdir / "log", "w") as log:
        command = command_of(workdir, config, *flags)
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=True)
    return result_of(workdir, time.monotonic() - began, commit)


def command_of(workdir: Path, config: str, *flags: str) -> list[str]:
    """Return the documented command of a training."""
    return [sys.executable, "-m", "vlbert_jax.main", f"--config={config}", f"--workdir={workdir}", *flags]


def revision(root: Path) -> str | None:
    """Return the commit of a checkout, with -dirty after other changes than of results and pages; None without git.

    Campaigns themselves change results and pages, which are tracked.
    """
    git = ["git", "-C", str(root)]
    written = ("benchmarks/results", "experiments/results", "docs/science")
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = [*git, "diff", "--quiet", "HEAD", "--", ".", *(f":(exclude){path}" for path in written)]
        return commit + "-dirty" * bool(subprocess.run(changes, capture_output=True).returncode)
    except (OSError, subprocess.CalledProcessError):
        return None


def result_of(workdir: Path, duration: float, commit: str | None) -> tuple[dict, dict]:
    """Return the last row of the validation split, and facts about a run of `commit` that took `duration` seconds.

    Raises:
      ValueError: the run wrote no such row.
    """
    from vlbert_jax.training.metrics import read_rows  # it takes seconds to import, and --help needs none of it

    seconds, load = round(duration), round(os.getloadavg()[1], 1)
    rows = [row for row in read_rows(workdir / "metrics.jsonl") if row["split"] == "val"]
    if not rows:
        raise ValueError(f"{workdir}/metrics.jsonl has no row of the validation split; remove it and train again")
    about = json.loads((workdir / "versions.json").read_text())
    facts = dict(step=rows[-1]["step"], seconds=seconds, load=load, machine=about["machine"], commit=commit)
    return rows[-1], facts


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
