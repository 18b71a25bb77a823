"""The model card of a workdir, or of a folder with weights: README.md in the form of Hugging Face.

The header is YAML. Its field `training` holds what is known of the training and `model-index` the scores, so
that the card of an export repeats those of its source.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlbert_jax.files import atomic_write, read_json_object, with_addresses
from vlbert_jax.tasks import TASKS, Registered
from vlbert_jax.weights.shipped import locate_weights

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

CARD = "README.md"
MARK = "<!-- vlbert_jax wrote this card and writes it again; without this line it leaves the file alone. -->"
TABLES = ("captions", "text", "texts", "images", "train_split", "embedded")  # fields of config.data that name the data
DURATIONS = ("time", "per_sec")  # parts of the names of metrics that are no scores
LICENSE = """\
The code of vlbert_jax is under the MIT license. The license of these weights follows from their training data and from
the weights that training started from; check both before you distribute the model, and name the license here.
"""


def write_run_card(workdir: Path, config: Mapping[str, Any], step: int, scores: Mapping[str, Any]) -> None:
    """Write the card of a run after an evaluation; a file without `MARK` is not replaced.

    Args:
        workdir: Folder of the run; versions.json in it states the command and the commit, where they are known.
        config: Config of the evaluation, as nested dicts.
        step: Updates of the scored weights.
        scores: Metric -> value; durations and values that are not finite are left out.
    """
    from huggingface_hub import EvalResult

    about = read_json_object(workdir / "versions.json", "remove it; the next start of the run writes it again")
    training = dict(command=about.get("command"), commit=about.get("revision"), updates=step)
    training |= dict(batch_size=config["batch_size"], start=config["init"].get("checkpoint"))
    training |= {name: config["data"].get(name) for name in TABLES}
    task, data = _registered(config["task"]), config["data"]
    about = dict(task_type=task.pipeline or task.title, task_name=task.title, dataset_type="vlbert_jax")
    about |= dict(dataset_name=data.get("texts") or data.get("captions") or with_addresses(data["data_dir"]))
    about |= dict(dataset_split=data.get("eval_split", "val"))
    results = [
        EvalResult(**about, metric_type=name, metric_value=round(float(value), 4))
        for name, value in scores.items()
        if math.isfinite(value) and name != "step" and not any(part in name for part in DURATIONS)
    ]
    known = {name: value for name, value in training.items() if value not in (None, "")}
    write_card(workdir, workdir.resolve().name, config, known, results)


def write_card(
    folder: Path,
    name: str,
    config: Mapping[str, Any],
    training: Mapping[str, Any],
    results: Sequence[EvalResult],
    untrained: int = 0,
    transformers: bool = False,
) -> None:
    """Write the card of weights into their folder; a file without `MARK` is not replaced.

    Args:
        folder: Folder of the weights.
        name: Name of the model.
        config: Config of the model, as nested dicts: `task`, `model` and `data`.
        training: What is known of the training, by name.
        results: Scores of the weights.
        untrained: Number of tensors that were initialized at random.
        transformers: Whether the folder is for Hugging Face's transformers in place of vlbert_jax.
    """
    from huggingface_hub import ModelCardData

    task, data, model = _registered(config["task"]), config["data"], config["model"]
    encoder = model["encoder"]
    architecture = model.get("architecture", "vlbert")
    header = ModelCardData(
        library_name="transformers" if transformers else "vlbert_jax", model_name=name,
        pipeline_tag="fill-mask" if transformers else task.pipeline or None, tags=["vision-and-language", architecture],
        training=dict(training) or None, eval_results=list(results) or None,
    )  # fmt: skip
    features = dict(image="computed from the image", precomputed="precomputed by a detector").get(data["features"])
    rows = {"task": f"{task.title} (`{config['task']}`)", "architecture": f"`{architecture}`"}
    if "num_layers" in encoder:
        sizes = f"{encoder['num_layers']} layers of width {encoder['hidden_size']}, {encoder['num_heads']} heads"
        rows |= {"size": sizes, "vocabulary": f"{encoder['vocab_size']:,} tokens"}
    rows |= {"region features": "none: this is the text side alone" if transformers else features}
    if "num_answers" in model and not transformers:
        rows |= {"answers": f"{model['num_answers']:,}"}
    parts = ["## Model", _table(("", ""), rows.items())]
    parts += ["## Use", _usage(task.takes_choices, untrained, transformers)]
    parts += ["## Training", _table(("", ""), ((k, f"`{v}`") for k, v in training.items()))] if training else []
    if results:
        parts += ["## Scores", _table(("score", "data", "value"), map(_score, results))]
    _save(folder, name, header.to_yaml(), parts)


def write_detector_card(folder: Path, name: str, sizes: Mapping[str, Any]) -> None:
    """Write the card of a detector into its folder; `sizes` are those of its network."""
    from huggingface_hub import ModelCardData

    header = ModelCardData(library_name="vlbert_jax", pipeline_tag="object-detection", tags=["faster-rcnn"])
    use = 'import vlbert_jax\n\nvlbert_jax.load("MODEL", detector="PATH").ask("photo.jpg", "TEXT")'
    rows = _table(("", ""), [(field, f"`{value}`") for field, value in sizes.items()])
    text = "A Faster R-CNN that finds the regions of images for vlbert_jax."
    where = "MODEL is a model of vlbert_jax. PATH is this folder, or hf:USER/NAME where it is on the Hugging Face hub."
    parts = [text, "## Model", rows, "## Use", where, f"```python\n{use}\n```"]
    _save(folder, name, header.to_yaml(), parts)


def is_own_card(path: Path) -> bool:
    """Return whether a file is a card of this module, which it may replace."""
    return MARK in path.read_text("utf-8", errors="replace")


def _save(folder: Path, name: str, header: str, parts: Sequence[str]) -> None:
    path = folder / CARD
    if not path.exists() or is_own_card(path):
        with atomic_write(path) as file:
            text = "\n\n".join([f"---\n{header}\n---", f"# {name}", MARK, *parts, "## License", LICENSE])
            file.write_text(text, encoding="utf-8")


def stored_facts(source: str | Path) -> tuple[dict[str, Any], list[EvalResult]]:
    """Return what the card next to some weights says of their training, and their scores; empty without a card.

    Args:
        source: A workdir, one checkpoint in it, a folder of weights, a shipped model, or other weights.
    """
    from huggingface_hub import ModelCard

    place = locate_weights(source).absolute()
    for folder in (place, place.parent.parent if place.parent.name == "checkpoints" else place):
        if (folder / CARD).is_file():
            try:
                data = ModelCard.load(folder / CARD).data
            except (ValueError, TypeError, KeyError, UnicodeDecodeError):  # a README that is no card
                continue
            return dict(data.get("training") or {}), list(data.get("eval_results") or [])
    return {}, []


def _registered(task: str) -> Registered:
    """Return the entry of a task; a task that was given to `train` without one has only its name."""
    return TASKS.get(task) or Registered("", task, "", "")


def _usage(takes_choices: bool, untrained: int, transformers: bool) -> str:
    """Return how to load the folder. PATH is the folder, or hf:USER/NAME of vlbert_jax where it was uploaded."""
    if transformers:
        lines = ["from transformers import AutoModel, AutoTokenizer", ""]
        lines += ['tokenizer, model = AutoTokenizer.from_pretrained("PATH"), AutoModel.from_pretrained("PATH")']
        where = "PATH is this folder, or USER/NAME of the Hugging Face hub."
    elif untrained:
        note = f"{untrained} tensors of this model are initialized at random: it is the start of a training run."
        return f"{note}\n\n```\npython -m vlbert_jax.main --config=RECIPE --config.init.checkpoint=PATH\n```"
    else:
        choices = ', choices=["TEXT", "TEXT"]' if takes_choices else ""
        lines = ["import vlbert_jax", "", 'predictor = vlbert_jax.load("PATH")']
        lines += [f'predictor.ask("photo.jpg", "TEXT"{choices})']
        where = "PATH is this folder, or hf:USER/NAME where it is on the Hugging Face hub."
    code = "\n".join(lines)
    return f"{where}\n\n```python\n{code}\n```"


def _score(result: EvalResult) -> tuple[str, str, str]:
    data = [result.dataset_name, result.dataset_config, result.dataset_split]
    return f"`{result.metric_type}`", ", ".join(part for part in data if part), str(result.metric_value)


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in line)} |" for line in lines)
