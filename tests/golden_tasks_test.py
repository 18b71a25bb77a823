"""The models of VQA, VCR and RefCOCO+ against recordings of the official modules: logits, through `.model` names.

Fixtures (vii_*) are found as in golden_model_test.py; tolerance 1e-4 absolute.
"""

import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_case import Case, close, encoder_config, load, region_head, stack

from vlbert_jax import names
from vlbert_jax.batch import Batch
from vlbert_jax.sequence import pack
from vlbert_jax.tasks.refcoco import RefCOCOModel
from vlbert_jax.tasks.vcr import VCRModel
from vlbert_jax.tasks.vqa import VQAModel

FOLDERS = [Path(__file__).parent / "golden/model"]
if os.environ.get("VLBERT_GOLDEN"):
    FOLDERS.append(Path(os.environ["VLBERT_GOLDEN"]) / "model")
FIXTURES = [path for folder in FOLDERS for path in sorted(folder.glob("vii_*.json"))]
CLS, SEP = 101, 102


def texts(case) -> dict[str, np.ndarray]:
    """ids, segments, tags and mask of the words, [b, n, s]: recorded, or laid out as for RefCOCO+."""
    if "text_input_ids" in case.out:
        fields = {name: case.out[f"text_{name}"] for name in ("input_ids", "token_type_ids", "tags", "mask")}
        return {name: array if array.ndim == 3 else array[:, None] for name, array in fields.items()}
    expressions = case.inputs["expression"]
    ids = np.zeros((len(expressions), 1, expressions.shape[1] + 2), np.int64)
    for row, expression in zip(ids[:, 0], expressions, strict=True):
        words = expression[expression > 0]
        row[: len(words) + 2] = [CLS, *words, SEP]
    return dict(input_ids=ids, token_type_ids=0 * ids, tags=0 * ids, mask=ids > 0)


def batch_of(case) -> tuple[Batch, np.ndarray, np.ndarray]:
    """The batch, positions of the regions in their sequences [b, n, r], and which regions are real."""
    words, boxes = texts(case), case.inputs["boxes"]
    vcr = case.meta["task"] == "vcr"  # has its mark of padding in the last column
    real = boxes[..., -1] > -0.5 if vcr else boxes[..., 0] > -1.5
    vocab_size = case.network["VLBERT"]["vocab_size"]
    b, n, _ = words["mask"].shape
    lengths = words["mask"].sum(-1)
    longest = int((lengths + real.sum(1)[:, None]).max())
    rows = []
    for i in range(b):
        sequences = []
        for j in range(n):
            mask = words["mask"][i, j]
            ids, segments, tags = (words[name][i, j][mask] for name in ("input_ids", "token_type_ids", "tags"))
            count = int(real[i].sum())
            sequences.append(pack(ids, segments, count, np.zeros(count, bool), tags, longest, vocab_size))
        rows.append({name: np.stack([s[name] for s in sequences]) for name in sequences[0]})
    fields = stack(rows)
    fields.update(
        boxes=jnp.asarray(np.where(real[..., None], boxes[..., :4], 0)),
        region_mask=jnp.asarray(real),
        image_size=jnp.asarray(case.inputs["im_info"][:, :2]),
    )
    if "image" in case.inputs:
        fields["image"] = jnp.asarray(case.inputs["image"].transpose(0, 2, 3, 1))
    else:
        fields["region_features"] = jnp.asarray(np.where(real[..., None], boxes[..., 4:], 0))
    if "masks" in case.inputs:
        fields["region_shapes"] = jnp.asarray(case.inputs["masks"])
    return Batch(**fields), lengths[..., None] + np.arange(real.shape[1]), real


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_logits(path):
    case = Case(path)
    encoder = encoder_config(case)
    if "image" in case.inputs:
        fast_rcnn = region_head(case, roi_chunk=3)
        del fast_rcnn["hidden_size"]  # the encoder tells
    else:
        fast_rcnn = dict(backbone=None, feature_size=case.meta["dims"]["VISUAL"])
    build = {
        "vqa": lambda: VQAModel(encoder, fast_rcnn, case.inputs["label"].shape[1], nnx.Rngs(0)),
        "vcr": lambda: VCRModel(encoder, fast_rcnn, len(case.sd["cnn_loss_reg.2.bias"]), nnx.Rngs(0)),
        "refcoco": lambda: RefCOCOModel(encoder, fast_rcnn, nnx.Rngs(0)),
    }[case.meta["task"]]
    tensors = {names.plain_name(name): array for name, array in case.sd.items()}
    model, found = load(build, tensors, encoder.vocab_size)
    assert set(found.missing) <= set(names.OF_PRETRAINING)
    batch, positions, real = batch_of(case)
    states = nnx.jit(lambda m, batch: m.encode(batch, m.region_states(batch, m.appearance(batch))))(model, batch)
    if case.meta["task"] == "vqa":
        close(model.answer_logits(states, jnp.asarray(case.out["ans_pos"])), case.out["label_logits"])
    elif case.meta["task"] == "refcoco":
        logits = model.region_logits(states, jnp.asarray(positions[:, 0]))
        close(np.where(real, logits, 0), np.where(real, case.out["label_logits"], 0))
    else:
        close(model.choice_logits(states), case.out["label_logits"])
        logits = model.object_logits(states, jnp.asarray(positions))
        classes = case.inputs["boxes"][..., 5].astype(int)
        chosen = jax.nn.log_softmax(logits)[
            np.arange(len(classes))[:, None, None], np.arange(logits.shape[1])[:, None], np.arange(classes.shape[1]),
            np.maximum(classes, 0)[:, None],
        ]  # fmt: skip
        everywhere = functools.partial(np.broadcast_to, shape=chosen.shape)
        close(-np.mean(chosen[everywhere(real[:, None])]), case.out["cnn_regularization_loss"])
