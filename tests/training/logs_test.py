"""What a run says: lines apart from the progress bar, a line before each silence, and a file with dates."""

import io
import logging
import re
import subprocess
import sys

import pytest
import tqdm

from tests.helpers import ROOT, toy_task
from vlbert_jax import main
from vlbert_jax.tasks import TASKS
from vlbert_jax.training.logs import TerminalHandler
from vlbert_jax.training.metrics import bar_values


def screen(text: str) -> list[str]:
    """Return the lines that a terminal shows after `text`."""
    lines = []
    for part in text.split("\n"):
        line: list[str] = []
        for start in part.split("\r"):
            line[: len(start)] = start
        lines.append("".join(line).rstrip())
    return lines


def test_a_line_never_shares_one_with_the_progress_bar():
    stream = io.StringIO()
    logger = logging.Logger("a")
    logger.addHandler(TerminalHandler(stream))
    with tqdm.tqdm(total=9, file=stream, ncols=60, mininterval=0, delay=0) as bar:
        for number in range(3):
            bar.update()
            logger.warning("message %d", number)
        lines = screen(stream.getvalue())
        assert [line for line in lines if "message" in line] == [f"message {number}" for number in range(3)]
        assert "3/9" in lines[-1]  # the bar is there again


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "toy", toy_task.REGISTERED)
    monkeypatch.chdir(ROOT)
    return lambda *fields: main.main(["main", "--config=tests/helpers/toy_task.py", f"--workdir={tmp_path}", *fields])


def test_the_file_has_dates_rows_and_the_error(call, tmp_path):
    assert call("--config.total_steps=4") == 0
    first = (tmp_path / "log.txt").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING) ", line) for line in first)
    assert any("step 4/4 train: " in line for line in first) and any("step 4/4 val: " in line for line in first)
    assert call("--config.total_steps=8", "--config.poison_step=5", "--config.seed=1") == 2
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[: len(first)] == first and " ERROR ValueError: " in lines[-1]  # another run of this workdir


def test_a_line_before_each_silence(call, capsys, tmp_path):
    fields = ["--config.total_steps=8", "--config.eval_every_steps=4", "--config.report", "--config.second_loss_from=4"]
    assert call(*fields) == 0
    out, err = capsys.readouterr()
    known = "the last time it took "
    parts = ["initializing the parameters; ", "the first batch; ",
             "the compilation of an update with these losses: fit; ",
             "the evaluation; 7 to ", "saving step 4; ", "the report; 3 to ", "report: ",
             "from update 5 on these losses are trained: fit, size; before: fit. The total loss is another sum: ",
             f"the compilation of an update with these losses: fit, size; {known}", f"the evaluation; {known}",
             f"saving step 8; {known}", f"the report; {known}", "report: ", "all 8 updates are done: "]  # fmt: skip
    place = 0
    for part in parts:
        assert part in err[place:], part
        place = err.index(part, place) + len(part)
    assert "step 8/8" not in err and out.count("step 8/8") == 2  # rows are for log.txt and the standard output
    written = (tmp_path / "log.txt").read_text()
    assert all(part in written for part in parts) and "this start: {'packages'" in written
    assert " DEBUG the first batch took " in written  # short waits end silently on the terminal
    assert all(line in written for line in (*err.splitlines(), *out.splitlines()) if line)


def test_the_file_has_what_came_before_it_and_what_other_libraries_warn_of(tmp_path):
    """The program is another one, because it changes the logging of its process."""
    program = """
import logging, pathlib, sys, warnings
from vlbert_jax.training.logs import log_to_file, log_to_terminal, logged_output
log_to_terminal()
with logged_output():
    print("building")
logging.getLogger("vlbert_jax.x").info("early")
logging.getLogger("other").info("not shown")
with log_to_file(pathlib.Path(sys.argv[1])):
    warnings.warn("careful")
    logging.getLogger("other").warning("beware")
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "building\n"
    shown = ["early", "<string>:10: UserWarning: careful", "beware"]
    assert [line for line in done.stderr.splitlines() if line] == shown
    lines = [line.split(" ", 2)[2] for line in (tmp_path / "log.txt").read_text().splitlines() if line[:2] == "20"]
    assert lines == ["DEBUG building", "INFO early", "WARNING <string>:10: UserWarning: careful", "WARNING beware"]


@pytest.mark.parametrize("train, val, shown", [
    (dict(loss=1.5, a_accuracy=0.5, x_accuracy=0.25, samples_per_sec=30.0), dict(x_accuracy=0.125),
     "loss 1.5, x_accuracy 25.0%, 30 sequences/s, val x_accuracy 12.5%"),
    (dict(loss=None, a_accuracy=0.5), {}, "a_accuracy 50.0%"),  # the best metric is one of evaluations alone
    ({}, dict(x_accuracy=None), ""),
])  # fmt: skip
def test_the_bar_shows_the_accuracy_that_matters(train, val, shown):
    assert bar_values(train, val, "x_accuracy") == shown
