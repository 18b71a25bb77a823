"""Recordings of LXMERT and ViLBERT, and their inputs in the vlbert_jax format."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.helpers.golden_case import Case, compare_official_gradients, flat
from tests.helpers.golden_folders import golden_folders
from vlbert_jax.model.two_stream import TwoStream
from vlbert_jax.model.two_stream_config import TwoStreamConfig
from vlbert_jax.weights import two_stream_names
from vlbert_jax.weights.two_stream_options import config_from_tensors

# Recordings without a counterpart in this package, and why.
WITHOUT_COUNTERPART = {
    "vilbert_model_task_dynamic": "dynamic attention: no published weights have it",
    "frcnn_hf": "the detector of Hugging Face's LXMERT",
    "optim_lxmert_bertadam": "tests/training/optimizer_test.py",
    "optim_vilbert_bertadam": "tests/training/optimizer_test.py",
}


def two_stream_fixtures() -> list[Path]:
    """Return the recordings in tests/golden/two_stream and, if that is set, in $VLBERT_GOLDEN/two_stream."""
    return [path for folder in golden_folders("two_stream") for path in sorted(folder.glob("*.json"))]


def name_of(path: Path) -> str:
    """Return the name of a recording without the letter of its variant."""
    return re.sub(r"_[a-z]$", "", path.stem)


class TwoStreamCase(Case):
    """A recording whose tensors and gradients have plain names, and the options of its model."""

    def __init__(self, path, **options):
        super().__init__(path)
        self.raw = {two_stream_names.plain_name(name): array for name, array in self.sd.items()}
        self.sd = two_stream_names.plain_tensors(self.sd)
        self.grad = {two_stream_names.plain_name(name): array for name, array in self.grad.items()}
        norms = self.meta.get("grad_norms", {})
        self.meta["grad_norms"] = {two_stream_names.plain_name(name): norm for name, norm in norms.items()}
        self.shapes = {name: array.shape for name, array in self.sd.items()}
        config = config_from_tensors(self.shapes, self.meta["config"])
        self.config = TwoStreamConfig(**{**vars(config), **options})


class Holder(nnx.Module):  # paths of parameters start with two_stream
    def __init__(self, config, rngs):
        self.two_stream = TwoStream(config, rngs)


def load(build, tensors, config):
    """Return the module of `build()` with the tensors, and what was matched; every parameter must be filled."""
    graphdef, abstract = nnx.split(nnx.eval_shape(build))
    shapes = {tuple(map(str, path)): v.shape for path, v in nnx.to_flat_state(abstract)}
    found = two_stream_names.match_two_stream(tensors, shapes, config)
    assert not found.missing, found.missing
    for path, variable in nnx.to_flat_state(abstract):
        array = np.zeros(variable.shape, np.float32)
        found.fill(array, tuple(map(str, path)), tensors)
        variable.set_value(jnp.asarray(array))
    return nnx.merge(graphdef, abstract), found


def text_and_regions(inputs) -> dict[str, jax.Array]:
    """Return the arguments of `TwoStream`: one sequence and one image per example."""
    names = dict(
        token_ids=("input_ids", "input_txt"),
        segment_ids=("token_type_ids",),
        word_mask=("attention_mask",),
        features=("visual_feats", "input_imgs"),
        geometry=("visual_pos", "image_loc"),
        region_mask=("visual_attention_mask", "image_attention_mask"),
        task=("task_ids",),
    )
    found = {}
    for ours, theirs in names.items():
        for name in theirs:
            if name in inputs:
                found[ours] = inputs[name] if ours == "task" else inputs[name][:, None]
    for name in ("word_mask", "region_mask"):
        found[name] = found[name] > 0
    for name in ("token_ids", "segment_ids", "task"):
        if name in found:
            found[name] = found[name].astype(np.int32)
    t = found["token_ids"].shape[-1]
    found["position_ids"] = np.broadcast_to(np.arange(t, dtype=np.int32), found["token_ids"].shape)
    return {name: jnp.asarray(array) for name, array in found.items()}


def compare_two_stream_gradients(case, gradients, tolerance):
    arrays = {path: np.asarray(value) for path, value in flat(gradients).items()}
    official = two_stream_names.official_two_stream(arrays, case.config)
    for name in [name for name in case.raw if name.endswith(".weight_v")]:  # stored as length and direction
        weight = name.removesuffix("_v")
        length, direction = (jnp.asarray(case.raw[weight + part]) for part in ("_g", "_v"))
        pull = jax.vjp(lambda g, v: g * v / jnp.linalg.norm(v), length, direction)[1]
        of_parts = pull(jnp.asarray(official.pop(weight)))
        official |= {weight + part: np.asarray(x) for part, x in zip(("_g", "_v"), of_parts, strict=True)}
    compare_official_gradients(case, official, tolerance)
