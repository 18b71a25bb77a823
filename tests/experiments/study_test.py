"""Files of studies and of results: what is wrong with them is reported in one line."""

import dataclasses
import json
import math
import xml.etree.ElementTree

import pytest

from experiments import compare, jobs, page, plots, rows, run
from experiments.declaration import STUDIES, declared_forms, study_path
from experiments.study import Run, read_study
from tests.helpers.experiments_case import CURVES, HEAT, PROBES, STUDY
from vlbert_jax.training.config import parse_command

RUN = Run("pretrain:demo", (("learning_rate", 0.1),), 0)
ROW = RUN.declaration() | dict(
    scores=dict(a=0.5), step=1, seconds=1, continued=False, load=0.5, machine="2 cores", commit="0", command="python"
)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tune.data", "tunes.data", r"\[settings.'none'\]: unknown field 'tunes', did you mean 'tune'\?"),
        ('better = "high"', 'better = "hihg"', r"claim 1: better is 'hihg', did you mean 'high'\?"),
        ('score = "VQA"', 'score = "VQB"', r"claim 1: score is 'VQB', did you mean 'VQA'\?"),
        ("pretrain.learning_rate = 0.1", "pretrain.lr = 0.1", r"\[settings.'low'\], pretrain:demo: .*'learning_rate'"),
        ("data.flip_probability = 0.0", "data.flip_probability = 2.0", r"vqa:demo: .* is 2.0; it can be 0 to 1"),
        ("pretrain:demo", "pretrain:deom", r"unknown config variant 'deom'.*Did you mean 'demo'"),
        ("seeds = 3\n", "", r"\[settings.'low'\]: the field 'seeds' is missing"),
        ("seeds = 3", "seeds = true", r"seeds is True; it must be of type int"),
        ("seeds = 3", "seeds = 0", r"seeds is 0; it must be 1 or more"),
        ('title = "A study"', "title = A study", r"is not TOML .*line 2"),
        ('score = "VQA"', 'score = "VQA"\nthan = "VQB"', r"claim 1: than is 'VQB', did you mean 'VQA'\?"),
        ('settings = ["low"]', 'settings = ["loww"]', r"\[small\]: settings is 'loww', did you mean 'low'\?"),
        ("[small]", "[small.replace.settings.loww]\n[small]", r"\[small.replace.settings\] is 'loww', did you mean"),
        ("[small]", "[small.replace.tasks.VQB]\n[small]", r"\[small.replace.tasks\] is 'VQB', did you mean 'VQA'\?"),
        ('"words" = ', '"VQA" = ', r"'VQA' is in pretrain.scores and in tasks"),
        ("scratch = true", "scratch = true\npretrain.total_steps = 4", r"'none'\] has no pre-training"),
        ("scratch = true", "scratch = true\ntune_seeds = 2", r"'none'\] .*; use seeds in place of tune_seeds"),
        ("seeds = 3", "seeds = 3\ntune_seeds = 0", r"tune_seeds is 0; it must be 1 or more"),
        ("[small]", "[small.replace]\nsettings = 3\n[small]", r"with \[small.replace\]: settings is 3; it must"),
        ("[small]", "[small.replace.settings]\nlow = 3\n[small]", r"with \[small.replace\], .* is 3; it must be a"),
        ("[small]", "[small.replace.tasks.VQA]\nscore = 3\n[small]", r"with \[small.replace\], .*: score is 3"),
        ("[small]", "[small.replace]\nclaims = [3]\n[small]", r"with \[small.replace\], claim 1 is 3; it must"),
        ('"visual_word_accuracy"', "3", r"\[pretrain.scores\]: words is 3; it must be a text"),
        ("[small]", "[probe]\nscores = {}\n[small]", r"\[probe.scores\] is {}; it must be a table with texts"),
        ("[small]", "[probe]\nscores = { a = 1 }\n[small]", r"\[probe.scores\]: a is 1; it must be a text"),
        ("total_steps = 8,", "seed = 8,", r"'low'\], pretrain:demo: seed is no field to override: the study sets it"),
        ("total_steps = 8,", 'data.data_dir = "x",', r"data.data_dir is no field to override"),
        ('recipe = "vqa:demo"', 'recipe = ""', r"\[settings.'low'\], : the recipe is empty; name one"),
        ('settings."none"', 'settings."a\\nb"', r"the name 'a\\nb' is empty or has a line break"),
    ],
)
def test_mistakes_in_a_study(old, new, message, tmp_path):
    path = tmp_path / "tiny.toml"
    assert old in STUDY
    path.write_text(STUDY.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as error:
        for form in ("small", "full"):
            read_study(path, form)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_unknown_studies_and_flags(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"no study 'ablaton', did you mean 'ablation'\?; there are: ablation"):
        study_path("ablaton")
    (tmp_path / "tiny.toml").write_text(STUDY)
    for flag in ("--config.seed=3", "batch_size=16", "--config.init.checkpoint=x"):
        with pytest.raises(ValueError, match=r"--flag=.* is not usable; write --flag=--config.FIELD=VALUE"):
            read_study(tmp_path / "tiny.toml", "full", [flag])
    assert run.main(["ablaton", "--table"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no study")


@pytest.mark.parametrize("name", sorted(path.stem for path in STUDIES.glob("*.toml")))
def test_the_small_form_is_a_part(name):
    small, full = (read_study(STUDIES / f"{name}.toml", form) for form in ("small", "full"))
    assert set(small.settings) <= set(full.settings) and set(small.columns) <= set(full.columns)
    assert len(small.runs()) < len(full.runs())


@pytest.mark.parametrize("name", [path.stem for path in STUDIES.glob("*.toml") if "real" in declared_forms(path)])
def test_the_real_form_reads_public_data_and_released_weights(name, tmp_path):
    real, full = (read_study(STUDIES / f"{name}.toml", form) for form in ("real", "full"))
    # On real data the region head is the detector's, so there is no setting that trains it alone.
    assert set(full.settings) - set(real.settings) <= {"region head"} and set(real.settings) <= set(full.settings)
    assert real.columns == full.columns
    for one in real.runs():
        command = parse_command(jobs.Trainer(tmp_path, tmp_path).command(one)[2:])
        config = command.config
        assert not config.data.embedded and config.data.data_dir == str(tmp_path) and not config.init.scratch
        assert config.init.checkpoint if one.after else config.init.bert
        assert one.after is None or one.mode == "probe" or config.total_steps > 1000
        assert "val" not in config.data.train_split


def test_a_form_that_is_not_declared(tmp_path, capsys):
    (tmp_path / "tiny.toml").write_text(STUDY)
    assert run.main([str(tmp_path / "tiny.toml"), "--real", "--table"]) == 2
    assert "has no table [real], which declares this form" in capsys.readouterr().err


# --- Rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line[:-5] + "\n", r"line 2, is damaged: it is not JSON"),
        (lambda line: "[]\n", r"line 2, is damaged: it is not a JSON object"),
        (lambda line: json.dumps(ROW | dict(seed="1")) + "\n", r"line 2, is damaged: seed is '1'"),
        (lambda line: json.dumps(ROW | dict(scores=dict(a="x"))) + "\n", r"line 2, is damaged: the score a is 'x'"),
        (lambda line: json.dumps({n: v for n, v in ROW.items() if n != "commit"}) + "\n", r"line 2, .* has no commit"),
        (lambda line: json.dumps(ROW | dict(seed=0)) + "\n", r"line 2, has the same run as an earlier line"),
    ],
)
def test_damaged_rows(change, message, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows.add_row(path, ROW)
    rows.add_row(path, ROW | dict(seed=1))
    assert [row["seed"] for row in rows.read_rows(path).values()] == [0, 1]
    first, second = path.read_text().splitlines(keepends=True)
    path.write_text(first + change(second))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message) as error:
        rows.read_rows(path)
    assert str(error.value).startswith(str(path)) and path.read_bytes() == before


@pytest.mark.parametrize(("cut", "kept"), [(0, [0, 1, 2]), (1, [0, 2])])
def test_a_last_row_without_its_end(cut, kept, tmp_path):
    """A row is kept if it is complete; the line of a process that was killed is replaced."""
    path = tmp_path / "rows.jsonl"
    for seed in range(2):
        rows.add_row(path, ROW | dict(seed=seed))
    path.write_bytes(path.read_bytes()[: -1 - cut])
    assert [row["seed"] for row in rows.read_rows(path).values()] == kept[:-1]
    rows.add_row(path, ROW | dict(seed=2))
    assert [row["seed"] for row in rows.read_rows(path).values()] == kept
    assert path.read_bytes().count(b"\n") == len(kept)


def test_rows_of_workdirs(tmp_path):
    assert rows.row_in_workdir(tmp_path, RUN) is None
    rows.store_in_workdir(tmp_path, ROW)
    assert rows.row_in_workdir(tmp_path, RUN) == ROW
    with pytest.raises(ValueError, match=f"{tmp_path}/row.json is the row of another run; remove {tmp_path}"):
        rows.row_in_workdir(tmp_path, Run("pretrain:demo", (), 0))
    (tmp_path / "row.json").write_text("{")
    with pytest.raises(ValueError, match=r"row.json is damaged: .*; remove"):
        rows.row_in_workdir(tmp_path, RUN)


def test_a_misspelt_metric(tmp_path):
    found = {RUN.key: ROW}
    rows.check_metric(found, [RUN], "column", "a")
    with pytest.raises(ValueError, match=r"the score 'b' of 'column' is in no row; the scores are: a"):
        rows.check_metric(found, [RUN], "column", "b")


# --- Numbers ------------------------------------------------------------------------------------------


def test_paired_differences():
    """Compared with a t-test by hand: differences 1, 2, 3 have mean 2, error 1 / sqrt(3), and t = 2 sqrt(3)."""
    found = compare.paired({0: 2.0, 1: 4.0, 2: 6.0, 9: 100.0}, {0: 1.0, 1: 2.0, 2: 3.0})
    assert (found.pairs, found.mean) == (3, 2.0)
    assert found.error == pytest.approx(1 / math.sqrt(3))
    t = 2 * math.sqrt(3)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))  # the distribution with two degrees of freedom
    assert compare.shown_difference(found) == ("+2.000 ± 0.577", "0.074")


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([1, 2, 3], "shown"),
        ([-1, -2, -3], "contradicted here"),
        ([1, -2, 3], "not shown here"),
        ([0, 0, 0], "not shown here"),
        ([1, 1, 1], "shown"),
        ([1, 2], "not tested"),
        ([5], "not tested"),
        ([], "not tested"),
    ],
)
def test_verdicts(differences, verdict):
    zeros = dict.fromkeys(range(len(differences)), 0.0)
    assert compare.paired(dict(enumerate(map(float, differences))), zeros).verdict() == verdict


def test_spread_of_pre_trainings_and_fine_tunings():
    """Means 1, 2, 3 have variance 1. Fine-tunings of variance 0.5 explain 0.25 of it, of variance 8 all of it."""
    found = compare.spread({0: [0.5, 1.5], 1: [1.5, 2.5], 2: [2.5, 3.5]})
    assert dataclasses.astuple(found) == pytest.approx((math.sqrt(0.5), 1.0, math.sqrt(0.75)))
    assert compare.spread({0: [-1.0, 3.0], 1: [0.0, 4.0], 2: [1.0, 5.0]}).pretraining == 0.0
    assert compare.shown_spread(compare.spread({0: [1.0, 2.0], 1: [1.0]})) == ["0.707", "–", "–"]  # incomplete
    assert compare.shown_spread(compare.spread({0: [1.0]})) == ["–", "–", "–"]


def test_a_study_without_a_run(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(STUDY.replace('settings = ["low"]', "settings = []"))
    with pytest.raises(ValueError, match=r"tiny.toml: the form 'small' has no run; it needs a setting"):
        read_study(path, "small")


def test_a_recipe_of_the_user(tmp_path, monkeypatch):
    """Its path is absolute wherever the training starts, and its workdir is like that of other recipes."""
    (tmp_path / "mine.py").write_text("from configs.pretrain import get_config\n")
    (tmp_path / "tiny.toml").write_text(STUDY.replace('"pretrain:demo"', '"mine.py:demo"'))
    monkeypatch.chdir(tmp_path)
    (first, *_) = read_study(tmp_path / "tiny.toml", "small").runs()
    assert first.recipe == f"{tmp_path}/mine.py:demo" and first.name.startswith("mine_demo-")
    (tmp_path / "tiny.toml").write_text(STUDY)
    (first, *_) = read_study(tmp_path / "tiny.toml", "small").runs()
    assert first.recipe == "pretrain:demo" and first.name.startswith("pretrain_demo-")


def test_a_study_with_a_shipped_name_does_not_overwrite_its_results(tmp_path, capsys):
    (tmp_path / "ablation.toml").write_text(STUDY)
    for options in ([], [f"--results={tmp_path}"], [f"--pages={tmp_path}"]):
        assert run.main([str(tmp_path / "ablation.toml"), "--table", *options]) == 2
        assert "rename it, or give --results=DIR and --pages=DIR" in capsys.readouterr().err


def test_cells_of_a_table_are_escaped():
    assert page.table(["a|b"], [["c\nd"]]) == ["| a\\|b |", "| --- |", "| c d |"]


PLOT = """
[plot]
x = "rate"
positions = { low = 1, high = 10, none = 3 }
lines = { low = "with", high = "with", none = "without" }
"""


@pytest.mark.parametrize(
    ("plot", "shown"),
    [("", {"words: visual_word_accuracy", "low", "high"}), (PLOT, {"VQA: answer_accuracy", "rate", "10", "with"})],
    ids=["points", "lines"],
)
def test_plots_have_the_same_bytes_each_time(plot, shown, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "tiny.toml").write_text(STUDY.replace("[small]", f"{plot}[small]"))
    study = read_study(tmp_path / "tiny.toml")
    scores = dict(visual_word_accuracy=0.5, answer_accuracy=0.25)
    done = {one.key: ROW | dict(scores=scores) for one in study.runs()[:4]}
    images = []
    for name in ("first.svg", "second.svg"):
        plots.write_plot(study, done, tmp_path / name)
        images.append((tmp_path / name).read_bytes())
    assert images[0] == images[1]
    root = xml.etree.ElementTree.fromstring(images[0])
    texts = {"".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert shown <= texts


@pytest.mark.parametrize(
    ("figure", "shown"),
    [(CURVES, {"words", "removed", "all", "low", "high"}), (HEAT, {"low (chance 0.50)", "head", "0.30", "0.45"})],
    ids=["curves", "heat"],
)
def test_figures_of_probes(figure, shown, tmp_path):
    """A map has the means over seeds."""
    pytest.importorskip("matplotlib")
    (tmp_path / "tiny.toml").write_text(STUDY.replace("[small]", f"{PROBES}{figure}[small]"))
    study = read_study(tmp_path / "tiny.toml")
    done = {}
    for one in study.runs():
        scores = {"words.none": 0.5, "words.all": 0.25, "attention.chance": 0.5, "attention.right.1.1": 0.3}
        scores["attention.right.1.2"] = 0.4 + 0.05 * one.seed  # 0.4, 0.45, 0.5
        done |= {one.key: ROW | dict(scores=scores)} if one.mode == "probe" else {}
    plots.write_plot(study, done, tmp_path / "figure.svg")
    root = xml.etree.ElementTree.parse(tmp_path / "figure.svg").getroot()
    texts = {"".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert shown <= texts


def test_numbers_that_the_probes_lack(tmp_path):
    pytest.importorskip("matplotlib")
    for old, new, message in (
        ("attention.chance", "attention.chanc", r"tiny: \[heat\] chance is 'attention.chanc', which is not in"),
        ("attention.right", "words", r"the study tiny: \[heat\] values is 'words', which is not in the probes"),
    ):
        (tmp_path / "tiny.toml").write_text(STUDY.replace("[small]", f"{PROBES}{HEAT.replace(old, new)}[small]"))
        study = read_study(tmp_path / "tiny.toml")
        scores = {"words.none": 0.5, "words.all": None, "attention.chance": 0.5, "attention.right.1.1": 0.3}
        done = {one.key: ROW | dict(scores=scores) for one in study.runs() if one.mode == "probe"}
        assert "words.all" not in page.plotted_scores(study, done)  # it was not finite
        with pytest.raises(ValueError, match=message):
            plots.write_plot(study, done, tmp_path / "figure.svg")


def test_more_lines_than_colors(tmp_path):
    """Each setting has a line of its own, which the legend names."""
    pytest.importorskip("matplotlib")
    settings = {f"s{number}": number + 1 for number in range(8)}
    table = '[settings.{0}]\nabout = "x"\nseeds = 1\npretrain.total_steps = {1}\n'
    tables = "".join(table.format(*setting) for setting in settings.items())
    positions = "".join(f"positions.{name} = {value}\nlines.{name} = '{name}'\n" for name, value in settings.items())
    plot = f'[plot]\nx = "x"\n{positions}'
    head, small = STUDY.partition("[settings")[0], '[small]\nsettings = ["s0"]\n'
    (tmp_path / "tiny.toml").write_text(f"{head}{tables}{plot}{small}")
    study = read_study(tmp_path / "tiny.toml")
    done = {one.key: ROW | dict(scores=dict(answer_accuracy=0.5)) for one in study.runs()}
    plots.write_plot(study, done, tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text()
    assert all(f">{name}</text>" in text for name in settings)


def test_mistakes_in_a_plot(tmp_path):
    path = tmp_path / "tiny.toml"
    for old, new, message in (
        ("low = 1, ", "", r"\[plot\]: positions lacks the setting 'low'; add it"),
        ("high = 10", "hihg = 10", r"\[plot\]: positions is 'hihg', did you mean 'high'\?"),
        ("high = 10", "high = 0", r"\[plot.positions\]: high is 0; it must be a number above 0"),
        ("high = 10", "high = inf", r"\[plot.positions\]: high is inf; it must be a number above 0"),
        ("high = 10", 'high = "10"', r"\[plot.positions\]: high is '10'; it must be a number above 0"),
        ('none = "without"', "none = 1", r"\[plot.lines\]: none is 1; it must be a text"),
    ):
        path.write_text(STUDY + PLOT.replace(old, new))
        with pytest.raises(ValueError, match=message):
            read_study(path)
    path.write_text(STUDY + HEAT)
    with pytest.raises(ValueError, match=r"\[heat\] draws numbers of probes; add \[probe\]"):
        read_study(path)
    path.write_text(STUDY + PLOT + PROBES + HEAT)
    with pytest.raises(ValueError, match=r"\[plot\] and \[heat\] are figures, of which a study has one; remove one"):
        read_study(path)
    for panels in ("{}", "{ words = {} }", "{ words = 3 }", "{ words = { a = 3 } }"):
        path.write_text(f'{STUDY}{PROBES}[curves]\nx = "x"\npanels = {panels}\n')
        with pytest.raises(ValueError, match=r"\[curves.panels.* is .*; (it must be a t|add a panel)"):
            read_study(path)
    path.write_text(STUDY + PLOT)
    assert set(read_study(path, "small").plot.positions) == {"low"}
