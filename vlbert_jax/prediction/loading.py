"""A trained model from any weights that `convert` knows: its config, as far as it is told, and its state."""

from __future__ import annotations

import copy
from pathlib import Path

import jax
import ml_collections
from flax import nnx

from vlbert_jax.tasks import TASKS
from vlbert_jax.weights import vlbert_names
from vlbert_jax.weights.conversion import arrays_of, prepare_conversion
from vlbert_jax.weights.read import flatten_tree

# What weights alone do not tell, as in the published recipes (configs/).
DATA = dict(
    data_dir="data", vocab="bert-base-uncased", answers="answers_vqa.txt", image_scale=(600, 1000),
    geometry_on_device=False, flip_probability=0.0, mask_words=0.15, mask_regions=0.15, group_words=(),
    text_min_words=64, max_mlm_targets=24, max_mrc_targets=20,
)  # fmt: skip
LENGTHS = {
    "pretrain": dict(max_regions=100, sequence_length=64),
    "vqa": dict(max_regions=100, sequence_length=135),
    "refcoco": dict(max_regions=120, sequence_length=160),
    "vcr": dict(max_regions=59, sequence_length=127, text_length=64, image_scale=(600, 1200)),
}
LOSSES = dict(mlm=True, mrc=True, relationship=False, region=0.0, answer="sigmoid", choice="sigmoid", object=1.0)


def load_trained(path: str | Path, least_regions: int) -> tuple[ml_collections.ConfigDict, nnx.GraphDef, nnx.State]:
    """The config in float32 with room for `least_regions`, and the model, on the default device.

    Raises FileNotFoundError, or ValueError for weights that lack a part of their task's model, and for those of a run
    that does not look at images.
    """
    conversion = prepare_conversion(path)
    task, source = conversion.task, conversion.source
    lacking = [name for name in (*conversion.found.missing, *source.new) if name not in vlbert_names.OF_PRETRAINING]
    if lacking:
        raise ValueError(
            f"{path}: {source.description}; {len(lacking)} tensors of a trained model for {task} are not there, as "
            f"{lacking[0]}"
        )
    config = _completed(conversion.config.to_dict(), source.config or {}, task, least_regions)
    if config.blind:
        raise ValueError(f"{path}: a model that was trained without the image (config.blind)")
    graphdef, state = nnx.split(nnx.eval_shape(lambda: TASKS[task].build_model(config, nnx.Rngs(0))))
    arrays = flatten_tree(dict(zip(("params", "constants"), arrays_of(conversion, None), strict=True)))
    placed = []
    for place, variable in nnx.to_flat_state(state):
        placed.append((place, variable.replace(jax.device_put(arrays.pop(tuple(map(str, place)))))))
    return config, graphdef, nnx.from_flat_state(placed)


def _completed(model: dict, run: dict, task: str, least_regions: int) -> ml_collections.ConfigDict:
    """The config of the run, or as far as the weights tell it, with the rest as in the recipes."""
    config = dict(seed=0, blind=False, subtask="q2a", losses={}, data={}) | model | run
    config = copy.deepcopy(config) | dict(task=task, compute_dtype="float32")
    config["losses"] = LOSSES | config["losses"]
    config["data"] = DATA | LENGTHS[task] | config["data"] | dict(eval_boxes="gt")
    config["model"]["region_head"] = dict(roi_size=14) | config["model"]["region_head"]
    more = max(0, least_regions - config["data"]["max_regions"])
    for name in ("max_regions", "sequence_length"):
        config["data"][name] += more
    return ml_collections.ConfigDict(config)
