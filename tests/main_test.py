"""Test the command line with the toy task: all modes, and errors of one line."""

import errno
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from data_prep import build
from tests.helpers import HANG_SECONDS, ROOT, toy_task
from vlbert_jax import main
from vlbert_jax.tasks import TASKS
from vlbert_jax.training import metrics, preemption
from vlbert_jax.training.config import CHOICES, COMMON_FIELDS, LIMITS, OTHER_NAMES, parse_command
from vlbert_jax.weights.model_card import stored_facts
from vlbert_jax.weights.stored_config import flat_config

TOY = "--config=tests/helpers/toy_task.py"
PRETRAIN = "--config=configs/pretrain.py"


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(TASKS, "toy", toy_task.REGISTERED)
    monkeypatch.chdir(ROOT)


def call(workdir, *args):
    return main.main(["main", f"--workdir={workdir}", *args])


@pytest.mark.parametrize(
    "args, line",
    [
        (
            ["--config=configs/pretrain.py:dem"],
            "unknown config variant 'dem'; there are: demo, .* mean 'demo'?",
        ),
        (["--config=configs/pretrian.py"], "No such file or directory: 'configs/pretrian.py'"),
        (["--config=pretrian:demo"], "unknown recipe 'pretrian'; the package has .*pretrain, .* mean 'pretrain'?"),
        (["--config=common"], "unknown recipe 'common'"),
        (["--config=elsewhere/vqa.py:base"], "no file elsewhere/vqa.py; the recipe .* is --config=vqa:base"),
        ([TOY, "--config.learnin_rate=1"], "no field 'learnin_rate'; the nearest name is 'learning_rate'"),
        ([TOY, "--config.optimizer.esp=1"], "no field 'optimizer.esp'; the nearest name is 'optimizer.eps'"),
        ([TOY, "--noconfig.reprot"], "no field 'reprot'; the nearest name is 'report'"),
        ([TOY, "--config.lr=1"], "no field 'lr'; its name here is 'learning_rate'"),
        ([TOY, "--config.optimizer.wd=1"], "no field 'optimizer.wd'; its name here is 'optimizer.weight_decay'"),
        ([TOY, "--config.epochs=1"], "its name here is 'total_steps'; an epoch is"),
        ([TOY, "--batch_size=16"], "--batch_size is a field of the config: write --config.batch_size=16"),
        ([TOY, "--bs", "16"], "--bs is a field of the config: write --config.batch_size=VALUE"),
        ([TOY, "vqa"], "unexpected argument 'vqa'; the recipe is given by --config="),
        ([TOY, "--config.total_steps=many"], "config.total_steps=many"),
        ([TOY, "--mode=test"], "should be one of <train|evaluate|probe|compile>"),
        ([TOY, "--wordkir=x"], "Unknown command line flag 'wordkir'"),
        ([], "--config=RECIPE.* is needed"),
        ([TOY, "--config.task=toi"], "no task 'toi'; the tasks are .*toy"),
        ([TOY, "--config.mesh.tensor=3"], "'tensor': 3.* do not fit 8 devices"),
        ([TOY, "--config.batch_size=12"], "12 examples per host do not divide among 8 devices"),
        ([TOY, "--config.grad_accumulation_steps=4"], "16 examples do not divide into 4 micro-batches on 8 devices"),
        ([TOY, "--config.matmul_precision=full"], "matmul_precision is 'full'; it can be default, high or highest"),
        ([TOY, "--config.profile_steps=(9,)"], r"profile_steps is \(9,\); it can be empty, or the first and"),
        ([TOY, "--config.optimizer.name=adam"], "optimizer.name is 'adam'"),
        ([TOY, "--config.data.vocab=gs://a/b"], "vocab=gs://a/b is an address; only config.data.data_dir may be one"),
        ([TOY, "--workdir=ftp://a/b"], "ftp:// is not supported; give a folder, gs://BUCKET/FOLDER or s3://"),
        ([TOY, "--mode=evaluate"], "nothing to evaluate: .* has no checkpoint"),
        ([TOY, "--mode=probe"], "config.task=toy has no probes; --mode=probe is for pre-training"),
        ([PRETRAIN, "--mode=probe"], "nothing to probe: .* has no checkpoint, and config.init is empty"),
        ([TOY, "--mode=compile", "--config.topology=v9:2x2"], "config.topology='v9:2x2'.* v5e:16x16"),
        ([TOY, "--mode=compile", "--config.task=toi"], "no task 'toi'"),
        ([TOY, "--config.compute_dtype=bf16"], "config.compute_dtype is 'bf16'; it can be bfloat16 or float32"),
        ([TOY, "--config.prng_impl=mt19937"], "mt19937"),
        ([TOY, "--config.poison_step=0"], "not finite at step 1; .* saved as step 0"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and value else None,
)
def test_errors_are_one_line(args, line, tmp_path, capsys):
    assert call(tmp_path / "run", *args) == 2
    assert not {"--mode=evaluate", "--mode=probe"} & set(args) or not (tmp_path / "run").exists()
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(line, errors[0]), errors[0]


def test_debug_raises_the_error(tmp_path, monkeypatch):
    monkeypatch.setenv("VLBERT_DEBUG", "1")
    with pytest.raises(ValueError, match="no field"):
        call(tmp_path, TOY, "--config.learnin_rate=1")


@pytest.mark.parametrize(
    "field, line",
    [
        ("batch_size=0", "config.batch_size is 0; it can be 1 or more"),
        ("opening.steps=-1", "config.opening.steps is -1; it can be 0 or more"),
        ("learning_rate=nan", "config.learning_rate is nan; it can be 0 or more"),
        ("data.mask_words=15", "config.data.mask_words is 15.0; it can be 0 to 1"),
        ("model.encoder.num_heads=5", "config.model.encoder.num_heads=5 does not divide hidden_size=128"),
        ("data.sequence_length=63", "sequence_length=63 needs 65 positions; model.encoder.max_positions=64"),
    ],
)
def test_invalid_fields_are_errors(field, line):
    """The error is reported before anything is created."""
    with pytest.raises(ValueError, match=line):
        parse_command(["main", PRETRAIN, f"--config.{field}"])


def test_limits_are_of_existing_fields():
    """The config of pre-training has all checked fields but one, which fine-tuning has."""
    recipes = PRETRAIN, "--config=configs/vqa.py"
    fields, other = (flat_config(parse_command(["main", recipe])[0].to_dict()) for recipe in recipes)
    assert LIMITS.keys() | CHOICES.keys() <= fields.keys() | (other.keys() & {"data.region_confidence"})
    assert COMMON_FIELDS.keys() | {field for field, _ in OTHER_NAMES.values()} <= fields.keys()
    assert not OTHER_NAMES.keys() & fields.keys()  # a field is never refused


def test_a_workdir_is_named_after_the_recipe():
    for given, name in (("configs/pretrain.py:base_e2e", "pretrain_base_e2e"), ("configs/vqa.py", "vqa")):
        assert parse_command(["main", f"--config={given}"])[1] == pathlib.Path("workdirs", name)


@pytest.mark.parametrize("flag", [["--config=pretrain:base_e2e"], ["--config", "pretrain:base_e2e"]], ids=len)
def test_a_recipe_has_a_name(flag, tmp_path, monkeypatch):
    expected = parse_command(["main", "--config=configs/pretrain.py:base_e2e"])
    monkeypatch.chdir(tmp_path)
    assert parse_command(["main", *flag]) == expected


def test_another_data_prep_on_the_path_is_refused(tmp_path, monkeypatch):
    """The folder in which a command is started comes first on the import path."""
    assert main.import_builder("build") is build
    for name in ("data_prep/__init__.py", "data_prep/build.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise AssertionError('this is the data_prep of another project')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "data_prep")
    with pytest.raises(ValueError, match=f"finds {tmp_path}/data_prep/__init__.py in place of {ROOT}/data_prep"):
        main.import_builder("build")
    assert main.build() == main.extract() == 2


@pytest.mark.parametrize("recipe", ["vqa", "pretrain:base_e2e", "pretrain:base_prec", "pretrain:large_e2e"])
def test_recipes_without_weights_are_errors(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["main", f"--config={recipe}"]) == 2
    said = capsys.readouterr().err
    assert "make demo" in said and "--config.init.bert=BERT" in said and not list(tmp_path.iterdir())
    # The error precedes the generation of the corpus.
    assert main.main(["main", f"--config={recipe}", "--config.init.checkpoint=absent.model"]) == 2
    assert "no weights at absent.model" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_demo_starts_from_random_weights():
    assert parse_command(["main", "--config=pretrain"]).config.init.scratch


def test_a_run_that_is_all_opening_says_so(tmp_path, capsys):
    line = "config.opening.steps=2 leaves no other update of total_steps=2: all belong to the opening"
    for steps, expected in ((2, True), (0, False), (1, False)):
        fields = [f"--config.opening.steps={steps}", "--config.opening.learning_rate=0.1", "--config.total_steps=2"]
        assert call(tmp_path / str(steps), TOY, *fields) == 0
        assert (line in capsys.readouterr().err.splitlines()) == expected


def test_help(capsys):
    """It lists the flags, the common fields, and every recipe with its variants."""
    assert main.main(["main", "--help"]) == 0
    text = capsys.readouterr().out
    for part in ("--workdir=DIR", "--print_config", "--list", "--config.init.checkpoint=workdirs/demo", *COMMON_FIELDS):
        assert part in text
    assert main.main(["main", "--list"]) == 0
    assert capsys.readouterr().out.strip() in text


def test_the_resolved_config_is_printed(tmp_path, capsys):
    assert call(tmp_path / "run", TOY, "--config.batch_size=24", "--print_config") == 0
    lines = dict(line.split(" = ") for line in capsys.readouterr().out.splitlines())
    assert lines["config.batch_size"] == "24" and lines["config.optimizer.name"] == "'adamw'"
    assert not (tmp_path / "run").exists()


def scores_of(results):
    return {result.metric_type: result.metric_value for result in results}


def test_trains_reports_and_evaluates(tmp_path, capsys):
    fields = ["--config.total_steps=6", "--config.report", "--config.data.num_threads=2"]
    assert call(tmp_path, TOY, *fields) == 0
    rows = metrics.read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [4, 6, 6]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "6 of 6 updates" in page and page.count("<h3") > 3  # a chart for each metric
    assert list((tmp_path / "tensorboard").iterdir())
    assert f"report: {tmp_path}/report/index.html" in capsys.readouterr().err
    training, results = stored_facts(tmp_path)  # of the model card
    assert training["updates"] == 6 and dict(loss=round(rows[-1]["loss"], 4)).items() <= scores_of(results).items()
    (tmp_path / "README.md").unlink()
    assert call(tmp_path, TOY, *fields, "--mode=evaluate") == 0
    assert f'"loss": {rows[-1]["loss"]}' in capsys.readouterr().out
    assert stored_facts(tmp_path) == (training, results)
    # The same workdir with another recipe is refused.
    assert call(tmp_path, TOY, *fields, "--config.learning_rate=0.5") == 2
    assert "these fields differ: learning_rate." in capsys.readouterr().err
    assert '"learning_rate": 0.01' in (tmp_path / "config.json").read_text()  # unchanged


def test_stopped_run_has_its_own_exit_status(tmp_path, monkeypatch):
    monkeypatch.setattr(preemption.Preemption, "reached", lambda self: True)
    assert call(tmp_path, TOY) == 143


def test_embedded_corpus_is_built_once(tmp_path, monkeypatch):
    made = []

    def build_scenes(data_dir):
        made.append(data_dir)
        for name in ("scenes/vocab.txt", "captions/1.0.0/manifest.json", "text/1.0.0/manifest.json"):
            (data_dir / name).parent.mkdir(parents=True, exist_ok=True)
            (data_dir / name).write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")

    monkeypatch.setattr(build, "build_scenes", build_scenes)
    config = toy_task.make_config(total_steps=1)
    config.model.encoder.vocab_size = 5
    config.data.update(
        embedded="scenes", data_dir=str(tmp_path / "data"), captions="captions", text="text", vocab="scenes/vocab.txt"
    )
    (tmp_path / "data" / "captions" / "incomplete.1").mkdir(parents=True)  # an interrupted build leaves this folder
    for _ in range(2):
        main.run(config, tmp_path / "run", "train")
    assert made == [tmp_path / "data"]
    config.data.embedded = "scnes"
    with pytest.raises(ValueError, match="'scnes'; it must be empty or one of scenes, scene_expl"):
        main.run(config, tmp_path / "run", "train")


def test_a_full_data_disk_is_reported(tmp_path, monkeypatch, capsys):
    """The error names the data folder, because the workdir can be on another disk."""

    def build_scenes(data_dir):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(build, "build_scenes", build_scenes)
    fields = [f"--config.data.data_dir={tmp_path}/data", "--config.data.embedded=scenes", "--config.data.vocab=x"]
    assert call(tmp_path / "run", TOY, *fields) == 2
    assert f"error: no space left on device while saving to {tmp_path}/data;" in capsys.readouterr().err


# A separate process runs the command line with the toy task registered.
PROGRAM = "import sys; from tests.helpers import toy_task; from vlbert_jax import main, tasks; "
PROGRAM += "tasks.TASKS['toy'] = toy_task.REGISTERED; sys.exit(main.main(sys.argv))"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_a_full_disk_ends_the_run(tmp_path):
    """A run on a small file system ends with one line and status 2; older checkpoints remain."""
    if (
        not shutil.which("unshare")
        or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode
    ):
        pytest.skip("this system does not support mount namespaces")
    run = f'{sys.executable} -c "{PROGRAM}" {TOY} --workdir={tmp_path}/run --config.keep_checkpoints=99 '
    run += "--config.checkpoint_every_steps=1 --config.total_steps=100 --config.eval_every_steps=0"
    evaluation = f"{run} --mode=evaluate"  # this reads the newest checkpoint, which must be complete
    steps = f"mount -t tmpfs -o size=300k tmpfs {tmp_path}; {run}; status=$?; "
    steps += f"mount -o remount,size=2m {tmp_path}; {evaluation}; exit $status"  # space has returned
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", steps],
        capture_output=True, text=True, cwd=ROOT, timeout=HANG_SECONDS, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("error: no space left on device while saving to ") == 1, done.stderr
    assert '"step": ' in done.stdout and '"step": 0' not in done.stdout
