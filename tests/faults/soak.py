"""Ask shipped models in one process for an hour, and measure the memory of the process.

    python -m tests.faults.soak [--minutes=60] [--pause=0.1]

Every turn samples random pixels of one of five sizes and one to six boxes, and asks a question, an expression and a
masked caption. Every fifth turn, on average, also asks for attention maps. Every program that these need is compiled
in the first turns, so memory may grow until `WARM` of the time is over. After that the median of a minute must not
exceed that of the first such minute by more than `GROWTH`. The row with the memory of each minute is appended to
soak.jsonl; the exit status is 1 if memory grew.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import sys
import time

import numpy as np

import vlbert_jax
from vlbert_jax.training.description import machine

RESULTS = pathlib.Path(__file__).parent / "soak.jsonl"
WARM = 0.25  # of the time
GROWTH = 20.0  # MB
SIZES = ((96, 64), (64, 96), (118, 124), (200, 90), (300, 300))  # width, height in pixels


def resident_mb() -> float:
    """Return the resident memory of this process in MB."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def turn(predictors: dict, rng: np.random.Generator) -> None:
    """Ask each model about a random image."""
    width, height = SIZES[rng.integers(len(SIZES))]
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    corners = np.sort(rng.random((rng.integers(1, 7), 2, 2)), axis=1) * (width, height)
    boxes = corners.reshape(-1, 4).tolist()
    predictors["vqa"].answer(image, f"what color is the {rng.choice(('fish', 'car', 'red ball'))}?", boxes)
    predictors["refcoco"].ground(image, f"the {rng.choice(('large', 'blue', 'striped'))} box", boxes)
    predictors["pretrain"].fill(image, f"a {rng.choice(('red', 'green'))} [MASK] and a [MASK] tree", boxes)
    if rng.random() < 0.2:
        predictors["pretrain"].attention(image, "a red ball", boxes)


def soaked(minutes: float, pause: float) -> dict:
    """Ask for some minutes, and return the row.

    Args:
      minutes: duration in minutes.
      pause: seconds to wait after each turn.
    """
    predictors = {name: vlbert_jax.load(f"demo-{name}") for name in ("vqa", "refcoco", "pretrain")}
    rng, began, turns = np.random.default_rng(0), time.monotonic(), 0
    memory: dict[int, list[float]] = {}  # minute -> MB after each turn
    while (elapsed := (time.monotonic() - began) / 60) < minutes:
        turn(predictors, rng)
        memory.setdefault(int(elapsed), []).append(resident_mb())
        turns += 1
        time.sleep(pause)
    by_minute = [round(statistics.median(values), 1) for values in memory.values()]
    warm = by_minute[int(WARM * len(by_minute)) :]
    return dict(minutes=minutes, turns=turns, memory_mb=by_minute, growth_mb=round(max(warm) - warm[0], 1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="duration in minutes (default: 60)")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds after each turn (default: 0.1)")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()
    if args.minutes < 8:
        parser.error(f"--minutes={args.minutes:g} is too short to see growth; give 8 or more")
    row = soaked(args.minutes, args.pause) | dict(python=platform.python_version(), machine=machine())
    with args.results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row))
    return 1 if row["growth_mb"] > GROWTH else 0


if __name__ == "__main__":
    sys.exit(main())
