"""What the tensors of a model do not say of its config: a file without a config loses it."""

from __future__ import annotations

import functools

import numpy as np
from flax import nnx

from vlbert_jax.model.architectures import VLBERT
from vlbert_jax.tasks import PRETRAINING, get_task, task_of_names, tasks_of_family
from vlbert_jax.weights import family_names
from vlbert_jax.weights.conversion import Conversion

OF_THE_TEXTS = ("data.arrangement", "data.align_regions")
# These are set where the weights are read.
OF_THE_WEIGHTS = (
    "model.encoder.pooler", "model.switches.product_size", "model.label_hidden", "model.matching_hidden",
)  # fmt: skip


def unstated(conversion: Conversion) -> list[str]:
    """Return the settings of a run's model that weights without a config are not read with, as "config.NAME=VALUE".

    These are the task, the kind of its head, the switches of the architecture, and how texts are arranged. A source
    without a config has none.
    """
    if conversion.source.config is None:
        return []
    config, architecture, task = conversion.config, conversion.architecture, get_task(conversion.task)
    flat = {tuple(map(str, path)): v.shape for path, v in nnx.to_flat_state(conversion.state)}
    table = family_names.table_of(architecture)(flat, config.model.encoder.vocab_size)
    empty = {path: np.broadcast_to(np.float32(0), shape) for path, shape in flat.items()}
    shapes = {entry.official: entry.to_official(entry.part(empty[entry.path])).shape for entry in table}
    if architecture is VLBERT:
        tasks, fields = [task_of_names(shapes)], task.config_from_weights(shapes)
    else:
        tasks = tasks_of_family(architecture.name, shapes) or [PRETRAINING]
        fields = task.config_from_family(architecture.name, shapes)
    known = task.name in tasks or (task.name == PRETRAINING and family_names.MLM_BIAS in shapes)
    lost = [] if known else [f"config.task={task.name}"]
    known_switches = fields.pop("model.switches", {})
    switches = {name: known_switches.get(name, type(v)()) for name, v in config.model.get("switches", {}).items()}
    read = {f"model.switches.{name}": value for name, value in switches.items()}
    read |= {name: value for name, value in fields.items() if name.startswith("model.") or name in OF_THE_TEXTS}
    for name, value in read.items():
        *blocks, field = name.split(".")
        block = functools.reduce(lambda block, part: block.get(part, {}), blocks, config)
        if name not in OF_THE_WEIGHTS and field in block and block[field] != value:
            lost.append(f"config.{name}={block[field]}")
    return lost
