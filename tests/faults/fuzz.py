"""Give damaged files to every reader of foreign bytes (readers.py), and count what the readers do.

    python -m tests.faults.fuzz --inputs=2000          or: make fuzz FUZZ_FLAGS="--inputs=2000 --seed=1"

A reader must return, or raise an error that the commands print as one line with the name of the file. Everything else
is a fault: another exception, an error without the file, more than 5 s of processor time, a crash, memory beyond the
limit of the reader, and code that a file brings with it. Input i of a seed is always the same. The readers run in
another process, which continues after a crash with the next input. Inputs with faults are kept in --folder. The row of
a reader is appended to fuzz.jsonl as soon as it is finished; rows that are there are skipped, so that a campaign may
run in parts. The exit status is 1 if there is a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import mmap
import os
import pathlib
import platform
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable
from typing import Any

from tests.faults import task_readers  # noqa: F401 (it registers readers)
from tests.faults.mutations import mutate
from tests.faults.readers import BY_NAME, Reader
from tests.helpers import ROOT

RESULTS = pathlib.Path(__file__).parent / "fuzz.jsonl"
KINDS = ("exceptions", "unnamed", "hangs", "crashes", "code_runs")
HANG_CPU, HANG_WALL = 5, 60  # seconds of one input: processor time, and all; the machine may be busy
START_WALL = 300  # seconds to import the modules and to make the seeds
STATE = struct.Struct("<6q")  # reader, input, accepted, refused, KiB at the start, KiB at most; input -1 = not yet
FIELDS = ("reader", "number", "accepted", "refused", "start", "most")
# Events of the interpreter that no reader has a reason to raise.
WATCHED = (
    "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "os.mkdir", "os.remove",
    "os.rename", "os.rmdir", "shutil.rmtree", "socket.connect", "socket.getaddrinfo", "urllib.Request",
)  # fmt: skip


class State:
    """What a worker has done, in memory that survives it."""

    def __init__(self, path: pathlib.Path):
        if not path.exists():
            path.write_bytes(STATE.pack(0, -1, 0, 0, 0, 0))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), STATE.size)

    def get(self) -> dict[str, int]:
        return dict(zip(FIELDS, STATE.unpack(self._map[:]), strict=True))

    def set(self, **fields: int) -> None:
        self._map[:] = STATE.pack(*(self.get() | fields).values())


# --- In the process of the readers -------------------------------------------------------------------------


def work(names: list[str], inputs: int, seed: int, folder: pathlib.Path) -> None:
    """Continue at the place that the state names."""
    state, events = State(folder / "state"), (folder / "events.jsonl").open("a", buffering=1)
    sys.dont_write_bytecode = True
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    active: list[str] = []  # the events of an input

    def watch(event: str, arguments: tuple) -> None:
        # TFDS makes the folder of a table before it is built.
        if event in WATCHED and watch.on and (event != "os.mkdir" or str(arguments[0]).endswith("trace")):
            active.append(event)

    watch.on = False  # pyright: ignore[reportFunctionMemberAccess]
    sys.addaudithook(watch)
    for index in range(state.get()["reader"], len(names)):
        reader = BY_NAME[names[index]]
        place = folder / reader.name
        place.mkdir(exist_ok=True)
        path, seeds = reader.prepare(place)
        first = state.get()
        if first["number"] < 0:
            state.set(number=0, start=_most(), most=_most())
        seen: set[str] = set()
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + reader.limit_mb * 2**20, hard))
        accepted, refused = first["accepted"], first["refused"]
        for number in range(max(first["number"], 0), inputs):
            content = mutate(seeds, random.Random(f"{reader.name}/{seed}/{number}"))
            path.write_bytes(content)
            watch.on = True
            kind, text = _one(reader, path)
            watch.on = False
            accepted, refused = accepted + (kind == "accepted"), refused + (kind == "refused")
            state.set(number=number + 1, accepted=accepted, refused=refused, most=_most())
            if active:
                kind, text = "code_runs", ", ".join(active)
                active.clear()
            if kind in KINDS:
                fault = dict(reader=reader.name, number=number, kind=kind, text=text)
                mark = re.sub(r"\d+", "0", f"{kind} {text.partition(': ')[0]}")
                if mark not in seen:
                    seen.add(mark)
                    fault["file"] = str(folder / f"{reader.name}-{seed}-{number}.input")
                    pathlib.Path(fault["file"]).write_bytes(content)
                events.write(json.dumps(fault) + "\n")
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        now = state.get()
        row = dict(reader=reader.name, accepted=accepted, refused=refused, peak=now["most"] - now["start"])
        events.write(json.dumps(row) + "\n")
        state.set(reader=index + 1, number=-1, accepted=0, refused=0)


def _one(reader: Reader, path: pathlib.Path) -> tuple[str, str]:
    """Return what a reader makes of a file, and the text of the exception."""
    try:
        reader.function(path)
        return "accepted", ""
    except reader.errors as error:
        named = (path.name if reader.place is None else reader.place) in str(error)
        return ("refused", "") if named else ("unnamed", _text(error))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a library in Rust raises one that is no Exception
        return "exceptions", _text(error)


def _text(error: BaseException) -> str:
    """Return the class, the lines of code and the start of the message of an exception."""
    places = traceback.extract_tb(error.__traceback__)
    own = [place for place in places if str(ROOT) in place.filename and "/tests/" not in place.filename]
    where = [f"{pathlib.Path(place.filename).name}:{place.lineno}" for place in (*own[-1:], *places[-1:])]
    return f"{type(error).__name__} at {', '.join(dict.fromkeys(where))}: {' '.join(str(error).split())[:200]}"


def _most() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _address_space() -> int:
    return int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


# --- In the process that watches ---------------------------------------------------------------------------


def available(names: Iterable[str]) -> list[str]:
    """Return the readers whose packages are installed; PyTorch need not be."""
    return [name for name in names if name != "pytorch" or importlib.util.find_spec("torch")]


def fuzz(names: list[str], inputs: int, seed: int, folder: pathlib.Path) -> list[dict[str, Any]]:
    """Give `inputs` files to each of some readers, all of them in one process unless it crashes.

    Args:
      names: names of readers.
      inputs: inputs of each reader.
      seed: seed of the inputs.
      folder: folder of the files, in which those with faults stay.

    Returns:
      A row for each reader, and with it the list `faults`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in ("state", "events.jsonl"):
        (folder / leftover).unlink(missing_ok=True)
    state, events, began = State(folder / "state"), folder / "events.jsonl", time.monotonic()
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults.fuzz", "--work", f"--readers={','.join(names)}"]
    command += [f"--inputs={inputs}", f"--seed={seed}", f"--folder={folder}"]
    environment = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    while (at := state.get())["reader"] < len(names):
        with (folder / "worker.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        kind = _watch(process, state)
        if not kind:
            break
        at = state.get()
        if at["number"] < 0:
            raise RuntimeError(f"{names[at['reader']]} ended before its first input: see {folder / 'worker.log'}")
        name, number = names[at["reader"]], at["number"]
        kept = folder / f"{name}-{seed}-{number}.input"
        shutil.copyfile(folder / name / BY_NAME[name].file, kept)
        text = f"status {process.returncode}" if kind == "crashes" else ""
        with events.open("a") as file:
            file.write(json.dumps(dict(reader=name, number=number, kind=kind, text=text, file=str(kept))) + "\n")
        state.set(number=at["number"] + 1)
    found = [json.loads(line) for line in events.read_text().splitlines()]
    rows = []
    for row in (line for line in found if "kind" not in line):
        faults = [line for line in found if line["reader"] == row["reader"] and "kind" in line]
        counts = {kind: sum(fault["kind"] == kind for fault in faults) for kind in KINDS}
        about = dict(inputs=inputs, seed=seed, accepted=row["accepted"], refused=row["refused"], **counts)
        seconds = round((time.monotonic() - began) / len(names), 1)
        rows.append(dict(reader=row["reader"], **about, peak_mb=row["peak"] // 1024, seconds=seconds, faults=faults))
    return rows


def _watch(process: subprocess.Popen, state: State) -> str:
    """Wait for the end of the worker and return "", "crashes", or "hangs" after it was killed."""
    last, used, since = (-1, -1), 0.0, time.monotonic()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return "crashes" if process.wait(0.2) else ""
        at = state.get()
        place, now = (at["reader"], at["number"]), time.monotonic()
        if place != last:
            last, used, since = place, _processor_time(process.pid), now
        busy = _processor_time(process.pid) - used if place[1] >= 0 else 0
        if busy > HANG_CPU or now - since > (HANG_WALL if place[1] >= 0 else START_WALL):
            process.kill()
            process.wait()
            return "hangs"


def _processor_time(pid: int) -> float:
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2000, help="inputs for each reader (default: 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", default=",".join(BY_NAME), help=f"default: {','.join(BY_NAME)}")
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "workdirs/fuzz", help="folder of the inputs")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = available(args.readers.split(","))
    if unknown := [name for name in names if name not in BY_NAME]:
        parser.error(f"there is no reader {unknown[0]}; choose from {', '.join(BY_NAME)}")
    if args.work:
        work(names, args.inputs, args.seed, args.folder)
        return 0

    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    stored = args.results.read_text().splitlines() if args.results.exists() else []
    finished = {(row["reader"], row["seed"], row["inputs"]) for row in map(json.loads, stored)}
    bad = 0
    for name in names:
        if (name, args.seed, args.inputs) in finished:
            continue
        (row,) = fuzz([name], args.inputs, args.seed, args.folder)
        faults = row.pop("faults")
        for fault in faults:
            if "file" in fault:
                print(f"{name}: {fault['kind']}: {fault['text']} ({fault['file']})")
        row |= dict(commit=commit.stdout.strip(), python=platform.python_version())
        with args.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        about = f"{row['refused']} of {args.inputs} refused, {len(faults)} faults"
        print(f"{name}: {about}, {row['peak_mb']} MB, {row['seconds']} s", flush=True)
        bad += len(faults)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
