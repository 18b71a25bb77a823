"""Test that imports between packages point downwards; docs/concepts describes the table."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

from tests.helpers import GOLDEN, ROOT

FOLDERS = ("vlbert_jax", "configs", "data_prep")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]

GROUND = {"batch", "geometry", "files", "compiled", "command", "memory", "storage"}
# The packages and modules of vlbert_jax that each package or module may import, besides itself.
MAY_IMPORT = {
    "batch": set(),
    "geometry": set(),
    "files": set(),
    "compiled": set(),
    "command": {"files"},
    "memory": set(),
    "storage": {"files", "compiled"},
    "data": GROUND,
    "visualization": GROUND,
    "model": GROUND,
    "tasks": GROUND | {"data", "model", "visualization"},
    "weights": GROUND | {"model", "tasks"},
    "configs": set(),
    "training": GROUND | {"configs", "data", "model", "weights", "tasks.base"},
    "detector": GROUND | {"data.images", "model", "weights"},
    "prediction": GROUND | {"data", "visualization", "model", "tasks", "weights", "detector"},
    "examples": set(),
    "web": GROUND | {"data", "detector", "examples", "prediction", "tasks", "visualization", "weights"},
    "convert": GROUND | {"", "data.tokenizer", "tasks", "weights", "detector"},
    "predict": GROUND | {"", "data", "visualization", "tasks", "weights", "detector", "prediction"},
    "app": GROUND | {"", "detector", "web", "weights"},
    "report": {"", "command", "files", "storage", "tasks", "training", "visualization", "weights"},
    "main": GROUND | {"", "data", "tasks", "weights", "training"},
    "fine_tune": {"", "compiled", "files", "main", "memory", "prediction", "storage", "training", "weights"},
    "__main__": {""},
    "": {"command", "fine_tune", "prediction"},
}
DATA_PREP = {"", "command", "files", "compiled", "data.image_files", "data.region_files", "detector.fingerprint"}
DATA_PREP |= {"memory", "storage", "weights.safe_pickle", "data.class_scores", "data.overlap", "data.records"}
# Third-party packages that each package must not import.
NEVER = {
    "batch": {"flax", "grain", "tensorflow_datasets", "ml_collections"},
    "geometry": {"flax", "grain", "tensorflow_datasets", "ml_collections"},
    "files": {"flax", "grain", "tensorflow_datasets", "ml_collections"},
    "compiled": {"jax", "flax"},
    "command": {"jax", "flax"},
    "memory": {"jax", "flax"},
    "storage": {"jax", "flax", "grain", "tensorflow_datasets", "ml_collections"},
    "data": {"flax", "optax", "orbax"},
    "visualization": {"jax", "flax"},
    "model": {"grain", "tensorflow_datasets", "transformers", "tokenizers", "ml_collections"},
    "tasks": {"orbax"},
    "data_prep": {"jax", "flax"},
}
EXCEPTIONS = {
    "vlbert_jax.model.config": {"ml_collections"},  # it reads the sizes from the config of a run
    "data_prep.extract_regions": {"jax", "flax"},  # it runs the detector
}


def dotted(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {dotted(path): path for path in FILES}


def imported(name: str) -> set[str]:
    """Return every module that the file imports, at any depth of its code.

    Modules of this repository have their full names.
    """
    found = set()
    for node in ast.walk(ast.parse(NAMES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in NAMES else node.module)
    return found


def third_party(name: str) -> set[str]:
    return {module.split(".")[0] for module in imported(name)}


def package_of(name: str) -> str:
    """Return the package of a module of vlbert_jax, or the module itself if it has no package."""
    return name.split(".")[1] if "." in name else ""


MODULES = sorted(name for name in NAMES if name.split(".")[0] == "vlbert_jax")
BUILDERS = sorted(name for name in NAMES if name.split(".")[0] == "data_prep")


def test_every_package_is_in_the_table():
    assert {package_of(name) for name in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards(name):
    allowed = MAY_IMPORT[package_of(name)]
    for module in imported(name):
        if module.split(".")[0] != "vlbert_jax" or package_of(module) == package_of(name):
            continue
        inside = module.removeprefix("vlbert_jax").removeprefix(".")
        assert package_of(module) in allowed or inside in allowed, f"{name} imports {module}"


def test_no_import_cycle():
    below = {name: {x for x in imported(name) if x in NAMES} for name in NAMES}
    below["vlbert_jax"].remove("vlbert_jax.fine_tune")  # a command, which is imported when it is asked for
    while below:
        free = {name for name, needs in below.items() if not needs & below.keys() - {name}}
        assert free, f"there is an import cycle among {sorted(below)}"
        below = {name: needs for name, needs in below.items() if name not in free}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_third_party_packages(name):
    kind = package_of(name) if name.startswith("vlbert_jax") else name.split(".")[0]
    assert not third_party(name) & (NEVER.get(kind, set()) - EXCEPTIONS.get(name, set()))
    assert not third_party(name) & {"tensorflow", "clu", "tensorflow_text"}
    assert "torch" not in third_party(name) or name in ("vlbert_jax.weights.containers", "vlbert_jax.weights.export")


@pytest.mark.parametrize("name", [name for name in MODULES if package_of(name) == "model"])
def test_the_model_opens_no_file(name):
    assert "open(" not in NAMES[name].read_text()


@pytest.mark.parametrize("name", MODULES)
def test_only_main_runs_builders(name):
    builders = {module for module in imported(name) if module.split(".")[0] in ("data_prep", "configs")}
    assert not builders or name in ("vlbert_jax.main", "vlbert_jax.fine_tune")


TASKS = sorted(path.name for path in (ROOT / "vlbert_jax/tasks").iterdir() if (path / "task.py").exists())


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("vlbert_jax.tasks.")])
def test_a_task_imports_no_other_task(name):
    own = name.split(".")[2]
    others = {module.split(".")[2] for module in imported(name) if module.startswith("vlbert_jax.tasks.")}
    assert not (others & set(TASKS)) - {own}


GENERIC = [name for name in MODULES if package_of(name) not in ("tasks", "main")]


@pytest.mark.parametrize("name", GENERIC)
def test_only_the_registry_names_tasks(name):
    text = NAMES[name].read_text()
    assert not [task for task in ("vqa", "vcr", "refcoco") if task in text.lower()]
    assert not {module for module in imported(name) if module.split(".")[:2] == ["vlbert_jax", "tasks"]} - {
        "vlbert_jax.tasks", "vlbert_jax.tasks.base"
    }


@pytest.mark.parametrize("name", sorted(name for name in NAMES if name.startswith("configs")))
def test_configs_import_only_ml_collections(name):
    assert third_party(name) - sys.stdlib_module_names <= {"ml_collections", "vlbert_jax"}
    assert {module for module in imported(name) if module.startswith("vlbert_jax")} <= {"vlbert_jax.configs"}


@pytest.mark.parametrize("name", BUILDERS)
def test_imports_of_builders(name):
    allowed = DATA_PREP | ({"detector"} if name == "data_prep.extract_regions" else set())
    for module in imported(name):
        if module.split(".")[0] == "vlbert_jax":
            inside = module.removeprefix("vlbert_jax").removeprefix(".")
            assert inside in allowed or package_of(module) in allowed, f"{name} imports {module}"


def test_builders_need_no_jax():
    program = "import sys, data_prep.build; assert not {'jax', 'flax', 'torch', 'tensorflow'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


TESTS = {dotted(path): path for path in (ROOT / "tests").rglob("*.py") if not path.is_relative_to(GOLDEN)}


def strings(path):
    """Return the line and value of each string literal in a file."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
    return [(node.lineno, node.value) for node in nodes if isinstance(node.value, str)]


@pytest.mark.parametrize("name", sorted(TESTS))
def test_tests_share_only_helpers(name):
    """Test files, and programs for subprocesses in their strings, import no other test file.

    The campaigns of tests/faults are programs, which their short forms call.
    """
    campaigns = ("tests.faults",) if name.startswith(("tests.faults.", "tests.reliability")) else ()
    shared = ("tests.helpers", *campaigns)
    tree = ast.parse(TESTS[name].read_text())
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)):
        modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    for module in modules:
        assert not module.endswith("_test")
        assert not module.startswith("tests.") or module.startswith(shared)
    for line, text in strings(TESTS[name]):
        assert not re.search(r"\b(from|import) [\w.]*_test\b", text), f"line {line}"


FOLDERS_OF_TESTS = sorted({path.parent.relative_to(ROOT / "tests") for path in TESTS.values()})


@pytest.mark.parametrize("folder", FOLDERS_OF_TESTS, ids=str)
def test_test_folders_mirror_the_packages(folder):
    """Each test folder has a package, such as vlbert_jax/model for tests/model."""
    own = folder.parts[:1] in (("data_prep",), ("launch",), ("experiments",))
    assert folder.parts in (("helpers",), ("faults",)) or (ROOT / ("" if own else "vlbert_jax") / folder).is_dir()
    assert (ROOT / "tests" / folder / "__init__.py").exists()


@pytest.mark.parametrize("name", sorted(TESTS))
def test_programs_in_strings_import_existing_names(name):
    """Programs for subprocesses, which linters do not check, import existing names."""
    recipes = {f"vlbert_jax.{module}": path for module, path in NAMES.items() if module.startswith("configs.")}
    modules, packages = NAMES | TESTS | recipes, "(?:vlbert_jax|data_prep|tests)"
    for line, text in strings(TESTS[name]):
        named = re.findall(rf"\bfrom ({packages}[\w.]*) import ([\w, ]+)", text)
        found = {module for module, _ in named} | set(re.findall(rf"\bimport (?:\w+, )*({packages}[\w.]*)", text))
        found |= set(re.findall(rf"-m ({packages}[\w.]*)", text))
        assert found <= modules.keys(), f"line {line}"
        for module, names in named:
            for one in names.split(", "):
                assert f"{module}.{one}" in modules or one in modules[module].read_text(), f"line {line}"


STATE = """
import importlib, os, pkgutil, sys, warnings
import PIL.Image
PIL.Image.MAX_IMAGE_PIXELS = None  # as some users set it
# These libraries may change global state at import, so they are imported first.
import absl.flags, cv2, flax.nnx, gradio, grain, jax, optax, orbax.checkpoint, tensorboardX, transformers
import tensorflow_datasets
state = lambda: (dict(os.environ), PIL.Image.MAX_IMAGE_PIXELS, list(warnings.filters), cv2.getNumThreads(),
                 sys.excepthook, dict(jax.config.values))
before = state()
for root in ("vlbert_jax", "data_prep"):
    for module in pkgutil.walk_packages(importlib.import_module(root).__path__, root + "."):
        importlib.import_module(module.name)
for old, new in zip(before, state()):
    assert old == new, (old, new)
"""


def test_importing_changes_no_global_state():
    result = subprocess.run([sys.executable, "-c", STATE], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
