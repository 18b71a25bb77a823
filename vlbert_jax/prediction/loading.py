"""Load a trained model from any weights that `convert` reads: its config, as far as it is stored, and its state."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import jax
import ml_collections
from flax import nnx

from vlbert_jax.tasks import PRETRAINING, get_task
from vlbert_jax.weights import family_names, vlbert_names
from vlbert_jax.weights.conversion import arrays_of, prepare_conversion
from vlbert_jax.weights.family_heads import heads_not_read
from vlbert_jax.weights.read import Weights, flatten_tree
from vlbert_jax.weights.stored_config import own_vocabularies

# Fields that weights do not determine, as in the published recipes (configs/). Each task adds its own.
DEFAULTS = {
    "seed": 0,
    "blind": False,
    "data.data_dir": "data",
    "data.vocab": "bert-base-uncased",
    "data.image_scale": (600, 1000),
    "data.geometry_on_device": False,
    "model.region_head.roi_size": 14,
}
# Regions that pass C5 at once on a CPU. A chunk is computed even where one of its regions is real. The products of the
# 3x3 convolutions take a quarter longer for each region with chunks of 4.
CPU_CHUNK = 8


def load_trained(
    path: str | Path, least_regions: int, task: str = "", head: str = ""
) -> tuple[ml_collections.ConfigDict, nnx.GraphDef, nnx.State]:
    """Return the config in float32, the structure of the model, and its state on the default device.

    Args:
        path: Workdir, checkpoint or other weights.
        least_regions: Number of regions that a sequence must have room for.
        task: Task of which weights with heads of several tasks are read.
        head: The second of two heads of a task in 12-in-1; "" = the first.

    Raises:
        FileNotFoundError: There are no weights at `path`.
        ValueError: The weights lack a part of the model, or the run did not read images.
    """
    complete = functools.partial(_completed, least_regions)
    conversion = prepare_conversion(path, preferred=task, head=head, complete=complete)
    source, config = conversion.source, conversion.config
    optional = {*vlbert_names.OF_PRETRAINING, *family_names.OWN_TOKENS.values()}
    lacking = [name for name in (*conversion.found.missing, *source.new) if name not in optional]
    if lacking and (heads := heads_not_read(conversion.found.unused, conversion.architecture)):
        raise ValueError(
            f"{path} has weights of {source.architecture} with the head {', '.join(heads)}, which no model here reads; "
            "as config.init.checkpoint its trunk starts fine-tuning."
        )
    if lacking:
        raise ValueError(
            f"{path}: {source.description}; {len(lacking)} tensors of a trained model for {conversion.task} are "
            f"missing, such as {lacking[0]}."
        )
    config.data.update(own_vocabularies(path))
    config.tasks_of_heads = conversion.tasks_of_heads
    if config.blind:
        raise ValueError(f"{path} is a model that was trained without the image (config.blind).")
    unread = () if conversion.task == PRETRAINING else vlbert_names.OF_PRETRAINING
    arrays = flatten_tree(dict(zip(("params", "constants"), arrays_of(conversion, None, unread), strict=True)))
    placed = []
    for place, variable in nnx.to_flat_state(conversion.state):
        placed.append((place, variable.replace(jax.device_put(arrays.pop(tuple(map(str, place)))))))
    return config, conversion.graphdef, nnx.from_flat_state(placed)


def _completed(least_regions: int, model: ml_collections.ConfigDict, source: Weights) -> ml_collections.ConfigDict:
    """Return the config of the run, or what the weights determine of it, completed from the published recipe."""
    task = model.task
    # The names of batch counters have dots, which a config rejects.
    run = {name: value for name, value in (source.config or {}).items() if name != "batch_counters"}
    stored: dict[str, Any] = copy.deepcopy({"data": {}, "losses": {}} | run | model.to_dict())
    for name, value in (DEFAULTS | dict(get_task(task).defaults)).items():
        *blocks, field = name.split(".")
        block = stored
        for part in blocks:
            block = block.setdefault(part, {})
        block.setdefault(field, value)
    config: dict[str, Any] = stored | {"task": task, "compute_dtype": "float32"}
    more = max(0, least_regions - config["data"]["max_regions"])
    config["data"]["max_regions"] += more
    config["data"]["sequence_length"] += more * config["data"].get("images_per_example", 1)
    if jax.default_backend() == "cpu":
        config["model"]["region_head"]["roi_chunk"] = CPU_CHUNK
    return ml_collections.ConfigDict(config)
