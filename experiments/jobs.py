"""Train the runs of a study, several at a time; each finished run is stored at once."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import runs as training
from experiments import rows
from experiments.study import Run
from vlbert_jax.files import read_json_object

LOCK = ".lock"  # file that a training locks in its workdir


class Stopped(Exception):
    """The runner was asked to stop; the training has saved its state."""


class Trainer:
    """Trains runs in processes of their own, below one folder."""

    def __init__(self, workdirs: Path, data_dir: Path):
        """Use `workdirs`/NAME as the workdir of each run, and the records in `data_dir`; both are made absolute."""
        self.workdirs, self.data_dir = workdirs.absolute(), data_dir.absolute()
        self.children: set[subprocess.Popen] = set()
        self.stopping = threading.Event()

    def workdir(self, run: Run) -> Path:
        """Return the workdir of a run."""
        return self.workdirs / run.name

    def command(self, run: Run) -> list[str]:
        """Return the documented command of a run."""
        fixed = [f"--config.init.checkpoint={self.workdir(run.after)}"] if run.after else []
        if not run.after and "init.bert" not in dict(run.overrides):
            fixed = ["--config.init.scratch=True"]
        fixed += [f"--config.data.data_dir={self.data_dir}", "--config.report=False"]
        fixed += [f"--mode={run.mode}"] if run.mode != "train" else []
        return training.command_of(self.workdir(run), run.recipe, *run.flags(), *fixed)

    def shown_command(self, run: Run) -> str:
        """Return the command as a user types it in the checkout."""
        inside = f"{training.ROOT}{os.sep}"
        return shlex.join(["python", *(part.replace(inside, "") for part in self.command(run)[1:])])

    def train(self, run: Run) -> dict[str, Any]:
        """Train a run, or continue it; return its row, which is then also in its workdir.

        Raises:
            ValueError: The training failed; the message is its last line.
            Stopped: `stop` was called.
        """
        workdir = self.workdir(run)
        workdir.mkdir(parents=True, exist_ok=True)
        self._wait_for_other(workdir)
        continued = (workdir / "metrics.jsonl").exists()
        began, log, commit = time.monotonic(), workdir / "log", training.revision(training.ROOT)
        print(f"{workdir} ...", file=sys.stderr, flush=True)
        with open(log, "w") as file:
            # In a session of its own, Ctrl-C on a terminal does not reach it: `stop` lets it save once.
            options: dict[str, Any] = dict(cwd=training.ROOT, stdout=file, stderr=file, start_new_session=True)
            child = subprocess.Popen(self.command(run), **options)
            self.children.add(child)
            if self.stopping.is_set():
                child.terminate()
            status = child.wait()
            self.children.discard(child)
        if self.stopping.is_set() and status:
            raise Stopped
        if status:
            last = (log.read_text(errors="replace").strip().splitlines() or ["it wrote nothing"])[-1]
            raise ValueError(f"{workdir} ended with status {status}: {last}")
        duration = time.monotonic() - began
        if run.mode == "probe":
            scores, facts = self._probed(run, duration, commit)
        else:
            scores, facts = training.result_of(workdir, duration, commit)
        scores = {name: value for name, value in scores.items() if name not in ("step", "split")}
        timeless = {name: value for name, value in scores.items() if "time" not in name and "per_sec" not in name}
        about = dict(scores=timeless, continued=continued, command=self.shown_command(run))
        row = run.declaration() | about | facts
        rows.store_in_workdir(workdir, row)
        return row

    def _probed(self, run: Run, duration: float, commit: str | None) -> tuple[dict, dict]:
        """Return the numbers of a probe by dotted names, and facts about it as `runs.result_of` does."""
        from vlbert_jax.training.description import machine

        path = self.workdir(run) / "probes/probes.json"
        results = read_json_object(path, "remove it, and the same command writes it again")
        assert run.after is not None  # a probe needs a training
        trained = rows.row_in_workdir(self.workdir(run.after), run.after)
        step = results["step"] if trained is None else trained["step"]
        facts = dict(step=step, seconds=round(duration), load=round(os.getloadavg()[1], 1), machine=machine())
        return flat_numbers(results), facts | dict(commit=commit)

    def _wait_for_other(self, workdir: Path) -> None:
        """Wait while another process trains in the workdir, such as one that a killed runner has left."""
        with open(workdir / LOCK, "a") as file:
            is_first = True
            while not self.stopping.is_set():
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    if is_first:
                        print(f"{workdir}: waiting for another process that trains there", file=sys.stderr, flush=True)
                    is_first = False
                    self.stopping.wait(1)
                except OSError:
                    return  # a file system without locks
        raise Stopped

    def stop(self) -> None:
        """Ask all trainings to save their state and end, and start no more."""
        self.stopping.set()
        for child in list(self.children):
            child.terminate()


def flat_numbers(results: Any, prefix: str = "") -> dict[str, float]:
    """Return the numbers of nested objects and lists by dotted names; the places of a list count from 1."""
    if isinstance(results, dict | list):
        items = results.items() if isinstance(results, dict) else enumerate(results, 1)
        found = {}
        for name, value in items:
            found |= flat_numbers(value, f"{prefix}.{name}" if prefix else str(name))
        return found
    return {prefix: results} if isinstance(results, int | float) else {}


def units(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs in groups of a pre-training and what starts from it."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault((run.after or run).key, []).append(run)
    return list(found.values())


def missing(runs: Sequence[Run], done: rows.Rows, trainer: Trainer) -> list[Run]:
    """Return the runs without a row, and before those the runs whose weights they need and which are not here."""
    found: dict[str, Run] = {}
    for run in (run for run in runs if run.key not in done):
        if run.after and rows.row_in_workdir(trainer.workdir(run.after), run.after) is None:
            found.setdefault(run.after.key, run.after)
        found.setdefault(run.key, run)
    return list(found.values())


def train_all(todo: Sequence[Run], trainer: Trainer, jobs: int, store: Callable[[Run, dict], None]) -> list[str]:
    """Train runs, `jobs` at a time.

    Args:
        todo: The runs; a run comes after the one whose weights it needs.
        trainer: Trains a run.
        jobs: Number of trainings at a time.
        store: Called with each finished run and its row, in this thread.

    Returns:
        The messages of the runs that failed, and of those that need one of them.
    """
    waiting, errors = list(todo), []
    unfinished = {run.key for run in todo}  # neither trained nor failed
    failed: set[str] = set()
    under_way: dict[concurrent.futures.Future, Run] = {}
    with stopped_by_sigterm(), concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or under_way:
                for run in [run for run in waiting if run.after and run.after.key in failed]:
                    waiting.remove(run)
                    unfinished.discard(run.key)
                    failed.add(run.key)
                    errors.append(f"{trainer.workdir(run)} needs {trainer.workdir(run.after)}, which failed")
                ready = [run for run in waiting if not (run.after and run.after.key in unfinished)]
                for run in ready[: jobs - len(under_way)]:
                    waiting.remove(run)
                    under_way[pool.submit(trainer.train, run)] = run
                ended, _ = concurrent.futures.wait(under_way, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in ended:
                    run = under_way.pop(future)
                    unfinished.discard(run.key)
                    try:
                        row = future.result()
                    except (ValueError, OSError) as error:
                        failed.add(run.key)
                        errors.append(str(error))
                        print(f"failed: {error}", file=sys.stderr, flush=True)
                    else:
                        store(run, row)
        except BaseException:  # asked to stop, or the row cannot be stored
            trainer.stop()
            raise
    return errors


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Raise SystemExit with status 143 when SIGTERM comes."""

    def end(*_):
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
