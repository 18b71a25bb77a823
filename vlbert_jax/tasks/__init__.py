"""The registry of tasks. A task is a folder here; this file is the only generic one that names tasks.

A task is a kind of question about images: VQA and GQA are data of `answer`, VCR of `choice`, RefCOCO of `region`.

A new task is one line in `TASKS`. What the command line must know before a task is imported, because
importing one takes seconds, is in that line; everything else is in the task's class (base.py).
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlbert_jax.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class Registered:
    """A task that is imported when it is asked for."""

    path: str  # module:class
    title: str  # for --help, errors and reports
    option: str  # option of the prediction command that takes the user's texts
    help: str  # of that option
    takes_choices: bool = False  # whether --choices go with the option
    options: tuple[tuple[str, str], ...] = ()  # further options of the command, each with its help
    text_optional: bool = False  # whether the text may be empty
    takes_text: bool = True  # False: the option is a switch
    searches: bool = False  # whether images are ordered by a text, and texts by an image
    pipeline: str = ""  # what Hugging Face calls the task, for model cards


TASKS: dict[str, Registered] = {
    "pretrain": Registered(
        "vlbert_jax.tasks.pretrain.task:PretrainTask", "masked words (pre-training)", "--caption",
        "caption with [MASK]: the masked words, with and without the image", pipeline="fill-mask",
    ),
    "answer": Registered(
        "vlbert_jax.tasks.answer.task:AnswerTask", "visual question answering", "--question",
        "question: the best answers, each with an independent probability", pipeline="visual-question-answering",
    ),
    "choice": Registered(
        "vlbert_jax.tasks.choice.task:ChoiceTask", "visual commonsense reasoning", "--question",
        "with --choices: the probability of each choice; [1] names the first region", takes_choices=True,
        pipeline="visual-question-answering",
    ),
    "region": Registered(
        "vlbert_jax.tasks.region.task:RegionTask", "referring expressions", "--expression",
        "expression: the region that it means",
        options=(("--phrases", "phrases of the --expression, which is then their sentence: the region of each"),),
        pipeline="object-detection",
    ),
    "classify": Registered(
        "vlbert_jax.tasks.classify.task:ClassifyTask", "classes of images and texts", "--text",
        "text, if the model reads one: the best classes, the labels, or the numbers",
        options=(
            ("--text2", "second text, one for all or one for each --text"),
            ("--image2", "second image, one for all or one for each --image"),
        ),
        text_optional=True, pipeline="image-classification",
    ),
    "match": Registered(
        "vlbert_jax.tasks.match.task:MatchTask", "image-text retrieval", "--text",
        "text: how well it fits the image; with --gallery the images that fit best", searches=True,
        pipeline="image-text-to-text",
    ),
    "caption": Registered(
        "vlbert_jax.tasks.caption.task:CaptionTask", "captions of images", "--describe",
        "describe the image: captions with the mean probability of their words", takes_text=False,
        pipeline="image-to-text",
    ),
    "mixture": Registered("vlbert_jax.tasks.mixture.task:MixtureTask", "several tasks", "", ""),
}  # fmt: skip
RENAMED = {"vqa": "answer", "vcr": "choice", "refcoco": "region"}  # values of config.task in earlier versions
# Prefix of a metric in earlier versions -> its prefix now.
RENAMED_METRICS = {"vqa_accuracy": "answer_accuracy", "vcr_accuracy": "choice_accuracy", "refcoco_": "grounding_"}
PRETRAINING = "pretrain"  # the task that the others start from, and whose weights have no other task's heads


# Of a run of several tasks: top-level fields that each part has for itself, and fields of its data that it has not.
OF_THE_PART = ("task", "blind", "losses", "data", "model", "best_metric")
OF_THE_RUN = ("data_dir", "vocab", "num_threads", "prefetch")


def part_config(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the config of a part of a run of several tasks, with the fields of the run.

    Args:
        config: The config of the run, as nested dicts; `parts` has the parts by name.
        name: Name of the part.
    """
    part = copy.deepcopy(config["parts"][name])
    part |= {field: value for field, value in config.items() if field not in (*OF_THE_PART, "parts", "ratios")}
    part["model"] |= config["model"]
    part["data"] |= {field: config["data"][field] for field in OF_THE_RUN}
    return part


@functools.cache
def _load(registered: Registered) -> Task:
    module, _, name = registered.path.partition(":")
    return getattr(importlib.import_module(module), name)()


def get_task(name: str) -> Task:
    """Return the task of a name.

    Raises:
        ValueError: There is no such task.
    """
    if name not in TASKS:
        now = f" {name!r} is {RENAMED[name]!r} now;" if name in RENAMED else ""
        raise ValueError(f"There is no task {name!r};{now} the tasks are {', '.join(TASKS)}.")
    return _load(TASKS[name])


def all_tasks() -> list[Task]:
    """Return every task, in the order of the registry."""
    return [get_task(name) for name in TASKS]


def task_of_names(names: Iterable[str]) -> str:
    """Return the task whose heads are among official tensor names; pre-training where no other task's are."""
    found = set(names)
    return next((name for name in TASKS if get_task(name).owns(found)), PRETRAINING)


def tasks_of_family(architecture: str, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the tasks whose heads are among tensors of a sibling, in the order of the registry; not pre-training."""
    return [name for name in TASKS if get_task(name).owns_family(architecture, shapes)]
