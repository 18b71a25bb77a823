"""Test that --help and --version of the commands import no slow package."""

import pathlib
import re
import subprocess
import sys

import pytest

import vlbert_jax

ROOT = pathlib.Path(__file__).parent.parent
COMMANDS = (
    "vlbert_jax.main", "vlbert_jax.predict", "vlbert_jax.app", "vlbert_jax.report", "vlbert_jax.convert",
    "data_prep.build", "data_prep.extract_regions",
)  # fmt: skip
# The import of each takes a large part of a second; JAX and TFDS take seconds.
SLOW = {"jax", "flax", "grain", "orbax", "tensorflow_datasets", "transformers", "cv2", "torch", "optax"}

PROGRAM = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as exit:
    assert not exit.code, exit.code
print("IMPORTED", *sorted({name.split(".")[0] for name in sys.modules}))
"""


def run(command: str, flag: str) -> tuple[str, set[str]]:
    """Return the output of a command and the top-level modules that it imports."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, command, flag], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    text, _, imported = done.stdout.rpartition("IMPORTED ")
    return text, set(imported.split())


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_no_slow_package(command, flag):
    text, imported = run(command, flag)
    assert f"python -m {command}" in text
    assert not imported & SLOW


@pytest.mark.parametrize("command", COMMANDS)
def test_version(command):
    text, imported = run(command, "--version")
    assert text == f"vlbert_jax {vlbert_jax.__version__}\n"
    assert not imported & SLOW


def test_the_package_names_the_commands():
    text, imported = run("vlbert_jax", "")
    assert all(f"python -m {command} " in text for command in COMMANDS)
    scripts = re.findall(r"^    (vlbert-\S+) =", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    assert len(scripts) == 7 and all(f" {script} " in text for script in scripts)
    assert not imported & SLOW


@pytest.mark.parametrize("folder", ["vlbert_jax", "data_prep"])
def test_importing_packages_imports_no_slow_package(folder):
    packages = [".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / folder).rglob("__init__.py")]
    assert folder in packages
    program = f"import sys, {', '.join(packages)}; assert not {SLOW} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_load_is_imported_when_it_is_used():
    from vlbert_jax.prediction import predictor

    assert vlbert_jax.load is predictor.load
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        vlbert_jax.laod  # noqa: B018


def test_one_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == vlbert_jax.__version__
