"""Write tiny models of every task with random weights, in the format that `load` reads."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs import pretrain, refcoco, vcr, vqa
from data_prep.scenes.downstream import vocabulary
from data_prep.scenes.vqa import answer_vocabulary
from vlbert_jax.tasks import get_task
from vlbert_jax.weights import export
from vlbert_jax.weights.orbax import read_checkpoint
from vlbert_jax.weights.read import flatten_tree

RECIPES = dict(pretrain=pretrain, refcoco=refcoco, vcr=vcr, vqa=vqa)
WIDTH = 12  # size of a precomputed feature


def shrunk(task, data_dir, variant="demo", **fields):
    """Return the shipped recipe with the smallest widths that still separate inputs."""
    config, demo = RECIPES[task].get_config(variant), RECIPES[task].get_config("demo")
    config.model.encoder.update(demo.model.encoder)
    config.model.encoder.update(dict(hidden_size=32, num_layers=2, num_heads=4, mlp_size=32))
    config.model.region_head.update(demo.model.region_head)
    config.model.region_head.update(dict(stem_width=4, widths=(2, 2, 3, 3), roi_size=2))
    config.model.encoder.pooler = task == "vcr"
    if task == "vqa":
        config.model.num_answers = demo.model.num_answers
        config.data.answers = demo.data.answers
    for name in ("texts", "images", "sequence_length", "max_regions"):
        if name in demo.data:
            config.data[name] = demo.data[name]
    config.model.feature_size = WIDTH
    config.data.update(dict(data_dir=str(data_dir), vocab="scenes_downstream/vocab.txt", image_scale=(64, 96)))
    config.data.update(dict(num_threads=1, prefetch=1))
    config.batch_size, config.compute_dtype = 8, "bfloat16"
    config.update_from_flattened_dict(fields)
    return config


def write_words(data_dir):
    """Write the vocabulary and the answers to the files that `build_scene_tasks` writes."""
    words = {"scenes_downstream/vocab.txt": vocabulary(), "vqa/scenes_answers.txt": answer_vocabulary()}
    for name, lines in words.items():
        (data_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (data_dir / name).write_text("\n".join(lines) + "\n")


def write_model(path, config, seed=0):
    """Write a folder as `convert` does; all parameters are random, because zeros hide errors."""
    model = nnx.eval_shape(lambda: get_task(config.task).build_model(config, nnx.Rngs(0)))
    rng, arrays = np.random.default_rng(seed), dict(params={}, constants={})
    for place, variable in nnx.to_flat_state(nnx.state(model)):
        name = "params" if isinstance(variable, nnx.Param) else "constants"
        values = rng.normal(0, 0.3, variable.shape)
        positive = place[-1] in ("scale", "gain", "variance")
        node = functools.reduce(lambda node, key: node.setdefault(str(key), {}), place[:-1], arrays[name])
        node[str(place[-1])] = (1 + abs(values) if positive else values).astype(np.float32)
    export.write_orbax(path, arrays["params"], arrays["constants"], json.loads(config.to_json_best_effort()))
    return path


def in_float32(config):
    """Return the config in float32, in which predictions are computed."""
    config = config.copy_and_resolve_references()
    config.compute_dtype = "float32"
    return config


def on_model(path, config, function):
    """Run `function(model, *arguments)`, compiled, on the trained model in `path`."""
    config = in_float32(config)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: get_task(config.task).build_model(config, nnx.Rngs(0))))
    found = flatten_tree(read_checkpoint(path))
    flat = [(p, v.replace(jnp.asarray(found[tuple(map(str, p))]))) for p, v in nnx.to_flat_state(state)]
    compiled = jax.jit(lambda state, *arguments: function(nnx.merge(graphdef, state), *arguments))
    return functools.partial(compiled, nnx.from_flat_state(flat))
