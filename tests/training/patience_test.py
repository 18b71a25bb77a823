"""Early stopping ends a run after evaluations without a better score, and a restart does not go on."""

import math

import ml_collections
import pytest

from tests.helpers import toy_task
from tests.helpers.toy_runs import rows_of, task_with, two_devices
from vlbert_jax.training import metrics
from vlbert_jax.training.loop import train
from vlbert_jax.training.patience import Patience, patience_of
from vlbert_jax.training.run_report import about_run
from vlbert_jax.weights.orbax import newest_step


def config_of(limit: int, metric: str) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(dict(early_stopping=limit, best_metric=metric))


@pytest.mark.parametrize("metric, values, ended_at, best", [
    ("accuracy", [0.1, 0.3, 0.3, 0.2, 0.9], 4, 2),
    ("squared_error", [3.0, 2.0, 2.5, 1.0, 1.1, 1.2], 6, 4),
    ("accuracy", [0.1, math.nan, 0.05, None, 0.2, 0.1], None, 5),  # a missing score does not count
])  # fmt: skip
def test_evaluations_in_a_row_without_a_better_score(metric, values, ended_at, best):
    patience = Patience(config_of(2, metric))
    for step, value in enumerate(values, 1):
        assert not patience.ended
        patience.count(step, {} if value is None else {metric: value})
        patience = Patience(config_of(2, metric), patience.stored)  # as a restart has it
        if patience.ended:
            assert step == ended_at
            break
    assert patience.ended == (ended_at is not None) and patience.step == best
    endless = Patience(config_of(0, metric), dict(best=1.0, step=1, since=9))
    assert not endless.ended


def test_a_run_ends_early_and_stays_ended(tmp_path):
    config = toy_task.make_config(
        early_stopping=2, best_metric="constant_accuracy", eval_every_steps=3, checkpoint_every_steps=0,
        log_every_steps=100,
    )  # fmt: skip

    def score(model, batch, config):
        return toy_task.toy.score(model, batch, config) | {"constant_accuracy": (batch.boxes.sum() * 0 + 1, 1.0)}

    task = task_with(score=score)
    train(config, task, tmp_path, two_devices())
    rows = rows_of(tmp_path)
    assert [(row["step"], row["split"]) for row in rows] == [(3, "val"), (6, "val"), (9, "val"), (9, "train")]
    assert newest_step(tmp_path) == 9
    train(config, task, tmp_path, two_devices())
    assert rows_of(tmp_path) == rows
    history = metrics.read_rows(tmp_path / "metrics.jsonl")
    assert patience_of(config, history).stored == dict(best=1.0, step=3, since=2)
    status = about_run(config, task, tmp_path, 9, history).status
    assert status.startswith("Finished: 9 of 20") and "It ended early: 2 evaluations in a row" in status
    config.early_stopping = 3  # with more patience it continues
    train(config, task, tmp_path, two_devices())
    assert rows_of(tmp_path)[-1]["step"] == 12
