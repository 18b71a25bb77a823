"""Scores of captions equal the recorded ones of pycocoevalcap; without it or Java a line says what is missing."""

import importlib.util
import json
import shutil

import pytest

from tests.helpers.golden_folders import task_folders
from vlbert_jax.tasks.caption import scores

FOLDERS = task_folders("coco_captions")
CASES = [(folder, path.name) for folder in FOLDERS for path in sorted((folder / "results").glob("*.json"))]
NAMES = {f"bleu_{n}": f"Bleu_{n}" for n in range(1, 5)} | dict(meteor="METEOR", rouge_l="ROUGE_L", cider="CIDEr")
INSTALLED = importlib.util.find_spec("pycocoevalcap") and shutil.which("java")


def test_there_are_recordings():
    assert CASES


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="requires the extra `captions` and Java")
@pytest.mark.filterwarnings("ignore")  # of the library, which leaves pipes open
@pytest.mark.parametrize("folder, results", CASES, ids=str)
def test_scores_equal_the_recorded_ones(folder, results):
    captions = scores.read_results(folder / "results" / results)
    references = scores.read_references(folder / "annotations/captions_val2014.json")
    expected = json.loads((folder / "expected.json").read_text())[results]
    assert scores.caption_scores(captions, references) == {name: expected[key] for name, key in NAMES.items()}


def test_what_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "The package pycocoevalcap and the program java cannot be found." in scores.missing_programs()
    with pytest.raises(ImportError, match="the program java cannot be found"):
        scores.caption_scores({1: "a"}, {1: ["a"]})
    folder = FOLDERS[0]
    files = [f"--annotations={folder / 'annotations/captions_val2014.json'}", f"--results={folder}/results/usual.json"]
    assert scores.main(files) == 2
    assert capsys.readouterr().err.startswith("error: The package pycocoevalcap and the program java cannot be found.")


def test_bad_files_are_one_line(tmp_path, capsys):
    (path := tmp_path / "results.json").write_text('[{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}]')
    with pytest.raises(ValueError, match="two captions of image 1"):
        scores.read_results(path)
    path.write_text('{"image_id": 1}')
    with pytest.raises(ValueError, match="is no list of image_id and caption"):
        scores.read_results(path)
    with pytest.raises(ValueError, match="has no list `annotations`"):
        scores.read_references(path)
    with pytest.raises(ValueError, match="1 images have no reference captions, such as 2"):
        scores.caption_scores({1: "a", 2: "b"}, {1: ["a"]})
