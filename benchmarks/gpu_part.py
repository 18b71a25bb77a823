"""Run one part of `benchmarks/gpu.sh` within a time limit and keep every figure that it prints.

    python benchmarks/gpu_part.py --folder=FOLDER --part=NAME --seconds=LIMIT -- COMMAND...

Each line of the command that is a JSON object is a row (a list holds several). It is appended at once to
FOLDER/results.jsonl, and the tables of FOLDER/results.md are written again, so that a run that is killed keeps the rows
before. A part that fails, or that does not end in time, is a row with `failed`. Each run starts with a row of the part
`device`; the tables are those of the last run.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vlbert_jax.files import atomic_write  # noqa: E402

ROWS, TABLES = "results.jsonl", "results.md"
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "OutOfMemoryError", "out of memory")
DEVICE, STEPS, PEERS, DETECTOR, PROFILE = PARTS = ("device", "steps", "peers", "detector", "profile")
SIDES = ("ours", "pytorch")
SHORTEST = 5  # seconds; with less a part is not started


def run_part(part: str, command: list[str], limit: float, folder: Path, about: dict) -> None:
    """Run a command, and add its rows to the folder.

    Args:
        part: One of PARTS.
        command: The program and its arguments.
        limit: Seconds until the command and its children are killed.
        folder: Where the rows and the tables are.
        about: Fields of every row of this part.
    """
    if limit < SHORTEST:
        add_rows(folder, [dict(part=part, **about, failed="no time was left")])
        return
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    )
    late, last, no_memory = threading.Event(), "", False

    def kill():
        late.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(limit, kill)
    timer.start()
    with process:
        try:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                last = line.strip() or last
                no_memory |= any(words in line for words in OUT_OF_MEMORY)
                if rows := rows_of(line):
                    add_rows(folder, [dict(part=part, **about) | row for row in rows])
            status = process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if status:
        reason = "out of memory" if no_memory else f"exit status {status}: {last[:200]}"
        reason = f"not done after {limit:.0f} s" if late.is_set() else reason
        print(f"{part}: {reason}", flush=True)
        add_rows(folder, [dict(part=part, **about, failed=reason)])


def rows_of(line: str) -> list[dict]:
    """Return the JSON objects of a line of output."""
    if not line.startswith(("{", "[")):
        return []
    try:
        found = json.loads(line)
    except ValueError:
        return []
    return [row for row in (found if isinstance(found, list) else [found]) if isinstance(row, dict)]


def last_run(rows: list[dict]) -> list[dict]:
    starts = [number for number, row in enumerate(rows) if row["part"] == DEVICE]
    return rows[starts[-1] :] if starts else rows


def add_rows(folder: Path, rows: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ROWS).open("a") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
    every = [json.loads(line) for line in (folder / ROWS).read_text().splitlines()]
    with atomic_write(folder / TABLES) as path:
        path.write_text(tables(last_run(every)))


def tables(rows: list[dict]) -> str:
    """Return the rows as Markdown."""
    of = {part: [row for row in rows if row["part"] == part] for part in PARTS}
    about = next((row for row in rows if row["part"] == DEVICE), {})
    lines = [f"# {about.get('device', 'A device')}", ""]
    lines += [f"`benchmarks/gpu.sh`, {about.get('versions', '')}, bfloat16. Milliseconds are medians.", ""]
    lines += ["## Training steps", ""]
    lines += header("recipe", "captions", "step, ms", "samples/s", "TFLOP/s", "share of the peak", "memory, GB")
    for row in of[STEPS]:
        cells = [row.get("failed"), *[""] * 4]
        if "step_ms" in row:
            memory = f"{row['temporary_gb'] + row['state_gb']:.2f}"
            cells = [row["step_ms"], row["samples_per_sec"], row["tflops"], percent(row.get("share_of_peak")), memory]
        lines.append(line_of(row.get("recipe"), row.get("captions"), *cells))
    lines += ["", "## In turn with PyTorch, compiled", ""]
    lines += header("recipe", "captions", "ours, ms", "PyTorch, ms", "ratio", "shares of the peak", "memory, GB")
    for row in of[PEERS]:
        found = next((found for found in row.values() if isinstance(found, dict)), {})
        cells = [row.get("failed"), *[""] * 4]
        if found:
            shares = [percent(found[f"{side}_share_of_peak"]) for side in SIDES]
            cells = [*(f"{1e3 * found[f'{side}_s']:.1f}" for side in SIDES), found["ratio"]]
            cells += [", ".join(filter(None, shares)), ", ".join(str(found[f"{side}_peak_gb"]) for side in SIDES)]
        lines.append(line_of(row.get("recipe"), row.get("captions"), *cells))
    lines += ["", "## The detector", "", *header("program", "images at a time", "images/s", "TFLOP/s")]
    for row in of[DETECTOR]:
        if "images_per_second" in row:
            rate = f"{row['gflops'] / 1e3:.3f}"
            lines.append(line_of(row["what"], row["batch_size"], row["images_per_second"], rate))
        elif "failed" in row:
            lines.append(line_of("the detector", row.get("batch_size"), row["failed"], ""))
    for row in of[PROFILE]:
        lines += ["", f"## Where the time of {row.get('recipe')} goes", ""]
        if "failed" in row:
            lines += [f"There is no profile: {row['failed']}."]
            continue
        total = sum(row["thread_seconds"].values())
        lines += [f"A step takes {1e3 * row['step_s']:.1f} ms.", "", *header("operations", "ms", "share")]
        parts = sorted(row["thread_seconds"].items(), key=lambda part: -part[1])
        lines += [line_of(name, f"{1e3 * seconds:.2f}", percent(seconds / total)) for name, seconds in parts]
    return "\n".join(lines) + "\n"


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def header(*names: str) -> list[str]:
    return [line_of(*names), "|---" * len(names) + "|"]


def line_of(*cells) -> str:
    return f"| {' | '.join('' if cell is None else str(cell).replace('|', '/') for cell in cells)} |"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the rows and the tables are")
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="time limit")
    parser.add_argument("--about", type=json.loads, default={}, help="JSON object with fields of every row")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the command is killed first
    run_part(args.part, args.command, args.seconds, args.folder, args.about)


if __name__ == "__main__":
    main()
