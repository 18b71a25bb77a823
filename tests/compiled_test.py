"""Test where commands keep compiled programs."""

import os
import pathlib

import pytest

from vlbert_jax.compiled import FOLDER, MOST, keep_programs


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Return a home without variables of JAX or of caches."""
    for name in (FOLDER, MOST, "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")  # so that the value of before comes back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_cache_folder_of_the_user(environment, monkeypatch):
    keep_programs()
    folder = pathlib.Path(os.environ[FOLDER])
    assert folder.parent == environment / ".cache/vlbert_jax" and folder.is_dir()
    assert int(os.environ[MOST]) == 2**30
    monkeypatch.delenv(FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(environment / "caches"))
    keep_programs()
    assert os.environ[FOLDER] == str(environment / "caches/vlbert_jax" / folder.name)


def test_a_folder_of_the_environment_stays(environment, monkeypatch):
    monkeypatch.setenv(FOLDER, "elsewhere")
    keep_programs()
    assert os.environ[FOLDER] == "elsewhere" and MOST not in os.environ


def test_without_a_place_nothing_is_kept(environment):
    (environment / ".cache").write_text("a file where the folder would be")
    keep_programs()
    assert FOLDER not in os.environ
