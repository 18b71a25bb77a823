"""Compare runs on one page: curves over each other, final scores, and the fields of the config that differ.

    python -m vlbert_jax.report WORKDIR [WORKDIR ...] [--out=DIR]

Each WORKDIR is a folder that vlbert_jax.main trained in; the runs may be under way. The page is one
file, DIR/index.html, that needs no network. The report of a single run with examples of its answers
is in WORKDIR/report/index.html: training writes it at every evaluation.

Examples:
  python -m vlbert_jax.report workdirs/demo workdirs/demo_2
  python -m vlbert_jax.report workdirs/* --out=comparison
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import vlbert_jax
from vlbert_jax.command import run_command
from vlbert_jax.files import is_address, parse_json, required_path, user_file

if TYPE_CHECKING:
    from vlbert_jax.visualization.comparison import ComparedRun

# JAX takes two seconds to import and --help needs none of it, so other imports are in the
# functions.


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        "python -m vlbert_jax.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"vlbert_jax {vlbert_jax.__version__}")
    about = "folder, or gs:// or s3:// address"
    parser.add_argument("runs", type=required_path, nargs="+", metavar="WORKDIR", help=about)
    parser.add_argument(
        "--out", type=user_file, metavar="DIR", default=Path("comparison"), help="folder of the page (%(default)s)"
    )
    return parser.parse_args(argv)


def read_run(workdir: Path, name: str) -> ComparedRun:
    """Return what a workdir says about its run, under `name`.

    Raises:
        ValueError: The folder holds no run, or a file in it is damaged.
    """
    from vlbert_jax.training.description import facts_of
    from vlbert_jax.training.metrics import read_rows
    from vlbert_jax.visualization.comparison import ComparedRun
    from vlbert_jax.weights.stored_config import flat_config, upgraded

    for file in ("metrics.jsonl", "config.json"):
        if not (workdir / file).is_file():
            raise ValueError(
                f"{workdir} holds no run, because it has no {file}; give the folder of --workdir of a training."
            )
    try:
        rows, stored = read_rows(workdir / "metrics.jsonl"), parse_json((workdir / "config.json").read_bytes())
        if not isinstance(stored, dict):
            raise ValueError("config.json is not a JSON object")
        facts = facts_of(workdir, rows)
        config = flat_config(upgraded(stored, stored.pop("schema", None), str(workdir)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{workdir}: metrics.jsonl, config.json or versions.json is damaged ({error}); leave this run out."
        ) from error
    return ComparedRun(name, rows, config, facts)


def local_folder(workdir: str | Path) -> Path:
    """Return the folder of a workdir, or a copy of its results where it is in a bucket."""
    if not is_address(workdir):
        return Path(workdir)
    from vlbert_jax.storage.inputs import copy_of_results  # folders need nothing of it

    return copy_of_results(str(workdir))


def names_of(workdirs: Sequence[str | Path]) -> list[str]:
    """Return the last part of each path or address, or as many parts as make the names differ."""
    absolute = [Path(workdir).absolute() for workdir in workdirs]
    for count in range(1, max(len(path.parts) for path in absolute)):
        names = [str(Path(*path.parts[-count:])) for path in absolute]
        if len(set(names)) == len(set(absolute)):
            return names
    return list(map(str, absolute))


def compare(workdirs: Sequence[str | Path], directory: Path) -> Path:
    """Write `directory`/index.html, the comparison of the runs of `workdirs`, and return its path.

    Raises:
        ValueError: One of the folders or addresses holds no run, or an address cannot be used.
        StorageError: An address cannot be read.
    """
    from vlbert_jax.tasks import TASKS, get_task
    from vlbert_jax.visualization.comparison import comparison_sections
    from vlbert_jax.visualization.report import write_page

    workdirs = list(dict.fromkeys(workdirs))
    names = names_of(workdirs)
    runs = [read_run(local_folder(workdir), name) for workdir, name in zip(workdirs, names, strict=True)]
    labels = {}
    for task in dict.fromkeys(str(run.config.get("task")) for run in runs):
        if task in TASKS:
            labels |= get_task(task).metric_labels
    title = f"Comparison of {len(runs)} runs" if len(runs) > 1 else f"The run {runs[0].name}"
    return write_page(directory, title, comparison_sections(runs, labels))


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 2 after an error, which one line explains, or 130 after Ctrl-C."""
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    slow = ["vlbert_jax.training.description", "vlbert_jax.visualization.comparison"]
    return run_command(lambda: print(compare(args.runs, args.out)), slow)


if __name__ == "__main__":
    sys.exit(main())
