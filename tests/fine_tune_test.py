"""Test `vlbert_jax.fine_tune`: from a folder of images to a model that answers, in one call."""

import json

import numpy as np
import pytest
from PIL import Image

import vlbert_jax

COLORS = dict(red=(220, 30, 30), blue=(40, 60, 220))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return a folder of twenty images of one color each."""
    folder = tmp_path_factory.mktemp("fine_tune") / "photos"
    folder.mkdir()
    for split, number in (("train", 16), ("val", 4)):
        lines = []
        for i in range(number):
            label = list(COLORS)[i % 2]
            noise = np.random.default_rng(i).integers(-20, 20, (48, 64, 3))
            name = f"{split}{i}.png"
            Image.fromarray(np.clip(COLORS[label] + noise, 0, 255).astype(np.uint8)).save(folder / name)
            lines.append(json.dumps(dict(image=name, label=label)) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


@pytest.mark.slow
def test_a_folder_becomes_a_model_that_answers(photos, capsys):
    run = dict(total_steps=20, eval_every_steps=20, warmup_steps=2, batch_size=8, report=False)
    predictor = vlbert_jax.fine_tune(photos, "demo-pretrain", photos.parent / "run", **run)
    assert predictor.scores["classify_accuracy"] == 1.0
    names = ["val0.png", "val1.png"]
    found = predictor.classify([photos / name for name in names])
    assert [answers[0].text for answers in found] == ["red", "blue"]
    capsys.readouterr()
    again = vlbert_jax.fine_tune(photos, "demo-pretrain", photos.parent / "run", **run)
    assert again.scores == predictor.scores and "already built" in capsys.readouterr().out


def test_errors_are_one_line(photos, tmp_path):
    assert vlbert_jax.fine_tune is vlbert_jax.fine_tune and callable(vlbert_jax.fine_tune)
    with pytest.raises(ValueError, match="there is no such folder; --source must have train.jsonl"):
        vlbert_jax.fine_tune(tmp_path / "nothing", "demo-pretrain", tmp_path / "run")
    with pytest.raises(ValueError, match="no field 'learning_rat'; the nearest name is 'learning_rate'"):
        vlbert_jax.fine_tune(photos, "demo-pretrain", tmp_path / "run", learning_rat=1e-3)
    with pytest.raises(ValueError, match="unknown config variant 'nothing'; there are: classify"):
        vlbert_jax.fine_tune(photos, "demo-pretrain", tmp_path / "run", kind="nothing")
