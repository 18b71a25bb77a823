"""The recorded values of LXMERT's and ViLBERT's heads: logits, each loss, gradients, and the way back of the weights.

Recordings are in tests/golden/two_stream and, if that is set, in $VLBERT_GOLDEN/two_stream.
Tolerances: forward 1e-4 absolute, 1e-3 at full size; gradients 1e-4 of the largest entry.
"""

import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers.golden_case import close, flat
from tests.helpers.two_stream_case import (
    WITHOUT_COUNTERPART,
    TwoStreamCase,
    compare_two_stream_gradients,
    load,
    name_of,
    text_and_regions,
    two_stream_fixtures,
)
from tests.helpers.weights_case import official_shapes
from vlbert_jax.model.two_stream_config import STREAMS
from vlbert_jax.model.two_stream_heads import TwoStreamModel
from vlbert_jax.tasks import two_stream_losses as losses
from vlbert_jax.weights import two_stream_names
from vlbert_jax.weights.two_stream_options import config_from_tensors, heads_from_tensors

FIXTURES = two_stream_fixtures()
IN_MODEL_TEST = ("lxmert_model", "vilbert_model")  # tests/model/two_stream_golden_test.py


def model_of(case):
    """Return the model with the weights of the case; every tensor that fills no parameter has a reason."""
    heads = heads_from_tensors(case.shapes)
    model, found = load(lambda: TwoStreamModel(case.config, heads, nnx.Rngs(0)), case.sd, case.config)
    reasons = {two_stream_names.reason_not_wanted(name) for name in found.unused}
    assert reasons <= {"duplicate", "never used by the official code"}, found.unused
    check_way_back(case, model)
    return model


def check_way_back(case, model):
    """Every tensor of the recording comes back, bit for bit, but for weights that are stored with a length."""
    ours = {path: np.asarray(array) for path, array in flat(nnx.state(model)).items()}
    tensors = two_stream_names.official_two_stream(ours, case.config)
    back = two_stream_names.official_state_dict(tensors, case.config)
    back = {two_stream_names.plain_name(name): array for name, array in back.items()}
    assert back.keys() == case.raw.keys()
    for name, array in case.raw.items():
        if "q_dense" in name:
            assert back[name].shape == array.shape and not np.any(back[name])
        elif not re.search(r"\.weight_[gv]$", name):
            np.testing.assert_array_equal(back[name], array, err_msg=name)


def everywhere(inputs):
    """Return the positions of all words, and those of all regions after them."""
    b, n, t = inputs["token_ids"].shape
    r = inputs["features"].shape[2]
    return (jnp.broadcast_to(jnp.arange(x, y), (b, n, y - x)) for x, y in ((0, t), (t, t + r)))


def in_pairs(inputs):
    """Return the rows 2i and 2i + 1 as the two sequences of an example, each with its image."""
    return {name: x.reshape(-1, 2, *x.shape[2:]) for name, x in inputs.items()}


def labels_of(case):
    """Return the targets of the case: integers as int32, by the name after label/."""
    found = {name.removeprefix("label/"): x for name, x in case.inputs.items() if name.startswith("label")}
    return {name: jnp.asarray(x, jnp.int32 if x.dtype.kind == "i" else x.dtype) for name, x in found.items()}


def check(case, model, compute, masks=None):
    """Compare what `compute(model)` returns, outputs and losses as (sum, count), and the gradients of their sum.

    Names are those of the recording; `masks` says which rows of an output are real. The gradients are
    those of the losses that "loss" adds up.
    """

    def total(model):
        outputs, sums = compute(model)
        means = {name: value / count for name, (value, count) in sums.items()}
        return sum(value for name, value in means.items() if name != "loss_cross_entropy"), (outputs, means)

    (value, (outputs, means)), gradients = nnx.jit(nnx.value_and_grad(total, has_aux=True))(model)
    expected = dict(case.out)
    for name, ours in outputs.items():
        official, mask = expected.pop(name), np.asarray((masks or {}).get(name, True))
        assert ours.shape == official.shape, name
        close(np.asarray(ours)[mask], official[mask])
    for name, mean in means.items():
        close(mean, np.squeeze(expected.pop(name)))
    if "loss" in expected:
        close(value, expected.pop("loss"))
    assert not expected, expected.keys()
    compare_two_stream_gradients(case, gradients, 1e-4)


def check_lxmert_qa(case):
    model, inputs, labels = model_of(case), text_and_regions(case.inputs), labels_of(case)

    def compute(model):
        states = model.two_stream(**inputs, wanted=("text",))
        pooled = model.two_stream.pool(states)
        logits = model.answer_logits(pooled)
        all_real = jnp.ones(logits.shape[:2], bool)
        sums = dict(
            loss_bce=losses.answer_loss(logits, labels["target"][:, None], all_real),
            loss_cross_entropy=losses.label_loss(logits, labels["hard"][:, None], all_real),
        )
        return dict(question_answering_score=logits[:, 0], pooled_output=pooled[:, 0]), sums

    check(case, model, compute)


def check_lxmert_nlvr2(case):
    model, inputs = model_of(case), in_pairs(text_and_regions(case.inputs))
    labels = jnp.asarray(case.inputs["label"], jnp.int32)

    def compute(model):
        pooled = model.two_stream.pool(model.two_stream(**inputs, wanted=("text",)))
        logits = model.pair_logits(pooled)
        outputs = dict(logit=logits, pooled_output=pooled.reshape(-1, pooled.shape[-1]))
        return outputs, dict(loss=losses.label_loss(logits, labels, jnp.ones(len(labels), bool)))

    check(case, model, compute)


def lxmert_losses(model, inputs, labels, weight):
    """Return the outputs and losses of LXMERT's pre-training by their recorded names."""
    words, regions = everywhere(inputs)
    states = model.two_stream(**inputs)
    pooled = model.two_stream.pool(states)
    mlm, match = model.mlm_logits(states, words), model.relationship_logits(pooled)
    answers = model.answer_logits(pooled)
    visual = model.visual_predictions(states, regions)
    one = {name: x[:, None] for name, x in labels.items()}
    real = jnp.ones(pooled.shape[:2], bool)
    sums = dict(
        loss_mask_lm=losses.label_loss(mlm, one["labels"], one["labels"] >= 0),
        loss_matched=losses.label_loss(match, one["matched_label"], real),
        loss_qa=losses.label_loss(answers, one["ans"], one["ans"] >= 0),
    )
    of_regions = losses.lxmert_visual_losses(
        visual,
        dict(objects=one["obj"], attributes=one["attr"]),
        dict(objects=one["obj_confidence"], attributes=one["attr_confidence"]),
        one["feat"],
        one["feat_mask"] > 0,
        inputs["region_mask"],
        weight,
    )
    short = dict(objects="obj", attributes="attr", features="feat")
    sums |= {f"loss_{short[name]}": loss for name, loss in of_regions.items()}
    outputs = dict(
        prediction_logits=mlm[:, 0, :, : model.two_stream.config.vocab_size],
        cross_relationship_score=match[:, 0],
        question_answering_score=answers[:, 0],
        obj_logits=visual["objects"][:, 0],
        attr_logits=visual["attributes"][:, 0],
        feat_prediction=visual["features"][:, 0],
    )
    return outputs, sums


def check_lxmert_pretrain(case):
    model, inputs, labels = model_of(case), text_and_regions(case.inputs), labels_of(case)
    weight = case.meta["config"]["visual_loss_normalizer"]
    masks = dict.fromkeys(("obj_logits", "attr_logits", "feat_prediction"), inputs["region_mask"][:, 0])
    masks["prediction_logits"] = inputs["word_mask"][:, 0]
    check(case, model, lambda model: lxmert_losses(model, inputs, labels, weight), masks)
    # The official code has no mask of regions in pre-training.
    seen = inputs | dict(region_mask=jnp.ones_like(inputs["region_mask"]))
    run = nnx.jit(lxmert_losses)
    for name, factor in (("losses", losses.LXMERT_VISUAL_WEIGHT), ("hf_losses_without_visual_mask", weight)):
        outputs, sums = run(model, seen, labels, factor)
        order = ("mask_lm", "matched", "obj", "attr", "feat", "qa")
        means = [value / count for value, count in (sums[f"loss_{loss}"] for loss in order)]
        close(means, case.original[name])
        if name == "losses":
            close(sum(means), case.original["total_loss"])
            close(outputs["question_answering_score"], case.original["answer_score"])


def check_vilbert_pretrain(case):
    model, inputs, labels = model_of(case), text_and_regions(case.inputs), labels_of(case)
    region_loss = (losses.region_class_loss, losses.region_feature_loss)[case.meta["config"]["visual_target"]]

    def compute(model):
        words, regions = everywhere(inputs)
        states = model.two_stream(**inputs)
        mlm, mrc = model.mlm_logits(states, words), model.mrc_logits(states, regions)
        match = model.relationship_logits(model.two_stream.pool(states))
        of_words, hidden = labels["masked_lm_labels"][:, None], labels["image_label"][:, None] == 1
        matched = 1 - labels["next_sentence_label"][:, None]  # 0 = matched in the official code
        sums = dict(
            masked_lm_loss=losses.label_loss(mlm, of_words, of_words >= 0),
            masked_img_loss=region_loss(mrc[:, :, 1:], labels["image_target"][:, None], hidden),
            next_sentence_loss=losses.label_loss(match, matched, jnp.ones_like(matched, bool)),
        )
        outputs = dict(
            prediction_scores_t=mlm[:, 0, :, : case.config.vocab_size],
            prediction_scores_v=mrc[:, 0],
            seq_relationship_score=match[:, 0, ::-1],
        )
        return outputs, sums

    names = ("masked_lm_loss", "masked_img_loss", "next_sentence_loss")
    close(np.squeeze([case.out[name] for name in names]), np.squeeze(case.original["losses"]))
    masks = dict(prediction_scores_t=inputs["word_mask"][:, 0], prediction_scores_v=inputs["region_mask"][:, 0])
    check(case, model, compute, masks)


def check_vilbert_tasks(case):
    """Rows 2i and 2i + 1 are two choices, and two images of one sentence."""
    model, inputs, labels = model_of(case), in_pairs(text_and_regions(case.inputs)), labels_of(case)

    def one_hot(name):
        classes = labels[name].argmax(-1)
        np.testing.assert_array_equal(jax.nn.one_hot(classes, labels[name].shape[-1]), labels[name])
        return classes

    classes = {name: one_hot(name) for name in ("binary", "tri") if name in labels}
    b = len(inputs["token_ids"])
    masks = dict.fromkeys(("vision_prediction", "vision_logit"), inputs["region_mask"].reshape(2 * b, -1))
    masks |= dict.fromkeys(("linguisic_prediction", "linguisic_logit"), inputs["word_mask"].reshape(2 * b, -1))

    def compute(model):
        words, regions = everywhere(inputs)
        states = model.two_stream(**inputs)
        pooled = model.two_stream.pool(states)
        pairs = jnp.ones((b, 2), bool)

        def rows(x):
            return x.reshape(2 * b, *x.shape[2:])

        def paired(name):
            return labels[name].reshape(b, 2, *labels[name].shape[1:])

        answers, choices = model.answer_logits(pooled), model.choice_logits(pooled)
        grounding = model.grounding_logits(states, regions)
        outputs = dict(
            vil_prediction=rows(answers),
            vil_logit=rows(choices)[:, None],
            vision_prediction=rows(model.mrc_logits(states, regions)),
            vision_logit=rows(grounding)[..., None],
            linguisic_prediction=rows(model.mlm_logits(states, words))[..., : case.config.vocab_size],
            linguisic_logit=rows(model.word_logits(states, words))[..., None],
        )
        sums = dict(
            loss_vl_classifier=losses.answer_loss(answers, paired("vl_classifier"), pairs),
            loss_vl_logit=losses.label_loss(choices, labels["choice"], jnp.ones(b, bool)),
            loss_v_logit=losses.grounding_loss(grounding, paired("v_logit")[..., 0], inputs["region_mask"]),
        )
        if model.pair_head is None:  # the first ViLBERT
            outputs["vil_binary_prediction"] = rows(model.relationship_logits(pooled))[:, ::-1]
            return outputs, sums
        answers, pair, relations = model.gqa_logits(pooled), model.pair_logits(pooled), model.relation_logits(pooled)
        outputs |= dict(
            vil_prediction_gqa=rows(answers),
            vil_binary_prediction=pair,
            vil_tri_prediction=rows(relations),
        )
        sums |= dict(
            loss_gqa=losses.answer_loss(answers, paired("gqa"), pairs),
            loss_binary=losses.one_hot_loss(pair, classes["binary"], jnp.ones(b, bool)),
            loss_tri=losses.one_hot_loss(relations, classes["tri"].reshape(b, 2), pairs),
        )
        return outputs, sums

    if case.config.task_tokens:  # positions here are those of the words alone
        for name in ("linguisic_prediction", "linguisic_logit"):
            case.out[name] = np.delete(case.out[name], 1, axis=1)
    check(case, model, compute, masks)


def module_next_to(path, name):
    spec = importlib.util.spec_from_file_location(name, path.parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def seeded_tensors(path, shapes):
    make = module_next_to(path, "seeded_weights").make
    tensors = {}
    for name, shape in shapes.items():
        norm = re.search(r"LayerNorm|layer_norm|logit_fc\.2", name)
        kind = "ln" if norm else "emb" if "_embeddings" in name else "linear"
        tensors[name] = make(name, shape, kind, 0)
    return two_stream_names.plain_tensors(tensors)


def test_full_size():
    path = next(path for path in FIXTURES if name_of(path) == "z_fullsize_lxmert_vqa")
    with np.load(path.with_suffix(".npz")) as arrays:
        out = {name.removeprefix("out/"): arrays[name] for name in arrays.files}
    tensors = seeded_tensors(path, official_shapes("hf_lxmert_vqa_uncased"))
    shapes = {name: array.shape for name, array in tensors.items()}
    config, heads = config_from_tensors(shapes), heads_from_tensors(shapes)
    model, _ = load(lambda: TwoStreamModel(config, heads, nnx.Rngs(0)), tensors, config)
    tensors.clear()
    ids, mask, features, boxes = module_next_to(path, "draw_inputs").draw(4, False)
    inputs = text_and_regions(dict(
        input_ids=ids, token_type_ids=np.zeros_like(ids), attention_mask=mask, visual_feats=features,
        visual_pos=boxes, visual_attention_mask=np.ones(boxes.shape[:2]),
    ))  # fmt: skip

    @nnx.jit
    def run(model, inputs):
        trunk = model.two_stream
        words = trunk.embed_words(*(inputs[name] for name in ("token_ids", "segment_ids", "position_ids")))
        states = dict(text=words[:, 0], visual=trunk.embed_regions(inputs["features"], inputs["geometry"])[:, 0])
        masks = dict(text=inputs["word_mask"][:, 0], visual=inputs["region_mask"][:, 0])
        last, blocks = trunk.encoder(states, masks, collect=True)
        layers = (blocks[kind][0][stream][:, 0] for kind, stream in zip("tv", STREAMS, strict=True))
        norms = [jnp.linalg.norm(states, axis=-1) for states in layers]
        logits = model.answer_logits(trunk.pool(trunk(**inputs, wanted=("text",))))
        return logits[:, 0], last["text"][:, 0], last["visual"][:, 0], *norms

    names = ("question_answering_score", "language_output_first", "vision_output_first")
    names += ("language_layer_norms", "vision_layer_norms")
    for name, ours in zip(names, run(model, inputs), strict=True):
        close(ours, out.pop(name), 1e-3)
    assert not out


CHECKS = {
    "lxmert_qa": check_lxmert_qa,
    "lxmert_nlvr2": check_lxmert_nlvr2,
    "lxmert_pretrain": check_lxmert_pretrain,
    "vilbert_pretrain": check_vilbert_pretrain,
    "vilbert_pretrain_feature": check_vilbert_pretrain,
    "vilbert_tasks": check_vilbert_tasks,
    "vilbert_tasks_token_sum": check_vilbert_tasks,
    "vilbert_beta_tasks": check_vilbert_tasks,
}


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_fixture(path):
    name = name_of(path)
    if name == "z_fullsize_lxmert_vqa":
        pytest.skip("test_full_size")
    if name in WITHOUT_COUNTERPART:
        pytest.skip(WITHOUT_COUNTERPART[name])
    if name in IN_MODEL_TEST:
        pytest.skip("tests/model/two_stream_golden_test.py has the models without heads")
    assert name in CHECKS, f"no check for fixtures called {path.name}"
    CHECKS[name](TwoStreamCase(path))


def test_fixtures_are_found():
    assert {name_of(path) for path in FIXTURES} >= set(CHECKS)
