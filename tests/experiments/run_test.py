"""A study is run with a program in place of its trainings: rows, skips, kills, shares, tables."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from benchmarks import controlled
from benchmarks import runs as training
from data_prep import build
from experiments import jobs, page, plots, rows, run
from experiments.declaration import STUDIES, declared_forms
from experiments.study import read_study
from tests.helpers import HANG_SECONDS, ROOT
from tests.helpers.experiments_case import PROBES, STUDY, replace_trainings


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a study; trainings are replaced, and plots are not drawn."""
    monkeypatch.setattr(training, "command_of", training.command_of)
    monkeypatch.setattr(build, "draw_missing", build.draw_missing)
    monkeypatch.setattr(training, "revision", lambda root: "0123456789abcdef")
    monkeypatch.setattr(plots, "require_matplotlib", lambda: None)
    monkeypatch.setattr(plots, "write_plot", lambda *_: None)
    replace_trainings()
    (tmp_path / "tiny.toml").write_text(STUDY)
    return tmp_path


def arguments(place, *options):
    folders = [f"--{name}={place}/{name}" for name in ("workdirs", "results", "pages")]
    return [str(place / "tiny.toml"), *folders, *options]


def rows_of(place):
    path = place / "results/tiny.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def starts(place):
    """Return workdir -> number of its starts."""
    return {path.parent.name: len(path.read_text()) for path in sorted((place / "workdirs").glob("*/starts"))}


def test_a_study_is_run_once(place, capsys):
    assert run.main(arguments(place, "--small")) == 0
    first, second = rows_of(place)
    assert [row["recipe"] for row in (first, second)] == ["pretrain:demo", "vqa:demo"]
    assert first["overrides"] == {"learning_rate": 0.1, "opening.steps": 2, "total_steps": 8} and first["seed"] == 0
    assert first["scores"] == dict(visual_word_accuracy=0.1, answer_accuracy=0.1)  # without durations
    assert second["after"] == {name: first[name] for name in ("recipe", "overrides", "seed", "after")}
    assert (first["commit"], first["machine"], first["step"]) == ("0123456789abcdef", "2 cores", 8)
    assert not first["continued"] and "--config.total_steps=8" in first["command"]
    assert re.search(r"--config.init.checkpoint=\S+/workdirs/pretrain_demo-\w{8}-0 ", second["command"])
    assert "| low | 0.100 (1) | 0.100 (1) |" in capsys.readouterr().out

    assert run.main(arguments(place, "--jobs=3")) == 0  # the full form has the same runs of the first seed
    assert len(rows_of(place)) == 3 * 2 * 2 + 1
    assert set(starts(place).values()) == {1}
    table = capsys.readouterr().out
    assert "| high | 0.310 ± 0.010 (3) | 0.327 ± 0.031 (3) |" in table and "| none | – | 0.050 (1) |" in table
    assert "| A high rate helps | 1 to 2 | high − low, VQA | +0.200 ± 0.000 | < 0.001 | 3 | shown |" in table
    written = (place / "pages/tiny.md").read_text()
    assert "2 of 2 trainings have a row." in written and "13 of 13 trainings have a row." in written
    assert "| high | 0.310 ± 0.010 (3) | 0.327 ± 0.031 (3) |" in written and str(place) not in written
    assert re.findall("# (.*: .*)", written)[:3] == ["low: pre-training", "low: VQA", "low: pre-training"]
    assert "# none: VQA" in written and "# none: pre-training" not in written

    (place / "pages/tiny.md").unlink()
    assert run.main(arguments(place, "--table")) == 0
    assert (place / "pages/tiny.md").read_text() == written and set(starts(place).values()) == {1}


def test_probes_of_a_study(place, capsys):
    """Each pre-training is probed once, in a workdir of its own; a claim may compare two columns."""
    (place / "tiny.toml").write_text(STUDY.replace("[small]", f"{PROBES}[small]"))
    assert run.main(arguments(place)) == 0
    found = [row for row in rows_of(place) if row.get("mode") == "probe"]
    assert len(rows_of(place)) == 3 * 2 * 3 + 1 and len(found) == 6
    (first,) = [row for row in found if row["seed"] == 1 and row["overrides"]["learning_rate"] == 0.1]
    assert first["scores"] == {
        "words.none": pytest.approx(0.11), "words.all": 0.01, "attention.chance": 0.5, "attention.right.1.1": 0.1,
        "attention.right.1.2": 0.2, "attention.right.2.1": 0.3, "attention.right.2.2": 0.5,
    }  # fmt: skip
    assert first["step"] == 8 and first["machine"] and first["after"]["seed"] == 1
    assert re.search(r"--config=pretrain:demo .*--config.init.checkpoint=\S+ .*--mode=probe", first["command"])
    table = capsys.readouterr().out
    assert "| low | 0.110 ± 0.010 (3) | 0.110 ± 0.010 (3) | 0.010 ± 0.010 (3) |" in table
    assert "| low, all words − low, no region | +0.100 ± 0.000 |" in table
    written = (place / "pages/tiny.md").read_text()
    assert "# low: probes" in written and "19 of 19 trainings and probes have a row." in written
    assert run.main(arguments(place)) == 0 and set(starts(place).values()) == {1}


def test_several_seeds_of_fine_tuning(place, capsys):
    """Scores of pre-trainings are 0.1, 0.11, 0.12; fine-tunings add 0 and 0.01. A claim has a pair per start."""
    several = STUDY.replace("seeds = 3\n", "seeds = 3\ntune_seeds = 2\n")
    (place / "tiny.toml").write_text(several)
    assert run.main(arguments(place, "--jobs=2")) == 0
    found = rows_of(place)
    tuned = [row for row in found if row["recipe"] == "vqa:demo" and row["after"]]
    assert len(found) == 2 * 3 * (1 + 2) + 1
    pairs = {(row["after"]["seed"], row["seed"]) for row in tuned if row["after"]["overrides"]["learning_rate"] == 0.1}
    assert pairs == {(start, seed) for start in range(3) for seed in range(2)}
    table = capsys.readouterr().out
    assert "| low | 0.110 ± 0.010 (3) | 0.115 ± 0.010 (3) |" in table
    assert "| high − low, VQA | +0.200 ± 0.000 | < 0.001 | 3 | shown |" in table
    written = (place / "pages/tiny.md").read_text()
    assert "| low | VQA | 0.007 | 0.010 | 0.009 |" in written and "| none | VQA |" not in written
    assert "| low | words |" not in written
    assert re.findall("# (low: .*)", written) == ["low: pre-training", "low: VQA"] * 2


@pytest.mark.parametrize("name", ["results", "pages"])
def test_a_folder_that_cannot_be_made_ends_the_command_before_trainings(place, name, capsys):
    (place / "file").touch()
    assert run.main(arguments(place, "--small", f"--{name}={place}/file/x")) == 2
    assert "check this path and its permissions" in capsys.readouterr().err and not starts(place)


def test_the_commit_of_a_row(tmp_path):
    """Results and pages do not count as changes: the runner writes them while the code stays the same."""

    def git(*arguments):
        names = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", tmp_path, *names, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert training.revision(tmp_path) is None
    git("init", "--quiet")
    for name in ("experiments/results/a.jsonl", "docs/science/a.md", "experiments/a.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    commit = git("rev-parse", "HEAD")
    for name, mark in (("experiments/results/a.jsonl", ""), ("docs/science/a.md", ""), ("experiments/a.py", "-dirty")):
        (tmp_path / name).write_text("after")
        assert training.revision(tmp_path) == commit + mark


def test_order_of_the_runs(place):
    study = read_study(place / "tiny.toml")
    runs = study.runs()
    assert [one.seed for one in runs] == [0] * 5 + [1] * 4 + [2] * 4  # an interrupted table has all its cells
    for number, one in enumerate(runs):
        assert one.after is None or one.after in runs[:number]
    assert sorted(map(len, jobs.units(runs))) == [1] + [2] * 6


def test_a_change_of_the_study_does_not_mix_rows(place, capsys):
    run.main(arguments(place, "--small"))
    (place / "tiny.toml").write_text(STUDY.replace("learning_rate = 0.1", "learning_rate = 0.2"))
    assert run.main(arguments(place, "--table")) == 0
    assert "| low | – | – |" in capsys.readouterr().out.rpartition("setting")[2]
    assert "2 further rows of other settings" in (place / "pages/tiny.md").read_text()
    assert run.main(arguments(place, "--small")) == 0 and len(rows_of(place)) == 4
    assert "| low | 0.200 (1) | 0.200 (1) |" in capsys.readouterr().out
    (place / "tiny.toml").write_text(STUDY)
    first, again = (read_study(place / "tiny.toml", "small", flags) for flags in ((), ["--config.learning_rate=1e-1"]))
    assert first.runs()[0] == again.runs()[0]  # the same number


def test_scores_of_pre_training_are_optional(place, capsys):
    (place / "tiny.toml").write_text(STUDY.replace('{ "words" = "visual_word_accuracy" }', "{}"))
    assert run.main(arguments(place, "--small")) == 0
    assert "| setting | VQA |" in capsys.readouterr().out and len(rows_of(place)) == 2
    assert "# low: pre-training" in (place / "pages/tiny.md").read_text()


def test_flags_make_other_rows_and_leave_the_page(place, capsys):
    run.main(arguments(place, "--small"))
    before = (place / "pages/tiny.md").read_text()
    assert run.main(arguments(place, "--small", "--flag=--config.learning_rate=0.25")) == 0
    assert "| low | 0.250 (1) | 0.250 (1) |" in capsys.readouterr().out
    assert len(rows_of(place)) == 4 and rows_of(place)[-1]["overrides"] == {"learning_rate": 0.25}
    assert (place / "pages/tiny.md").read_text() == before


def test_a_failed_run_stops_only_what_needs_it(place, capsys):
    (place / "workdirs").mkdir()
    (place / "workdirs/failing").touch()
    assert run.main(arguments(place)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"error: 4 of 13 trainings failed; .*-1 ended with status 1: error: the disk is gone", message)
    assert len(rows_of(place)) == 9 and {row["seed"] for row in rows_of(place)} == {0, 2}
    (place / "workdirs/failing").unlink()
    assert run.main(arguments(place)) == 0 and len(rows_of(place)) == 13


def test_weights_that_are_not_here_are_trained_again(place):
    """A row without its workdir, as in a fresh checkout, does not help a fine-tuning that is new."""
    run.main(arguments(place, "--small"))
    path = place / "results/tiny.jsonl"
    kept = path.read_text().splitlines(keepends=True)[0]
    path.write_text(kept)
    (place / "workdirs").rename(place / "elsewhere")
    assert run.main(arguments(place, "--small")) == 0
    assert len(starts(place)) == 2 and len(rows_of(place)) == 2 and path.read_text().startswith(kept)


def test_shares_and_their_collection(place, capsys):
    for share in ("0/2", "1/2", "0/2"):  # the last one repeats nothing
        assert run.main(arguments(place, f"--shard={share}")) == 0
    assert rows_of(place) == [] and len(starts(place)) == 13  # the nodes of a cluster write to their workdirs alone
    assert not (place / "pages").exists()
    assert run.main(arguments(place)) == 0
    assert len(rows_of(place)) == 13 and set(starts(place).values()) == {1}
    for wrong in ("--shard=2/2", "--jobs=0"):
        with pytest.raises(SystemExit):
            run.main(arguments(place, wrong))


# --- Kills ------------------------------------------------------------------------------------------


def start(place):
    flag = "--flag=--config.warmup_steps=3"  # no page, so no plots
    command = [sys.executable, "-m", "tests.helpers.experiments_case", *arguments(place, "--small", flag)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                            env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip


def wait_until(happened, process):
    end = time.monotonic() + HANG_SECONDS
    while not happened():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[1]
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_a_kill(place, number):
    """The trainings of a runner that was asked to stop save and end; those of a killed one end by themselves."""
    (place / "workdirs").mkdir()
    gate = place / "workdirs/gate"
    gate.touch()
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(start(place))
        stack.callback(gate.unlink, missing_ok=True)
        wait_until(lambda: starts(place), first)
        first.send_signal(number)
        first.communicate(timeout=HANG_SECONDS)
        assert first.returncode == {signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
        assert rows_of(place) == []
        second = stack.enter_context(start(place))
        if number == signal.SIGKILL:  # the trainings are still there
            lines = second.stderr.readline(), second.stderr.readline()
            assert "waiting for another process that trains there" in lines[1]
        gate.unlink()
        second.communicate(timeout=HANG_SECONDS)
        assert second.returncode == 0
    assert [row["continued"] for row in rows_of(place)] == [True, False]
    assert list(starts(place).values()) == [2, 1]  # by name: pre-training, then questions


def test_an_incomplete_last_line(place):
    """A row that a kill has cut is written again from the workdir of its run."""
    run.main(arguments(place, "--small"))
    path = place / "results/tiny.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert run.main(arguments(place, "--small")) == 0
    assert path.read_bytes() == whole and set(starts(place).values()) == {1}


# --- SLURM --------------------------------------------------------------------------------------------


def test_slurm(place, monkeypatch):
    """The script gets the same command; it adds the shares."""
    program = place / "sbatch"
    program.write_text(f"#!/bin/sh\necho \"$@\" >> '{place}/sbatch_calls'\necho 12\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    assert run.main(arguments(place, "--slurm", "--small", "--tasks=3", "--sbatch=--time=60")) == 0
    shares, last = (place / "sbatch_calls").read_text().splitlines()
    assert "--time=60 --array=0-2" in shares and "--dependency=afterany:12 --array=3" in last
    assert f"-- experiments {place}/tiny.toml --small --jobs=1 --workdirs={place}/workdirs" in shares
    assert rows_of(place) == [] and starts(place) == {}


# --- The committed results ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in STUDIES.glob("*.toml")))
def test_pages_follow_from_the_results(name):
    forms = [read_study(STUDIES / f"{name}.toml", form) for form in declared_forms(STUDIES / f"{name}.toml")]
    results = ROOT / f"experiments/results/{name}.jsonl"
    command = jobs.Trainer(run.WORKDIRS, run.DATA_DIR).shown_command
    text = page.page_text(forms, rows.read_rows(results), command)
    written = (ROOT / f"docs/science/{name}.md").read_text(encoding="utf-8")
    assert written == text, f"run: python -m experiments.run {name} --table"
    for plot in re.findall(r"\]\((\S+\.svg)\)", text):
        assert (ROOT / "docs/science" / plot).exists()


def test_the_controlled_page_follows_from_its_results(capsys):
    controlled.main(["--table"])
    written = (ROOT / "docs/science/controlled.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out in written, "copy the output of: python benchmarks/controlled.py --table"


def test_real_forms_draw_nothing(tmp_path):
    """Fields of a study may be lists, as sizes of two streams are; the forms for real data have no synthetic corpus."""
    for path in sorted(STUDIES.glob("*.toml")):
        run.build_corpora(read_study(path, "real", []), [], tmp_path)
    assert not list(tmp_path.iterdir())
