"""The comparison of runs: scores side by side, curves over each other, fields that differ."""

import json
import re

import pytest

from tests.helpers.browser import CHROMIUM, open_browser
from vlbert_jax import report as command
from vlbert_jax.visualization.comparison import ComparedRun, comparison_sections, differing_fields


def run(name, accuracy, **config):
    rows = [dict(step=s, split=split, loss=3.0 / s, x_accuracy=accuracy * s / 2, x_accuracy_blind=0.1)
            for s in (1, 2) for split in ("train", "val")]  # fmt: skip
    return ComparedRun(name, rows, dict(seed=0) | config, {"commit": f"commit of {name}"})


def texts(page: str) -> list[list[str]]:
    """Return the cells of each row of the tables."""
    rows = re.findall(r"<tr>(.*?)</tr>", page)
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd][^>]*>.*?</t[hd]>", row)] for row in rows]


def test_scores_and_fields_side_by_side():
    runs = [run("one", 0.5, rate=0.1, only=1), run("two", 0.75, rate=0.2)]
    assert differing_fields(runs) == ["rate", "only"]
    sections = dict(comparison_sections(runs, {"x_accuracy": "things found"}))
    scores = texts(sections["Scores of the last evaluation"])
    assert scores[0] == ["", "one", "two"] and scores[1] == ["step of the evaluation", "2", "2"]
    assert ["things found", "50.0 %", "75.0 %"] in scores and ["things found, no image", "10.0 %", "10.0 %"] in scores
    best = re.findall(r'<td class="best">(.*?)</td>', sections["Scores of the last evaluation"])
    assert best == ["75.0 %"]  # the losses are equal
    assert texts(sections["Fields of the config that differ"])[1:] == [["rate", "0.1", "0.2"], ["only", "1", "none"]]
    assert ["commit", "commit of one", "commit of two"] in texts(sections["Runs"])
    assert sections["Curves"].count('data-label="one, val"') == 3  # the loss on two scales, the accuracy on one
    assert 'class="run1 held"' in sections["Curves"] and "no image" not in sections["Curves"]


def test_runs_without_rows_or_evaluations():
    sections = dict(comparison_sections([ComparedRun("one", [], {}, {}), ComparedRun("two", [], {}, {})], {}))
    assert "None of the runs was evaluated" in sections["Scores of the last evaluation"]
    assert "The configs are the same" in sections["Fields of the config that differ"]
    assert "No rows" in sections["Curves"]


@pytest.fixture
def workdirs(tmp_path):
    for place, rate in (("a/run", 0.1), ("b/run", 0.2)):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        row = dict(loss=2.0, step_time_ms=1500.0)
        rows = [dict(step=s, split=split) | row for s in (1, 2) for split in ("train", "val")]
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        config = dict(schema=3, task="unknown", model=dict(architecture="vlbert"), learning_rate=rate)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "versions.json").write_text(json.dumps(dict(command="a <b>", packages={"jax": "1"})))
    return [tmp_path / "a/run", tmp_path / "b/run"]


def test_the_command(workdirs, tmp_path, capsys):
    out = tmp_path / "page"
    assert command.main([*map(str, workdirs), f"--out={out}"]) == 0
    assert capsys.readouterr().out == f"{out}/index.html\n"
    page = (out / "index.html").read_text()
    rows = texts(page)
    assert ["", "a/run", "b/run"] in rows and ["learning_rate", "0.1", "0.2"] in rows
    assert ["command", *2 * ["a &lt;b&gt;"]] in rows and ["duration", *2 * ["3.0 s of updates"]] in rows
    assert not re.search(r"https?://|<script[^>]|<link", page)


@pytest.mark.parametrize("file, content, message", [
    ("metrics.jsonl", None, "holds no run, because it has no metrics.jsonl"),
    ("config.json", "{", r"is damaged \(Expecting property name.*\); leave this run out"),
    ("metrics.jsonl", "[]\n{\n", "is damaged"),
    ("metrics.jsonl", '{"step": 1, "split": "val", "x": "high"}\n', "line 1, is damaged: x is .high.; remove"),
    ("config.json", "[]", r"is damaged \(config.json is not a JSON object\)"),
])  # fmt: skip
def test_a_folder_without_a_run_is_one_line(workdirs, tmp_path, capsys, file, content, message):
    (workdirs[1] / file).unlink()
    if content is not None:
        (workdirs[1] / file).write_text(content)
    assert command.main([*map(str, workdirs), f"--out={tmp_path}/page"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(f"error: .*{message}", error) and not (tmp_path / "page").exists()


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
def test_runs_have_different_colors(workdirs, tmp_path):
    command.compare(workdirs, tmp_path / "page")
    with open_browser(tmp_path / "profile") as page:
        page.open((tmp_path / "page/index.html").as_uri())
        colors = "[...document.querySelectorAll('.chart .linear polyline')].map(x => getComputedStyle(x).stroke)"
        assert len(set(page.run(colors))) == 2
