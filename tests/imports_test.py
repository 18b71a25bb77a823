"""Imports point downwards: main -> train, evaluate -> tasks -> model files -> batch."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ("vlbert_jax", "configs", "data_prep")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def dotted(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {dotted(path): path for path in FILES}
MODEL = {"geometry", "roi_align", "roi_pool", "resnet", "fast_rcnn", "proposals", "faster_rcnn", "encoder", "vlbert"}
MODEL = {f"vlbert_jax.{name}" for name in MODEL}
TASKS = {name for name in NAMES if name.startswith("vlbert_jax.tasks")}
SERVICES = {"report", "checkpoint", "optimizer", "data", "sequence", "transforms", "metrics", "hosts"}
SERVICES |= {"names", "weights", "caffe", "export", "warm_start", "vqa_accuracy"}
SERVICES |= {"pictures", "detector", "detector_names", "detector_weights", "plain_pickle"}
SERVICES |= {"boxes", "drawing", "attention_page", "command_line", "extractor", "whole_files"}
# From top to bottom. A module may import from the rows below; tasks and services also from their own.
ROWS = [
    {"vlbert_jax.predict"},
    {"vlbert_jax.predictor"},
    {"vlbert_jax.trained"},
    {"vlbert_jax.main", "vlbert_jax.convert"},
    {"vlbert_jax.compile_ahead"},
    {"vlbert_jax.train"},
    {"vlbert_jax.evaluate"},
    TASKS,
    {f"vlbert_jax.{name}" for name in SERVICES | {"sharding"}},
    {"vlbert_jax.vlbert", "vlbert_jax.faster_rcnn"},
    {"vlbert_jax.fast_rcnn"},
    {f"vlbert_jax.{name}" for name in ("encoder", "resnet", "roi_align", "roi_pool", "proposals", "geometry")},
    {"vlbert_jax.batch"},
]
LEVEL = {name: level for level, row in enumerate(ROWS) for name in row}
MAY_IMPORT_OWN_ROW = (7, 8)


def imported(name: str) -> set[str]:
    """Every module that the file imports, at any depth of its code; ours with their full names."""
    found = set()
    for node in ast.walk(ast.parse(NAMES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in NAMES else node.module)
    return found


def packages(name: str) -> set[str]:
    return {module.split(".")[0] for module in imported(name)}


def test_every_module_has_a_row():
    package = {name for name in NAMES if name.startswith("vlbert_jax.")}
    assert package <= set(LEVEL)


@pytest.mark.parametrize("name", sorted(LEVEL & NAMES.keys()))
def test_downwards(name):
    own = LEVEL[name] in MAY_IMPORT_OWN_ROW
    upwards = {x for x in imported(name) & LEVEL.keys() if LEVEL[x] < LEVEL[name] + (not own)}
    assert not upwards


@pytest.mark.parametrize("name", sorted((MODEL | {"vlbert_jax.batch"}) & NAMES.keys()))
def test_model_files_know_neither_config_nor_data_nor_files(name):
    ours = {"configs", "data_prep"}
    others = {"ml_collections", "absl", "tensorflow_datasets", "grain", "os", "pathlib", "io", "json"}
    assert not packages(name) & (ours | others)
    assert "open(" not in NAMES[name].read_text()


@pytest.mark.parametrize("name", [f"vlbert_jax.{x}" for x in ("compile_ahead", "train", "evaluate", "checkpoint")])
def test_loop_names_no_task(name):
    shared = {"tasks", "model", "examples", "losses", "downstream", "downstream_report"}
    tasks = {task.rpartition(".")[2] for task in TASKS} - shared
    assert not imported(name) & TASKS
    text = NAMES[name].read_text()
    assert tasks and not [task for task in tasks if task in text]


@pytest.mark.parametrize("name", sorted(name for name in NAMES if name.startswith("configs")))
def test_configs_import_only_ml_collections(name):
    assert packages(name) <= {"ml_collections", "difflib", "configs"}


@pytest.mark.parametrize("name", sorted(name for name in NAMES if name.startswith("data_prep")))
def test_data_prep_never_imports_jax(name):
    """But for what runs the detector. What needs no JAX is shared with it."""
    if name != "data_prep.extract_regions":
        ours = {module for module in imported(name) if module.partition(".")[0] == "vlbert_jax"}
        assert ours <= {f"vlbert_jax.{name}" for name in ("extractor", "pictures", "plain_pickle", "whole_files")}
        assert not packages(name) & {"jax", "flax"}


def test_builders_need_no_jax():
    program = "import sys, data_prep.build; assert not {'jax', 'flax', 'torch', 'tensorflow'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_nothing_imports_tensorflow(name):
    assert not packages(name) & {"tensorflow", "clu", "tensorflow_text"}
    assert "torch" not in packages(name) or name in ("vlbert_jax.weights", "vlbert_jax.export")
