"""Kill or stop processes of a small run of two at random moments, and compare it bit for bit with an undisturbed one.

    python -m tests.faults.two_processes --rows=100          or: make faults

Row i disturbs a run at moments that the seed i chooses, up to three times: it kills one process or both with SIGKILL.
In every tenth row one process stalls for a minute instead (SIGSTOP, then SIGCONT). The other process must end with
status 75 and one line. Then the same command continues the run; its rows of metrics.jsonl, without durations, and the
parameters of its last checkpoint must be equal. A finished row is appended to two_processes.jsonl at once; rows that
are there are skipped. The exit status is 1 if a row differs, or if a process ends in another way.
"""

import argparse
import os
import pathlib
import random
import shutil
import signal
import sys
import time

from tests.faults.campaign import differences, missing_seeds, run_rows
from tests.helpers import ROOT, toy_processes
from vlbert_jax.training.hosts import LOST
from vlbert_jax.weights.orbax import newest_step

RESULTS = pathlib.Path(__file__).parent / "two_processes.jsonl"
FIELDS = {
    "prng_impl": "threefry2x32", "total_steps": 40, "log_every_steps": 2, "checkpoint_every_steps": 4,
    "eval_every_steps": 20, "step_delay": 0.05,
}  # fmt: skip
KILLS = 3  # at most, in a row
STALL = 60  # seconds


def start(folder: pathlib.Path, name: str) -> list:
    """Start or continue the run NAME in `folder`; return its two processes."""
    flags = [f"--config.{field}={value}" for field, value in FIELDS.items()]
    return toy_processes.start(folder, 2, *flags, f"--workdir={folder / name}", JOIN_SECONDS="30")


def finish(folder: pathlib.Path, name: str) -> float:
    """Let a run finish, and return the seconds that this took. Raises SystemExit if it fails."""
    began, processes = time.monotonic(), start(folder, name)
    statuses, lines = toy_processes.end(processes)
    if statuses != [0, 0]:
        raise SystemExit(f"error: the run {name} ended with {statuses}: {lines}; see the logs in {folder}")
    return time.monotonic() - began


def disturbance(folder: pathlib.Path, name: str, after: float, hit: tuple[int, ...], stall: float) -> dict:
    """Start a run, kill or stop processes of it after some seconds, and return what happened.

    Args:
      folder: the folder of the runs.
      name: the name of the run.
      after: seconds from the start.
      hit: numbers of the processes.
      stall: seconds after which stopped processes go on; 0 = they are killed.
    """
    processes = start(folder, name)
    time.sleep(after)
    alive = [i for i in hit if processes[i].is_alive()]
    for i in alive:
        os.kill(processes[i].pid, signal.SIGSTOP if stall else signal.SIGKILL)
    time.sleep(stall)
    for i in alive if stall else ():
        os.kill(processes[i].pid, signal.SIGCONT)
    began = time.monotonic()
    statuses, lines = toy_processes.end(processes)
    ended = round(time.monotonic() - began, 1)
    step = newest_step(folder / name)
    when = dict(after_s=round(after, 1), hit=alive, stall_s=stall, step=step, ended_s=ended)
    return when | dict(statuses=statuses, lines=lines)  # of each process


def disturbed(folder: pathlib.Path, seed: int, seconds: float) -> dict:
    """Return the row of a seed; an undisturbed run takes `seconds`."""
    rng, name, events = random.Random(seed), f"run_{seed}", []
    stalls = seed % 10 == 9
    for _ in range(1 if stalls else rng.randint(1, KILLS)):
        hit = rng.choice([(0,), (1,)] if stalls else [(0,), (1,), (0, 1)])
        events.append(disturbance(folder, name, rng.uniform(0.2, seconds), hit, STALL if stalls else 0))
        if events[-1]["statuses"] == [0, 0]:
            break
    finish(folder, name)
    found = differences(folder / name, folder / "undisturbed")
    shutil.rmtree(folder / name)
    return dict(kind="two processes", seed=seed, events=events, **found)


def is_expected(row: dict) -> bool:
    """Return whether nothing differs, and every process ended as it should.

    One that loses the other, or stalls, ends with `LOST` and one line. All may end well after the last update.
    """
    for event in row["events"]:
        done = event["step"] == FIELDS["total_steps"] or not event["hit"]
        for number, (status, lines) in enumerate(zip(event["statuses"], event["lines"], strict=True)):
            killed = number in event["hit"] and not event["stall_s"]
            expected = -signal.SIGKILL if killed else LOST
            if status not in ((0, expected) if done else (expected,)) or len(lines) != (status == LOST):
                return False
    return not row["rows"] and not row["arrays"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3, help="rows in two_processes.jsonl at the end (default: 3)")
    default = ROOT / "workdirs/two_processes"
    parser.add_argument("--folder", type=pathlib.Path, default=default, help="folder of the runs")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()

    os.chdir(ROOT)
    missing = missing_seeds(args.results, args.rows)
    if not missing:
        return 0
    folder = args.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return run_rows(folder, args.results, missing, finish, disturbed, is_expected)


if __name__ == "__main__":
    sys.exit(main())
