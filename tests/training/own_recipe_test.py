"""The recipe of user-supplied data reads the manifest of the table and the config of the checkpoint."""

import json

import pytest

from configs import own
from vlbert_jax.tasks import get_task
from vlbert_jax.training.config import parse_command
from vlbert_jax.training.recipes import recipe_folder, with_recipe_paths

COMMON = dict(images_per_example=1, text_words=9, features=False, images=True, max_regions=7)
TASKS = {
    "label": COMMON | dict(form="label", kind="classify", loss="softmax", num_labels=3, labels="own/photos_labels.txt",
                           positive="b"),
    "value": COMMON | dict(form="value", kind="classify", loss="squared", num_labels=2, value_means=[1.0, 2.0],
                           value_deviations=[3.0, 4.0]),
    "pair": COMMON | dict(form="label", kind="classify", loss="softmax", num_labels=2, labels="own/photos_labels.txt",
                          images_per_example=2, features=True, images=False),
    "answer": COMMON | dict(form="question", kind="answer", num_answers=12, answers="own/photos_answers.txt"),
    "choice": COMMON | dict(form="choices", kind="choice", num_choices=3),
    "texts": COMMON | dict(form="texts", kind="match"),
    "boxes": COMMON | dict(form="boxes", kind="region"),
}  # fmt: skip


def write_table(folder, task, name: str = "own/photos", examples: int = 100):
    place = folder / name / "1.0.0"
    place.mkdir(parents=True)
    (place / "manifest.json").write_text(json.dumps(dict(task=task)))
    splits = [("train_landscape", examples - 10), ("train_portrait", 10), ("val_landscape", 5)]
    info = dict(splits=[dict(name=split, shardLengths=[str(number)]) for split, number in splits])
    (place / "dataset_info.json").write_text(json.dumps(info))
    (folder / "own/photos_labels.txt").write_text("a\nb\nc\n"[: 2 * task.get("num_labels", 3)])
    return folder / name


@pytest.mark.parametrize("name", TASKS)
def test_a_table_says_kind_sizes_and_lengths(name, tmp_path):
    task = TASKS[name]
    config = own.get_config(f"@{write_table(tmp_path, task)}@")
    assert config.task == task["kind"]
    assert config.data.texts == "own/photos" and config.data.images == "own_images/photos"
    assert config.data.data_dir == str(tmp_path)
    # 100 examples are 4 batches of 32, and ten epochs are fewer than the least number of updates.
    assert (config.total_steps, config.eval_every_steps, config.early_stopping) == (200, 10, 5)
    assert config.data.max_regions == 7 and config.data.sequence_length == 2 * 9 + 8 + 8
    assert config.data.features == ("precomputed" if name == "pair" else "image")
    metrics = dict(label="classify_accuracy", value="classify_squared_error", pair="classify_accuracy",
                   answer="answer_accuracy", choice="choice_accuracy", texts="mean_recall",
                   boxes="grounding_accuracy")  # fmt: skip
    assert config.best_metric == metrics[name]
    if name == "value":
        assert config.data.value_means == (1, 2) and config.data.value_deviations == (3, 4)
    if name == "label":
        assert config.data.labels == "own/photos_labels.txt" and config.data.positive == "b"
    batch = get_task(config.task).batch_shapes(config)
    assert batch.image_size.shape == (32, 2 if name in ("pair", "texts") else 1, 2)
    outputs = {"label": 3, "value": 2, "pair": 2, "answer": 12}
    if name in outputs:
        found = batch.targets.answer_targets if name == "answer" else batch.targets.label_targets
        assert found.shape == (32, outputs[name])
    else:
        assert batch.token_ids.shape[1] == dict(texts=4, choice=3, boxes=1)[name]
        assert name != "boxes" or config.data.train_boxes == config.data.eval_boxes == "listed"


def test_images_with_texts_teach_captions_where_they_are_asked_for(tmp_path):
    config = own.get_config(f"caption@{write_table(tmp_path, TASKS['texts'])}@demo-pretrain")
    assert config.task == "caption" and config.best_metric == "caption_accuracy"
    # The vocabulary of the checkpoint is small, so that a word can have more pieces.
    assert config.data.text_length == 4 * 9 + 8 and config.data.sequence_length == 4 * 9 + 8 + 8
    assert get_task("caption").batch_shapes(config).token_ids.shape == (32, 1, 53)
    assert own.get_config(f"@{write_table(tmp_path, TASKS['texts'], 'own/more')}@demo-pretrain").model.encoder.pooler


def test_epochs_of_a_large_table(tmp_path):
    config = own.get_config(f"@{write_table(tmp_path, TASKS['label'], examples=32_000)}")
    assert (config.total_steps, config.warmup_steps, config.eval_every_steps) == (10_000, 1_000, 1_000)


def test_a_checkpoint_says_the_sizes_of_the_model(tmp_path):
    table = write_table(tmp_path, TASKS["label"])
    config = own.get_config(f"@{table}@demo-pretrain")
    assert config.model.encoder.hidden_size == 128 and config.model.region_head.widths == (32, 32, 32, 64)
    assert config.data.image_scale == (64, 96) and config.learning_rate == 1e-3
    assert config.data.vocab.endswith("demo-pretrain/vocabularies/vocab")
    assert config.data.sequence_length == 4 * 9 + 8 + 8  # a small vocabulary has more pieces in a word
    long = own.get_config(f"@{write_table(tmp_path, TASKS['label'] | dict(text_words=30), 'own/long')}@demo-pretrain")
    assert long.data.sequence_length + 2 == long.model.encoder.max_positions == 64
    stored = json.loads(config.to_json_best_effort())
    run = tmp_path / "run"
    (run / "checkpoints/10").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(stored))
    for place in (run, run / "checkpoints/10"):
        again = own.get_config(f"@{table}@{place}")
        assert again.to_dict() == config.to_dict()  # the run is continued by the same command without a checkpoint
    assert own.get_config(f"@{table}@nowhere.model").model.encoder.hidden_size == 768


def test_flags_complete_the_recipe(tmp_path):
    write_table(tmp_path, TASKS["value"])
    flags = ["main", "--config=own", f"--config.data.data_dir={tmp_path}", "--config.data.texts=own/photos"]
    assert with_recipe_paths(flags)[1] == f"--config={recipe_folder()}/own.py:@{tmp_path}/own/photos@"
    command = parse_command([*flags, "--config.batch_size=16"])
    assert command.config.losses.classify == "squared" and command.config.batch_size == 16
    assert command.workdir.name == "own"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    completed = with_recipe_paths([*flags, f"--workdir={tmp_path}/run"])[1]
    assert completed.endswith(f"@{tmp_path}/run")
    with_checkpoint = with_recipe_paths([*flags[:1], "--config", "configs/own.py:classify", *flags[2:],
                                         "--config.init.checkpoint", "x.model"])  # fmt: skip
    assert with_checkpoint[2].endswith(f"own.py:classify@{tmp_path}/own/photos@x.model")
    others = ["main", "--config=vqa:base", "--config.data.texts=own/photos"]
    assert with_recipe_paths(others)[1] == f"--config={recipe_folder()}/vqa.py:base"


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(ValueError, match="no records in .*own/none; build them: python -m data_prep.build own"):
        own.get_config(f"@{tmp_path}/own/none")
    with pytest.raises(ValueError, match=f"own --source=FOLDER '--corpus=my photos' --data_dir={tmp_path}$"):
        own.get_config(f"@{tmp_path}/own/my photos@")
    table = write_table(tmp_path, {})
    with pytest.raises(ValueError, match="is not a table of your own data"):
        own.get_config(f"@{table}")
    with pytest.raises(ValueError, match="unknown config variant 'clasify'.*Did you mean 'classify'"):
        own.get_config("clasify")
    assert own.get_config().task == "classify"
