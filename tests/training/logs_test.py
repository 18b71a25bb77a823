"""What a run says: lines apart from the progress bar, a line before each silence, and a file with dates."""

import io
import logging
import re

import pytest
import tqdm

from tests.helpers import ROOT, toy_task
from vlbert_jax import main
from vlbert_jax.tasks import TASKS
from vlbert_jax.training.logs import TerminalHandler


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


def test_a_line_before_each_silence(call, capsys):
    assert call("--config.total_steps=4", "--config.report") == 0
    out, err = capsys.readouterr()
    parts = ["initializing the parameters; ", "compiling an update with ", "compiled in ", "evaluating; ",
             "writing the report; ", "report: "]  # fmt: skip
    places = [err.index(part) for part in parts]
    assert places == sorted(places)
    assert "step 4/4" not in err and out.count("step 4/4") == 2  # rows are for log.txt and the standard output
