"""Your own data: one recipe for every kind of `python -m data_prep.build own` (docs/own_data.md).

    python -m data_prep.build own --source=photos
    python -m vlbert_jax.main --config=configs/own.py --config.data.texts=own/photos --workdir=DIR \\
        --config.init.checkpoint=PRETRAINED

The manifest of the table that `config.data.texts` names says the kind, the labels and the lengths; `own.py:KIND`
overrides the kind. Variants: classify (default without a table), answer, choice, region, match, caption (for the data
of match that have `texts`). PRETRAINED is any pre-trained model; where it has a config.json, as workdirs and converted
weights do, the sizes of the model and its vocabulary are those of PRETRAINED, else those of VL-BERT base. Ten epochs of
32 examples; a run ends after five evaluations without a better score.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex

import ml_collections

from vlbert_jax.configs import caption as caption_recipes
from vlbert_jax.configs import classify as classify_recipes
from vlbert_jax.configs import common, refcoco, retrieval, vcr, vqa

EPOCHS = 10
MOST_EVALUATIONS = 20  # of a run
FEWEST_STEPS = 200
NARROW = 256  # encoders up to this width learn with a larger rate
WORD_PIECES = 2  # of a word, twice as many in a vocabulary of at most SMALL_VOCABULARY
SMALL_VOCABULARY = 5_000
# Best metric of classification by its loss.
METRICS = dict(softmax="classify_accuracy", sigmoid="classify_micro_f1", squared="classify_squared_error")
MODEL = ("architecture", "encoder", "two_stream", "switches", "region_head", "feature_size")
NUMBERS = ("num_labels", "num_answers", "num_choices")
PIPELINE = ("image_scale", "features", "caffe_resize", "geometry_on_device")


# --- The kinds ------------------------------------------------------------------------------------------------------


def classify() -> ml_collections.ConfigDict:
    """Classes, labels or numbers of images and texts, read at a [MASK] behind the text."""
    config = classify_recipes.fields()
    config.model.num_labels = 1
    config.model.read = "mask"  # its hidden layer is pre-trained; a pooler is not, in VL-BERT
    return _of_own_data(config)


def answer() -> ml_collections.ConfigDict:
    """Answers to questions, from the most frequent ones of the training examples."""
    config = _of_own_data(vqa.base())
    config.data.answers = "own/own_answers.txt"
    config.data.scorer = "own"
    return config


def choice() -> ml_collections.ConfigDict:
    """The right one of some texts for an image."""
    config = _of_own_data(vcr.q2a_base())
    config.losses.update(dict(choice="softmax", object=0.0))
    config.data.num_choices = 4  # texts of an example
    config.optimizer.update(dict(name="adamw", schedule="triangle"))
    return config


def region() -> ml_collections.ConfigDict:
    """The region of an image that a text means: one of the given boxes, or of the detected regions."""
    config = _of_own_data(refcoco.visual7w())
    config.data.scorer = ""
    return config


def match() -> ml_collections.ConfigDict:
    """Texts and images that find each other, or images of a gallery that are found by an image with a text."""
    config = _of_own_data(retrieval.flickr30k())
    config.data.one_orientation = False  # other images for a text must exist, also for the only upright one
    return config


def caption() -> ml_collections.ConfigDict:
    """Captions, learned from images with their texts: `own.py:caption` for the data of `match`."""
    config = _of_own_data(caption_recipes.coco())
    config.data.scorer = "own"
    return config


def _of_own_data(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Set the fields of every kind: tables, and a schedule without a table's size."""
    config.batch_size = 32
    config.grad_accumulation_steps = 1
    config.total_steps = FEWEST_STEPS
    config.learning_rate = 5e-5
    config.warmup_steps = FEWEST_STEPS // 10
    config.eval_every_steps = FEWEST_STEPS // 10
    config.early_stopping = 5
    config.optimizer.clip_norm = 1.0
    config.model.train_region_head = False
    config.data.update(
        dict(
            texts="own/own",
            images="own_images/own",
            train_split="train",
            eval_split="val",
            features="image",
            flip_probability=0.0,  # an image may show writing, or a text say left and right
            even_regions=False,
        )
    )
    return config


VARIANTS = (classify, answer, choice, region, match, caption)


# --- The table and the checkpoint -----------------------------------------------------------------------------------


def read_task(table: str) -> dict:
    """Return what the manifest of a table says of its task, and the number of its training examples.

    Raises:
        ValueError: There is no such table, or it is not one of your own data.
    """
    folders = [path for path in pathlib.Path(table).glob("*") if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    newest = max(folders, key=lambda path: [int(part) for part in path.name.split(".")], default=None)
    if newest is None or not (newest / "manifest.json").is_file():
        corpus, data_dir = pathlib.Path(table).name, pathlib.Path(table).parents[1]
        place = shlex.join([f"--corpus={corpus}", f"--data_dir={data_dir}"])
        raise ValueError(f"no records in {table}; build them: python -m data_prep.build own --source=FOLDER {place}")
    task = json.loads((newest / "manifest.json").read_text("utf-8")).get("task")
    if not task:
        raise ValueError(f"{table} is not a table of your own data, whose manifest has a task; use the task's recipe")
    info = json.loads((newest / "dataset_info.json").read_text("utf-8"))
    train = [split for split in info["splits"] if split["name"].startswith("train_")]
    return task | dict(examples=sum(int(length) for split in train for length in split["shardLengths"]))


def check_kind(kind: str, task: dict, table: str) -> None:
    """Raise ValueError where the records of a table are not those of a kind; captions are those of `texts`."""
    if kind == task["kind"] or (kind == "caption" and task["form"] == "texts"):
        return
    needed = "images with `texts`" if kind == "caption" else f"data of {kind}"
    raise ValueError(
        f"{table} has data of {task['kind']} (field `{task['form']}`), but own.py:{kind} reads {needed}: use "
        f"--config=configs/own.py, or own.py:{task['kind']}, or build the data with other fields (docs/own_data.md)"
    )


def of_table(config: ml_collections.ConfigDict, task: dict, table: str) -> None:
    """Set the fields that a table determines.

    Args:
        config: Of the kind.
        task: As `read_task` returns it.
        table: Folder of the texts, DATA_DIR/BUILDER/CORPUS.
    """
    builder, corpus = pathlib.Path(table).parts[-2:]
    tables = dict(texts=f"{builder}/{corpus}", images=f"{builder}_images/{corpus}")
    config.data.update(dict(data_dir=str(pathlib.Path(table).parents[1])) | tables)
    for block in (config.model, config.data):
        block.update({name: int(task[name]) for name in NUMBERS if name in task and name in block})
    for name in ("labels", "answers", "positive"):
        if name in task and name in config.data:
            config.data[name] = task[name]
    if config.task == "classify":
        config.losses.classify = task.get("loss", "softmax")
        config.best_metric = METRICS[config.losses.classify]
        config.data.images_per_example = task["images_per_example"]
        for name in ("value_means", "value_deviations"):
            config.data[name] = tuple(float(value) for value in task.get(name, ()))
    if task["form"] == "targets":  # a query is an image with a text
        config.data.update(dict(images_per_example=2, negative_texts=1, negative_images=2))
    steps = -(-task["examples"] // config.batch_size)
    config.total_steps = max(EPOCHS * steps, FEWEST_STEPS)
    config.warmup_steps = config.total_steps // 10
    config.eval_every_steps = max(steps, config.total_steps // MOST_EVALUATIONS)


def set_lengths(config: ml_collections.ConfigDict, task: dict) -> None:
    """Set whether features are read, the number of regions, and the length of the texts."""
    if not task.get("images", True):
        config.data.features = "precomputed"
    elif not task.get("features"):
        config.data.features = "image"
    pairs, regions = task["images_per_example"] == 2, max(int(task["max_regions"]), 1)
    in_one_sequence = task["form"] == "targets" or (pairs and config.model.get("pair", "each") == "both")
    rows = (regions + 1) * (2 if in_one_sequence else 1)
    pieces = WORD_PIECES if config.model.encoder.vocab_size > SMALL_VOCABULARY else 2 * WORD_PIECES
    # Word pieces, [CLS], [SEP] and [MASK], as far as there are positions for them, the regions and [END].
    words = min(pieces * int(task["text_words"]) + 8, max(config.model.encoder.max_positions - rows - 2, 8))
    config.data.update(dict(max_regions=regions, sequence_length=words + rows))
    if config.task == "choice":
        config.data.text_length = words - 3  # without [CLS] and two [SEP]
    if config.task in ("match", "caption"):
        config.data.text_length = words


def of_checkpoint(config: ml_collections.ConfigDict, checkpoint: str) -> None:
    """Set the sizes of the model, the images and the vocabulary to those of a checkpoint that states them."""
    folder, stored = stored_config(checkpoint)
    if "encoder" not in stored.get("model", {}):
        return
    for name in MODEL:
        if name in stored["model"]:
            _replace(config.model, name, stored["model"][name])
    config.model.encoder.pooler = config.model.encoder.pooler or config.task in ("choice", "match")
    if config.model.encoder.hidden_size <= NARROW:
        config.learning_rate = 1e-3
    data = stored.get("data", {})
    for name in PIPELINE:
        if name in data:
            _replace(config.data, name, data[name])
    if data.get("texts") == config.data.texts and os.path.exists(data.get("vocab", "")):
        config.data.vocab = data["vocab"]  # a run of this table, which is continued or evaluated
    elif data.get("vocab"):
        local = pathlib.Path(data.get("data_dir", ""), data["vocab"])
        found = [*sorted((folder / "vocabularies").glob("vocab*")), *([local] if local.is_file() else [])]
        config.data.vocab = str(found[0]) if found else data["vocab"]


def stored_config(checkpoint: str) -> tuple[pathlib.Path, dict]:
    """Return the folder of a checkpoint and the config that is stored with it; an empty one where there is none.

    That is config.json of a workdir, of converted weights or of the workdir of a step, or the metadata of a
    model.safetensors, such as that of the models that ship with the package.
    """
    place = pathlib.Path(checkpoint).expanduser()
    if not place.exists():
        root = pathlib.Path(common.__file__).parents[1]
        places = (root / "vlbert_jax/assets" / checkpoint, root / "assets" / checkpoint)
        place = next((path for path in places if path.is_dir()), place)
    for folder in (place, place.parent.parent):
        if (folder / "config.json").is_file():
            return folder, json.loads((folder / "config.json").read_text("utf-8"))
    file = place / "model.safetensors" if place.is_dir() else place
    if file.suffix == ".safetensors" and file.is_file():
        with file.open("rb") as content:
            header = json.loads(content.read(int.from_bytes(content.read(8), "little")))
        return file.parent, json.loads(header.get("__metadata__", {}).get("vlbert_jax.config", "{}"))
    return place, {}


def _replace(block: ml_collections.ConfigDict, name: str, value) -> None:
    """Replace a field by a value of JSON, which has no tuples; a block keeps its other fields."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in block[name]:
                _replace(block[name], key, inner)
    else:
        block[name] = tuple(value) if isinstance(value, list) else value


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Return the config of `KIND@TABLE@CHECKPOINT`, of which every part may be empty.

    `vlbert_jax.main` adds TABLE and CHECKPOINT: the folder that config.data.data_dir and config.data.texts name, and
    config.init.checkpoint. Raises ValueError for an unknown kind and for a table that is not built.
    """
    kind, table, checkpoint = (*variant.split("@"), "", "")[:3]
    task = read_task(table) if table else {}
    config = common.choose(kind or task.get("kind", "classify"), VARIANTS)
    if table:
        check_kind(kind or task["kind"], task, table)
        of_table(config, task, table)
    if checkpoint:
        of_checkpoint(config, checkpoint)
    if table:
        set_lengths(config, task)
    return config
