"""Kill the demo recipe, shrunk, at random moments, and compare it bit for bit with a run that nothing disturbs.

    make faults FAULTS_FLAGS="--rows=100"          or: python -m tests.faults.kills --rows=100

Row i kills a run with SIGKILL at a moment that the seed i chooses, up to three times, then lets it finish. Its rows of
metrics.jsonl, without durations, and the parameters of its last checkpoint must be equal. Every third row compiles its
programs anew, so that compilations are hit, too. A finished row is appended to results.jsonl at once; rows that are
there are skipped, so that a campaign may run in parts. The exit status is 1 if a row differs.
"""

import argparse
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

from data_prep.build import build_scenes
from tests.faults.campaign import differences, missing_seeds, run_rows
from tests.helpers import ROOT
from vlbert_jax.weights.orbax import newest_step

RESULTS = pathlib.Path(__file__).parent / "results.jsonl"
FIELDS = {
    "total_steps": 12, "warmup_steps": 2, "opening.steps": 4, "batch_size": 8, "log_every_steps": 2,
    "eval_every_steps": 6, "checkpoint_every_steps": 3,
}  # fmt: skip
KILLS = 3  # at most, in a row


def start(folder: pathlib.Path, name: str, cached: bool) -> subprocess.Popen:
    """Start or continue the run NAME in `folder`; its output is appended to NAME.log."""
    flags = [f"--config.{field}={value}" for field, value in FIELDS.items()]
    command = [sys.executable, "-m", "vlbert_jax.main", "--config=configs/pretrain.py", f"--workdir={folder / name}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment |= {} if cached else {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    with (folder / f"{name}.log").open("a") as log:
        data = f"--config.data.data_dir={folder / 'data'}"
        return subprocess.Popen([*command, data, *flags], cwd=ROOT, env=environment, stdout=log, stderr=log)


def finish(folder: pathlib.Path, name: str, cached: bool = True) -> float:
    """Let a run finish, and return the seconds that this took. Raises SystemExit if it fails."""
    began, process = time.monotonic(), start(folder, name, cached)
    if process.wait():
        raise SystemExit(f"error: the run {name} ended with status {process.returncode}; see {folder / name}.log")
    return time.monotonic() - began


def disturbed(folder: pathlib.Path, seed: int, seconds: float) -> dict:
    """Return the row of a seed.

    Args:
      folder: the folder with the undisturbed run.
      seed: the seed, the number of the row.
      seconds: time that the undisturbed run takes with compiled programs.
    """
    rng, name, cached, kills = random.Random(seed), f"kill_{seed}", seed % 3 > 0, []
    for _ in range(rng.randint(1, KILLS)):
        process, after = start(folder, name, cached), rng.uniform(0.2, seconds * (1.0 if cached else 1.5))
        try:
            process.wait(after)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log = (folder / f"{name}.log").read_text().replace(f"{folder}/", "").splitlines()
        last = log[-1][:120] if log else ""
        kills.append(dict(after_s=round(after, 1), step=newest_step(folder / name), last_line=last))
    finish(folder, name, cached)
    found = differences(folder / name, folder / "undisturbed")
    shutil.rmtree(folder / name)
    return dict(kind="kill", seed=seed, compiles=not cached, kills=kills, **found)


def is_expected(row: dict) -> bool:
    """Return whether nothing differs."""
    return not row["rows"] and not row["arrays"]


def shown(row: dict) -> str:
    """Return what is printed of a row."""
    return f"{len(row['kills'])} kills, {row['rows']} rows and {row['arrays']} arrays differ"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3, help="rows that results.jsonl has at the end (default: 3)")
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "workdirs/faults", help="folder of the runs")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()

    missing = missing_seeds(args.results, args.rows)
    if not missing:
        return 0
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True)
    build_scenes(args.folder / "data", num_train=200, num_val=40, num_train_stories=100, num_val_stories=20)
    return run_rows(args.folder, args.results, missing, finish, disturbed, is_expected, shown)


if __name__ == "__main__":
    sys.exit(main())
