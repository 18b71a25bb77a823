"""Subclasses of Task are checked when they are defined, and registered tasks are complete."""

import dataclasses

import numpy as np
import pytest

from vlbert_jax import tasks
from vlbert_jax.batch import Batch, NoTargets, empty_example, make_batch, padding
from vlbert_jax.tasks.base import Task, TextImageTask


def test_a_misspelled_override_is_an_error_that_names_the_method():
    with pytest.raises(TypeError, match=r"Wrong.loss_sum overrides nothing; is loss_sums meant\?"):
        type("Wrong", (Task,), dict(loss_sum=lambda self: None))
    with pytest.raises(TypeError, match="Wrong.titel overrides nothing"):
        type("Wrong", (TextImageTask,), dict(titel="x"))


def test_an_override_with_other_arguments_is_an_error():
    with pytest.raises(TypeError, match="Wrong.score takes self, model, batch; it must take .*, config"):
        type("Wrong", (Task,), dict(score=lambda self, model, batch: {}))


def test_helpers_and_overrides_are_allowed():
    class Right(TextImageTask):
        name = "right"

        def score(self, model, batch, config):
            """Return no scores."""
            return self._nothing()

        def _nothing(self):
            return {}

    assert Right().score(None, None, None) == {} and Right().overrides("score") and not Right().overrides("predict")


@pytest.mark.parametrize("name", tasks.TASKS)
def test_every_registered_task_is_complete(name):
    task = tasks.get_task(name)
    assert task.name == name and isinstance(task, Task)
    required = "build_model train_batches eval_batches batch_shapes loss_weights loss_counts loss_sums score"
    asked = " report_title report_examples example_from_text decode describe lines"
    # A run of several tasks answers as a model of one of them.
    mixture = name == "mixture"
    for method in (required + asked * (not mixture)).split():
        assert task.overrides(method), method
    assert (task.method or mixture) and task.official_names
    assert task.takes_choices == tasks.TASKS[name].takes_choices
    # Every field of the targets defines its padding.
    assert set(task.targets.paddings()) == set(task.targets.names())


def test_unknown_tasks_are_refused():
    with pytest.raises(ValueError, match="There is no task 'vqa2'; the tasks are pretrain, answer, choice, region"):
        tasks.get_task("vqa2")


def test_official_names_of_heads_belong_to_one_task():
    assert tasks.task_of_names(["final_mlp.2.weight", "final_mlp.0.LayerNorm.weight"]) == "answer"
    assert tasks.task_of_names(["final_mlp.2.weight"]) == "region"
    assert tasks.task_of_names(["final_mlp.1.weight"]) == tasks.task_of_names(["cnn_loss_reg.2.weight"]) == "choice"
    assert tasks.task_of_names(["vlbert.word_embeddings.weight"]) == "pretrain"


def test_empty_examples_have_the_padding_of_their_fields():
    @dataclasses.dataclass(frozen=True, eq=False)
    class Targets(NoTargets):
        label: object = padding(-7)

    like = dict(
        token_ids=np.ones((1, 2), np.int32), region_ids=np.ones((1, 2), np.int32), element_mask=np.ones((1, 2), bool),
        image_size=np.full((1, 2), 50, np.float32), label=np.int32(3), index=np.int32(5),
    )  # fmt: skip
    empty = empty_example(like, Targets)
    assert empty.keys() == like.keys()
    assert empty["label"] == -7 and empty["index"] == -1
    assert (empty["region_ids"] == -1).all() and not empty["element_mask"].any() and (empty["image_size"] == 1).all()
    with pytest.raises(KeyError, match="unknown"):
        empty_example(dict(unknown=np.zeros(2)), Targets)
    names = ("token_ids", "region_ids", "segment_ids", "position_ids", "element_mask", "unknown")
    with pytest.raises(TypeError, match="unknown"):
        make_batch(dict.fromkeys(names, np.zeros((1, 1, 2), np.int32)))


def test_every_field_of_a_batch_defines_its_padding():
    assert set(Batch.paddings()) == set(Batch.names()) - {"targets"}
