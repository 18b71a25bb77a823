"""A workdir of an earlier version can be continued, evaluated and used for predictions."""

import json
import logging
import shutil

import jax
import numpy as np
import pytest

import vlbert_jax
from data_prep.build import build_scenes
from tests.helpers.pretrain_case import shrunk
from tests.helpers.toy_runs import rows_of
from vlbert_jax.tasks import get_task
from vlbert_jax.training import sharding
from vlbert_jax.training.evaluate import evaluate_run
from vlbert_jax.training.loop import train

FIELDS = {
    "optimizer.schedule": "constant", "warmup_steps": 0, "opening.steps": 0, "losses.region_fixed_until": 0,
    "log_every_steps": 1, "eval_every_steps": 0, "checkpoint_every_steps": 0, "init.scratch": True, "report": False,
}  # fmt: skip
LACKING = ("matmul_precision", "keep_checkpoints", "allow_other_data")


def make_old(config):
    """Change a stored config in place to one of schema 1 that lacks some fields."""
    config["losses"]["normalise"] = config["losses"].pop("normalize")
    for name in LACKING:
        del config[name]
    for name in ("roi_operation", "mask_padding", "caffe_max_pool"):
        del config["model"]["region_head"][name]


@pytest.mark.slow
def test_a_workdir_of_an_earlier_version_is_usable(tmp_path, caplog):
    caplog.set_level(logging.INFO, "vlbert_jax")
    build_scenes(tmp_path / "data", num_train=40, num_val=10, num_train_stories=20, num_val_stories=8)
    pretrain = get_task("pretrain")

    def config(total_steps):
        return shrunk("demo", tmp_path / "data", **FIELDS, total_steps=total_steps)

    mesh = sharding.make_mesh(config(1).mesh, jax.devices()[:1])
    train(config(1), pretrain, tmp_path / "old", mesh)
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    for file in (*(tmp_path / "old" / "checkpoints").glob("*/meta/metadata"), tmp_path / "old" / "config.json"):
        stored = json.loads(file.read_text())
        make_old(stored.get("config", stored))
        for name in ("schema", "provenance"):
            stored.pop(name, None)
        file.write_text(json.dumps(stored))
        (file.parent.parent / "checksums.json").unlink(missing_ok=True)

    image = np.zeros((64, 96, 3), np.uint8)
    guesses = [vlbert_jax.load(tmp_path / name).fill(image, "a [MASK] ball") for name in ("new", "old")]
    assert guesses[0] == guesses[1]
    assert "config.json: the stored config lacks these fields; they mean" in caplog.text
    scores = [evaluate_run(config(1), pretrain, tmp_path / name, mesh) for name in ("new", "old")]
    assert scores[0] == scores[1]
    for name in ("new", "old"):
        train(config(2), pretrain, tmp_path / name, mesh)
    assert rows_of(tmp_path / "old") == rows_of(tmp_path / "new") and rows_of(tmp_path / "old")[-1]["step"] == 2
    assert "the values of this run count: allow_other_data=False, keep_checkpoints=3" in caplog.text
