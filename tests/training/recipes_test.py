"""Recipes by name and by path, from any folder; recipes of users that import those of the package."""

import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT
from vlbert_jax.training.recipes import list_recipes, recipe_path, variants_of


@pytest.mark.parametrize("name", ["vqa", "vqa.py", "configs/vqa", "configs/vqa.py"])
@pytest.mark.parametrize("variant", ["", ":base"])
def test_names_and_paths_are_the_recipe_in_any_folder(name, variant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipe_path(name + variant) == f"{ROOT}/configs/vqa.py{variant}"


def test_a_file_here_is_preferred(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    for file in ("configs/vqa.py", "mine.py"):
        (tmp_path / file).touch()
        assert recipe_path(f"{file}:base") == recipe_path(f"{file[:-3]}:base") == f"{file}:base"
    assert recipe_path("elsewhere/mine") == "elsewhere/mine.py"


def test_every_variant_is_listed_with_a_line():
    lines = list_recipes().splitlines()
    for recipe in ("pretrain", "vqa", "vcr", "refcoco"):
        for variant, about in variants_of(recipe).items():
            assert about.endswith(".")
            assert [line for line in lines if line.startswith(f"  {recipe}:{variant}") and line.endswith(about)]


# The command of an editable install: the checkout is not on the import path.
PROGRAM = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import vlbert_jax.main; sys.path.remove({str(ROOT)!r}); "
PROGRAM += "sys.exit(vlbert_jax.main.main(sys.argv))"


@pytest.mark.parametrize("package", ["configs", "vlbert_jax.configs", "nowhere"])
def test_a_recipe_of_a_user_imports_the_recipes(package, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/long.py").write_text(
        f"from {package} import vqa\n\n\ndef get_config():\n    config = vqa.base()\n"
        "    config.total_steps = 7\n    return config\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, "--config=mine/long", "--print_config"], cwd=tmp_path, text=True,
        capture_output=True, env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    if package == "nowhere":
        assert done.returncode == 2 and done.stderr == "error: No module named 'nowhere'\n"
    else:
        assert done.returncode == 0 and "config.total_steps = 7\n" in done.stdout, done.stderr
