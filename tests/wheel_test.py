"""Test a wheel installed outside the checkout: its files, its commands and a training run."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

import vlbert_jax
from tests.helpers import HANG_SECONDS, ROOT
from vlbert_jax.weights.shipped import ASSETS

SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "vlbert_jax", "configs", "examples", "data_prep")
COMMANDS = {
    "vlbert-train": "vlbert_jax.main",
    "vlbert-predict": "vlbert_jax.predict",
    "vlbert-app": "vlbert_jax.app",
    "vlbert-report": "vlbert_jax.report",
    "vlbert-convert": "vlbert_jax.convert",
    "vlbert-build": "data_prep.build",
    "vlbert-extract": "data_prep.extract_regions",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:  # the build writes files to its folder, so the folder is a copy
        path = ROOT / name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--wheel-dir", target, source], check=True)
    (path,) = target.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> pathlib.Path:
    """Install the wheel and return its folder; its dependencies are those of the tests."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", target, wheel], check=True)
    return target


@pytest.fixture
def call(installed, tmp_path):
    """Return a function that runs a command in an empty folder and returns its output."""

    def run(*command: str, status: int = 0) -> str:
        environment = os.environ | {"PYTHONPATH": str(installed), "PATH": f"{installed}/bin:{os.environ['PATH']}"}
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=HANG_SECONDS
        )
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stderr

    return run


def test_every_file_is_in_the_wheel(wheel):
    expected = set()
    mapped = {name: f"vlbert_jax/{name}" for name in ("configs", "examples")}
    for folder, place in (dict(vlbert_jax="vlbert_jax", data_prep="data_prep") | mapped).items():
        for path in (ROOT / folder).rglob("*"):
            no_data = path.suffix == ".pyc" or (path.suffix == ".md" and not path.is_relative_to(ASSETS))
            if path.is_file() and not no_data:
                expected.add(f"{place}/{path.relative_to(ROOT / folder).as_posix()}")
    expected.remove("vlbert_jax/examples/__init__.py")  # only a checkout has it
    assert {"vlbert_jax/visualization/report.css", "vlbert_jax/py.typed"} <= expected
    assert "vlbert_jax/assets/demo-vqa/model.safetensors" in expected
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_the_installed_package_is_the_wheel(call, installed):
    program = "import data_prep, vlbert_jax; print(vlbert_jax.__file__, data_prep.__file__)"
    paths = call(sys.executable, "-c", program).split()
    assert paths == [f"{installed}/vlbert_jax/__init__.py", f"{installed}/data_prep/__init__.py"]


def test_the_installed_package_has_the_example(call):
    program = "import os; from vlbert_jax import examples; print(*sorted(os.listdir(next(iter(examples.__path__)))))"
    assert call(sys.executable, "-c", program) == "gallery gallery_boxes scene.jpg scene.json\n"


@pytest.mark.parametrize("script, module", COMMANDS.items())
def test_console_scripts(script, module, call):
    assert call(script, "--version") == f"vlbert_jax {vlbert_jax.__version__}\n"
    assert call(script, "--help") == call(sys.executable, "-m", module, "--help")


def test_a_shipped_model_answers_outside_a_checkout(call, tmp_path, monkeypatch):
    """The command keeps its compiled programs among the user's caches."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # small programs compile in less than it
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    files = ("--image=examples/scene.jpg", "--boxes=examples/scene.json")
    answer = call("vlbert-predict", "--checkpoint=demo-vqa", *files, "--question", "what color is the large fish?")
    assert "small demonstration model" in answer and "orange" in answer.splitlines()[3]
    assert list((tmp_path / "caches/vlbert_jax").glob("programs-*/*-cache"))


@pytest.mark.slow
def test_a_run_outside_a_checkout(call, tmp_path):
    line = call("vlbert-train", "--config=elsewhere/pretrain.py:demo", status=2)
    assert "there is no file elsewhere/pretrain.py; the recipe that comes with the package is --config=pretrain" in line
    (tmp_path / "mine.py").write_text("from vlbert_jax.configs import vqa\n\nget_config = vqa.base\n")
    assert "config.task = 'answer'" in call("vlbert-train", "--config=mine.py", "--print_config")
    call("vlbert-build", "scenes", "--num_train=40", "--num_val=10")
    fields = ("--config.total_steps=2", "--config.batch_size=16", "--config.opening.steps=1")
    call("vlbert-train", "--config=configs/pretrain:demo", *fields)
    assert "<style>" in (tmp_path / "workdirs/pretrain_demo/report/index.html").read_text()
