"""Test configs stored by other versions: old names, missing fields and later schemas."""

import logging

import pytest

from vlbert_jax.tasks import get_task
from vlbert_jax.weights.stored_config import SCHEMA, completed, flat_config, upgraded

OLD = {
    "seed": 1,
    "losses": {"normalise": "examples", "mlm": True},
    "model": {"region_head": {"roi_size": 4}},
    "newly_initialised": ["a"],
}


def test_old_names_and_defaults(caplog):
    caplog.set_level(logging.INFO, "vlbert_jax")
    config = upgraded(OLD, None, "here")
    added = ("regression", "objects", "attributes", "features", "only_matched")
    assert config["losses"] == {"normalize": "examples", "mlm": True, "transport": 0.0} | dict.fromkeys(added, False)
    assert config["newly_initialized"] == ["a"] and "newly_initialised" not in config
    assert config["model"]["region_head"]["roi_operation"] == "align"
    assert config["matmul_precision"] == "default" and "data" not in config
    assert "here: the stored config lacks these fields; they mean matmul_precision='default'" in caplog.text
    assert "normalise" in OLD["losses"]  # the argument is unchanged
    assert upgraded(config, SCHEMA, "here") == config


@pytest.mark.parametrize(
    ("task", "metric", "now"),
    [
        ("vqa", "vqa_accuracy", ("answer", "answer_accuracy")),
        ("vcr", "vcr_accuracy_blind", ("choice", "choice_accuracy_blind")),
        ("refcoco", "refcoco_accuracy", ("region", "grounding_accuracy")),
        ("pretrain", "mlm_caption_accuracy", ("pretrain", "mlm_caption_accuracy")),
    ],
)
def test_tasks_and_metrics_of_earlier_versions(task, metric, now):
    config = upgraded(dict(task=task, best_metric=metric), 4, "here")
    assert (config["task"], config["best_metric"]) == now
    with pytest.raises(ValueError, match="'vqa' is 'answer' now; the tasks are pretrain, answer"):
        get_task("vqa")


def test_the_current_schema_keeps_old_names():
    assert upgraded(OLD, SCHEMA, "here") == OLD


def test_a_later_schema_is_refused():
    with pytest.raises(ValueError, match=f"here: the config has schema {SCHEMA + 1}, this version .* up to {SCHEMA}"):
        upgraded(OLD, SCHEMA + 1, "here")


def test_missing_fields_have_the_values_of_the_run(caplog):
    caplog.set_level(logging.INFO, "vlbert_jax")
    current = {"seed": 2, "mesh": {"new": 3}, "losses": {"normalize": "targets", "mlm": True}, "tuple": (1, 2)}
    config = completed(upgraded(OLD, None, "here"), current, "here")
    assert config["seed"] == 1 and config["losses"]["normalize"] == "examples"
    assert config["mesh"] == {"new": 3} and config["tuple"] == [1, 2]
    assert "the values of this run count: mesh.new=3, tuple=[1, 2]" in caplog.text
    assert "matmul_precision" not in config  # this recipe does not have the added field


def test_tuples_are_lists():
    assert flat_config({"a": {"b": (1,)}, "c": 2}) == {"a.b": [1], "c": 2}
