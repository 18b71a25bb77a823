"""Fill the disk of a small run at random moments, and compare it bit for bit with a run that nothing disturbs.

    python -m tests.faults.full_disk --rows=20          or: make faults

Row i fills the file system of the workdir, a tmpfs in a namespace of its own, at a moment that the seed i chooses. Some
rows leave a few bytes, so that a write fails in its middle. The run must end with one line. After space has returned,
the same command continues it; its rows of metrics.jsonl, without durations, and the parameters of its last checkpoint
must be equal. A finished row is appended to full_disk.jsonl at once; rows that are there are skipped. The status is
1 if a row differs, or if a run ends in another way.
"""

import argparse
import errno
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

from tests.faults.campaign import differences, missing_seeds, run_rows
from tests.helpers import ROOT

RESULTS = pathlib.Path(__file__).parent / "full_disk.jsonl"
SIZE = 16 * 2**20  # bytes of the file system
FIELDS = {
    "total_steps": 60, "log_every_steps": 1, "checkpoint_every_steps": 2, "eval_every_steps": 20, "step_delay": 0.05,
    "report": True,
}  # fmt: skip


def start(folder: pathlib.Path, name: str) -> subprocess.Popen:
    """Start or continue the toy run NAME in `folder`."""
    flags = [f"--config.{field}={value}" for field, value in FIELDS.items()]
    command = [sys.executable, "-m", "tests.helpers.toy_process", "--config=tests/helpers/toy_task.py", *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "programs")}
    with (folder.parent / f"{name}.log").open("a") as log:
        command.append(f"--workdir={folder / name}")
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def finish(folder: pathlib.Path, name: str) -> float:
    """Let a run finish, and return the seconds that this took. Raises SystemExit if it fails."""
    began, process = time.monotonic(), start(folder, name)
    if process.wait():
        raise SystemExit(f"error: {name} ended with status {process.returncode}; see {folder.parent}/{name}.log")
    return time.monotonic() - began


def fill(path: pathlib.Path, left: int) -> None:
    """Write a file that takes all bytes of a file system but some."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**12))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        file.truncate(max(file.tell() - left, 0))


def disturbed(folder: pathlib.Path, seed: int, seconds: float) -> dict:
    """Return the row of a seed.

    Args:
      folder: the folder with the undisturbed run, a file system of its own.
      seed: the seed, the number of the row.
      seconds: time that the undisturbed run takes with compiled programs.
    """
    rng, name = random.Random(seed), f"full_{seed}"
    after, left = rng.uniform(0.1, 1.0) * seconds, rng.choice((0, 4096, 16 * 4096))
    process = start(folder, name)
    try:
        status = process.wait(after)
    except subprocess.TimeoutExpired:
        fill(folder / "filling", left)
        status = process.wait(600)
        (folder / "filling").unlink()
    lines = (folder.parent / f"{name}.log").read_text().splitlines()
    errors = [line.replace(f"{folder}/", "") for line in lines if line.startswith("error: ") or "Traceback" in line]
    finish(folder, name)
    row = dict(kind="full disk", seed=seed, after_s=round(after, 1), left_bytes=left, status=status, errors=errors)
    found = differences(folder / name, folder / "undisturbed")
    shutil.rmtree(folder / name)
    return row | found


def is_expected(row: dict) -> bool:
    """Return whether a row has no difference, and its run ended with one line, or before the disk was full."""
    ended = row["status"] == 0 and not row["errors"] or row["status"] == 2 and len(row["errors"]) == 1
    return ended and not row["rows"] and not row["arrays"] and not any("Traceback" in line for line in row["errors"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3, help="rows that full_disk.jsonl has at the end (default: 3)")
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "workdirs/full_disk", help="folder of the runs")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--mounted", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()

    missing = missing_seeds(args.results, args.rows)
    if not missing:
        return 0
    if not args.mounted:
        return subprocess.run(["unshare", "-rm", *sys.orig_argv, "--mounted"]).returncode
    shutil.rmtree(args.folder, ignore_errors=True)
    folder = args.folder.absolute() / "disk"
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], check=True)
    return run_rows(folder, args.results, missing, finish, disturbed, is_expected)


if __name__ == "__main__":
    sys.exit(main())
