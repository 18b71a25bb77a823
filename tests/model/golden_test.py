"""Compare outputs, losses and gradients with recordings of the official PyTorch modules.

Recordings are in tests/golden/model and, if that is set, in $VLBERT_GOLDEN/model. Each model is
built from the JSON and the arrays of its recording. Outputs have an absolute tolerance of 1e-4.
Gradients have a tolerance of 1e-4 of the largest entry. Through a ResNet the tolerance is 5e-3,
because the gradient of ReLU is discontinuous.
"""

import importlib.util
import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers.golden_case import (
    Case,
    close,
    compare_gradients,
    encoder_config,
    free_sequences,
    load,
    pretraining_batch,
    recipe,
    region_head,
    relative,
)
from tests.helpers.golden_folders import by_turns, golden_folders
from tests.helpers.optimizer_case import check_official_updates
from vlbert_jax.batch import END
from vlbert_jax.geometry import box_geometry
from vlbert_jax.model.config import RegionHeadConfig
from vlbert_jax.model.one_stream import OneStream
from vlbert_jax.model.region_head import RegionHead
from vlbert_jax.model.roi import roi_align
from vlbert_jax.model.visual_linguistic import region_head_is_frozen
from vlbert_jax.tasks.pretrain import task as pretrain
from vlbert_jax.tasks.pretrain.losses import loss_counts, loss_sums
from vlbert_jax.tasks.pretrain.model import PretrainingModel
from vlbert_jax.weights import vlbert_names
from vlbert_jax.weights.read import read_weights

PRETRAIN = pretrain.PretrainTask()

FIXTURES = [path for folder in golden_folders("model") for path in sorted(folder.glob("*.json"))]


# --- Modules --------------------------------------------------------------------------------------


def check_geometry(case):
    boxes = case.inputs["boxes"]
    for xp in (np, jnp):
        ours = box_geometry(xp.asarray(boxes[:, None, :4]), xp.asarray(boxes[:, 4:]), case.meta["dim"])
        close(ours.reshape(case.out["emb"].shape), case.out["emb"])


def check_roi_align(case):
    features = jnp.asarray(case.inputs["features"].transpose(0, 2, 3, 1))
    rois = jnp.asarray(case.inputs["rois"])
    for name, official in case.out.items():
        samples, height, width = map(int, re.fullmatch(r"s(\d+)_(\d+)x(\d+)", name).groups())

        def pool(features, size=(height, width), samples=samples):
            index = rois[:, 0].astype(jnp.int32)
            pooled = roi_align(features, rois[:, 1:], index, size, samples, case.meta["spatial_scale"])
            return pooled.transpose(0, 3, 1, 2)

        close(jax.jit(pool)(features), official)
        if f"cotangent_{name}" in case.inputs:
            gradient = jax.vjp(pool, features)[1](jnp.asarray(case.inputs[f"cotangent_{name}"]))[0]
            relative(gradient.transpose(0, 3, 1, 2), case.grad[f"features_{name}"], 1e-4)


def check_fast_rcnn(case):
    masked = "mask_visual_embed" in case.inputs
    tensors = {f"image_feature_extractor.{name}": array for name, array in case.sd.items()}
    if masked:
        tensors["object_mask_visual_embedding.weight"] = case.inputs["mask_visual_embed"][None]
    options = region_head(case, hidden_vector=masked)
    prefix = "image_feature_extractor."

    class Holder(nnx.Module):  # paths of parameters start with fast_rcnn
        def __init__(self):
            self.fast_rcnn = RegionHead(options, nnx.Rngs(0))

    holder, report = load(Holder, tensors)
    assert all(not name.startswith(prefix) for name in report.missing), report.missing
    graphdef, state = nnx.split(holder.fast_rcnn)
    box_mask = jnp.asarray(case.inputs["box_mask"])
    boxes = jnp.where(box_mask[..., None], case.inputs["boxes"][..., :4], 0)
    pixels = jnp.asarray(case.inputs["images"].transpose(0, 2, 3, 1))
    size = jnp.asarray(case.inputs["im_info"][:, :2])

    @jax.jit
    def run(state, shapes=None, hidden=None):
        model = nnx.merge(graphdef, state)
        appearance = model.appearance(pixels, boxes, box_mask, shapes)
        states = model.project(appearance, boxes, size, box_mask, hidden)
        if hidden is not None:
            appearance = jnp.where(hidden[..., None], model.hidden_appearance[...][None, None], appearance)
        return dict(obj_reps=states, obj_reps_raw=appearance, body4=model.backbone(pixels).transpose(0, 3, 1, 2))

    runs = {"": run(state)}
    if "segms" in case.inputs:
        runs["segm_"] = run(state, jnp.asarray(case.inputs["segms"]))
    if masked:
        runs["maskvis_"] = run(state, None, jnp.asarray(case.inputs["mvrc_ops"] == 1) & box_mask)
    checked = 0
    for prefix, outputs in runs.items():
        for name, ours in outputs.items():
            if prefix + name in case.out:
                close(ours, case.out[prefix + name])
                checked += 1
    assert checked >= 2


def with_token_rows(module, table, vocab_size, extra):
    """Remove the padding of the token table and append rows."""
    table.set_value(jnp.concatenate([table[...][: vocab_size + END + 1], jnp.asarray(extra)]))
    return module


def compare_sequence_outputs(case, outputs, fields):
    """Compare real elements with the official arrays."""
    mask = np.asarray(fields["element_mask"][:, 0])
    text_length, object_mask = case.inputs["text_mask"].sum(1), case.inputs["object_mask"]
    checked = 0
    for name, official in case.out.items():
        kind, _, index = name.rpartition("_") if re.search(r"_\d+$", name) else (name, "", "-1")
        if kind in ("attention_mask", "text_mask_new", "object_mask_new"):
            continue
        ours = outputs["embedding" if kind == "embedding" else "pooled" if kind == "pooled" else "encoded"]
        if kind in ("embedding", "encoded"):
            ours = ours if kind == "embedding" else ours[int(index)]
            close(np.asarray(ours)[mask], official[mask])
        elif kind == "attention_probs":
            ours = np.asarray(outputs["attention"][int(index)]).transpose(0, 2, 1, 3)
            close(ours[mask], official.transpose(0, 2, 1, 3)[mask])
        elif kind == "pooled":
            close(ours, official)
        elif kind == "text":
            for row, count in enumerate(text_length):
                close(ours[int(index)][row, :count], official[row, :count])
        elif kind == "object":
            for row, (start, kept) in enumerate(zip(text_length, object_mask, strict=True)):
                close(ours[int(index)][row, start : start + kept.sum()], official[row][kept])
        else:
            raise AssertionError(f"there is no check for {name}")
        checked += 1
    assert checked


def check_vlbert(case, execution):
    config = encoder_config(case, **execution)
    fields, region_rows, extra = free_sequences(case, config.vocab_size)
    tensors = {f"vlbert.{name}": array for name, array in case.sd.items()}

    class Holder(nnx.Module):
        def __init__(self):
            self.vlbert = OneStream(config, nnx.Rngs(0))

    holder, report = load(Holder, tensors, config.vocab_size)
    optional = {*vlbert_names.EXTRA_TOKENS.values(), "aux_text_visual_embedding.weight"}
    assert set(report.missing) <= optional, report.missing
    model = with_token_rows(holder.vlbert, holder.vlbert.token_embeddings, config.vocab_size, extra)

    def run(model):
        ids = (fields[name] for name in ("token_ids", "region_ids", "segment_ids", "position_ids"))
        embedded = model.embed(*ids, region_rows)[:, 0]
        last, layers, attention = model.encoder(embedded, fields["element_mask"][:, 0], collect=True)
        pooled = None if model.pooler is None else model.pool(last)
        return dict(embedding=embedded, encoded=layers, attention=attention, pooled=pooled)

    compare_sequence_outputs(case, nnx.jit(run)(model), fields)


def check_pretraining_heads(case, execution):
    config = encoder_config(case, **execution)
    fields, region_rows, extra = free_sequences(case, config.vocab_size)
    tensors = {f"vlbert.{name}": array for name, array in case.sd.items()}
    classes = case.network["VLBERT"]["visual_region_classes"]
    head = RegionHeadConfig(config.visual_size or config.hidden_size, backbone=None, feature_size=1)

    def build():
        return PretrainingModel(config, head, classes, relationship=config.pooler, rngs=nnx.Rngs(0))

    model, report = load(build, tensors, config.vocab_size)
    assert all(not name.startswith("vlbert.") for name in report.missing), report.missing
    table = model.vlbert.token_embeddings
    with_token_rows(model, table, config.vocab_size, extra)
    model.mlm_head.bias.set_value(
        jnp.zeros(table.shape[0]).at[: config.vocab_size].set(case.sd["mlm_head.predictions.bias"])
    )

    @nnx.jit
    def run(model):
        states = model.vlbert(**fields, region_states=region_rows)
        everywhere = jnp.broadcast_to(jnp.arange(states.shape[2])[None, None], states.shape[:3])
        mlm, mrc = model.mlm_logits(states, everywhere)[:, 0], model.mrc_logits(states, everywhere[:, 0])
        return mlm, mrc, model.relationship_logits(states) if config.pooler else None

    mlm, mrc, relationship = run(model)
    for row, mask in enumerate(case.inputs["text_mask"]):
        count, kept = int(mask.sum()), case.inputs["object_mask"][row]
        close(mlm[row, :count, : config.vocab_size], case.out["mlm_logits"][row, :count])
        close(mrc[row, count : count + kept.sum()], case.out["mvrc_logits"][row][kept])
    if config.pooler:
        close(relationship, case.out["relationship_logits"])


# --- The complete pre-training module -------------------------------------------------------------


def compare_logits(case, model, states, batch, vocab_size):
    everywhere = jnp.broadcast_to(jnp.arange(states.shape[2])[None, None], states.shape[:3])
    mlm, mrc = model.mlm_logits(states, everywhere)[..., :vocab_size], model.mrc_logits(states, everywhere[:, 0])
    for suffix, step in (("", 1), ("_every97", 97)):
        lengths = np.asarray((batch.token_ids < vocab_size) & batch.element_mask).sum(-1)
        names = {"mlm_logits": 0, "mlm_logits_wvc": 0, "mlm_logits_aux": 1}
        for name, n in names.items():
            for row, official in enumerate(case.out.get(name + suffix, ())):
                count = lengths[row, n]
                close(mlm[row, n, :count, ::step], official[:count])
    for row, official in enumerate(case.out["mvrc_logits"]):
        kept = np.asarray(batch.region_mask[row, : len(official)])
        start = int(lengths[row, 0])
        close(mrc[row, start : start + kept.sum()], official[: len(kept)][kept])
    if "relationship_logits" in case.out:
        close(
            model.relationship_logits(states)[: len(case.out["relationship_logits"])], case.out["relationship_logits"]
        )


LOSS_NAMES = {
    "mlm_caption": ("mlm_loss_wvc", "mlm_loss"),
    "mlm_text": ("mlm_loss_aux",),
    "mrc": ("mvrc_loss",),
    "relationship": ("relationship_loss",),
}


def check_pretraining(case, execution):
    config = recipe(case, execution)
    vocab_size = config.model.encoder.vocab_size
    model, report = load(lambda: PRETRAIN.build_model(config, nnx.Rngs(0)), case.sd, vocab_size)
    single = {"aux_text_visual_embedding.weight"} if not config.losses.text_only else set()
    assert set(report.missing) <= single, report.missing
    batch = pretraining_batch(case, config)
    names = PRETRAIN.active_losses(config, 0)
    graphdef, trainable, rest = nnx.split(
        model, nnx.All(nnx.Param, lambda path, _: not region_head_is_frozen(path, config)), ...
    )

    def loss(trainable):
        model = nnx.merge(graphdef, trainable, rest)
        sums, _ = loss_sums(model, batch, None, config, names)
        counts = loss_counts(batch, config, names)
        losses = {name: sums[name] / counts[name] for name in names}
        return sum(losses.values()), losses

    (total, losses), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(trainable)
    close(total, case.out["loss"])
    for name, value in losses.items():
        close(value, next(case.out[n] for n in LOSS_NAMES[name] if n in case.out))
    states = nnx.jit(lambda m, batch: m.encode(batch, m.region_states(batch, m.appearance(batch))))(model, batch)
    compare_logits(case, model, states, batch, vocab_size)
    if "grad_norms" in case.meta:
        compare_gradients(case, gradients, vocab_size, tolerance=5e-3 if config.data.features == "image" else 1e-4)


def through_official_files(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Write `.model` files in both serializations of PyTorch and read them again.

    Without PyTorch, return the tensors unchanged.
    """
    if importlib.util.find_spec("torch") is None:
        return tensors
    import torch

    state = {f"module.{name}": torch.from_numpy(array) for name, array in tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        for new in (True, False):
            path = Path(folder) / "vl-bert.model"
            torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=new)
            read = read_weights(path).tensors
            for name, array in read.items():
                np.testing.assert_array_equal(array, tensors[name], err_msg=name)
    reasons = {vlbert_names.reason_not_wanted(name) for name in tensors.keys() - read.keys()}
    assert reasons <= {"duplicate", "batch counter"}
    return read


def check_fullsize(case):
    spec = importlib.util.spec_from_file_location("seeded_weights", case.path.parent / "seeded_weights.py")
    seeded_weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeded_weights)
    for name, (kind, shape) in case.meta["weight_spec"].items():
        if kind == "alias":  # the same array under a second name
            continue
        case.sd[name] = seeded_weights.make(name, shape, kind, case.meta["weight_seed"])
    case.sd = through_official_files(case.sd)
    config = recipe(case, dict(scan_layers=True, remat="none"))
    model, report = load(lambda: PRETRAIN.build_model(config, nnx.Rngs(0)), case.sd, config.model.encoder.vocab_size)
    assert report.missing == []
    case.sd.clear()
    batch = pretraining_batch(case, config)
    active = PRETRAIN.active_losses(config, 0)

    @nnx.jit
    def run(model, batch):
        appearance = model.appearance(batch)
        region_states = model.region_states(batch, appearance)
        sums, _ = loss_sums(model, batch, None, config, active)
        return appearance, region_states, model.encode(batch, region_states), sums

    appearance, region_states, states, sums = run(model, batch)
    close(appearance[:, : case.out["obj_reps_raw"].shape[1]][: len(case.out["obj_reps_raw"])], case.out["obj_reps_raw"])
    close(region_states[: len(case.out["obj_reps"])], case.out["obj_reps"])
    compare_logits(case, model, states, batch, config.model.encoder.vocab_size)
    counts = loss_counts(batch, config, active)
    for name in active:
        close(sums[name] / counts[name], next(case.out[n] for n in LOSS_NAMES[name] if n in case.out))


# --- Dispatch by prefix ---------------------------------------------------------------------------

CHECKS = {
    "i": check_geometry,
    "ii": check_roi_align,
    "iii": check_fast_rcnn,
    "iv": check_vlbert,
    "v": check_pretraining_heads,
    "vi": check_pretraining,
    "x": lambda case: check_official_updates(case.path),
    "z": check_fullsize,
}
BY_EXECUTION = ("iv", "v", "vi")  # these run scanned or unrolled, with or without recomputation


def prefix(path: Path) -> str:
    return path.name.split("_")[0]


def identify(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", [p for p in FIXTURES if prefix(p) not in BY_EXECUTION], ids=identify)
def test_fixture(path):
    if prefix(path) == "vii":
        pytest.skip("tests/tasks/golden_test.py tests the downstream tasks")
    assert prefix(path) in CHECKS, f"there is no check for {path.name}"
    CHECKS[prefix(path)](Case(path))


@pytest.mark.parametrize(("path", "execution"), by_turns([p for p in FIXTURES if prefix(p) in BY_EXECUTION]))
def test_fixture_by_execution(path, execution):
    CHECKS[prefix(path)](Case(path), execution)


def test_fixtures_are_found():
    assert {prefix(path) for path in FIXTURES} >= set(CHECKS)
