"""The siblings' recipes against the hyper-parameters that their authors published, and the parameters these concern."""

import importlib

import jax
import numpy as np
import pytest
from flax import nnx

from tests.helpers.pretrain_case import build, shrunk
from vlbert_jax.tasks import get_task
from vlbert_jax.training.optimizer import Groups, parameter_name

# Of the spec of one stream (1.4, 2.2, 2.4, 5, 6) and of two streams (1.5 to 1.7, 2.6, 2.7): updates where they are
# published, batch, peak rate, share of warm-up, then fields of `optimizer`. None: not published.
ALL, NORMS, NORMS_OF_UNITER = (), ("bias$", "norm/scale$"), ("bias$", "^(vlbert|mlm_head)/.*norm/scale$")
BERTADAM = dict(name="bertadam", b1=0.9, b2=0.999, eps=1e-6, counts_from=0, weight_decay=0.01, schedule="triangle")
LXMERT = BERTADAM | dict(clip="global", no_decay=ALL)
VISUALBERT = BERTADAM | dict(clip="array", clip_norm=1.0, no_decay=NORMS, rate_factors=("^vlbert/pooler/=0",))
UNITER = dict(name="adamw", b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.01, schedule="triangle", clip="global",
              no_decay=NORMS_OF_UNITER, least_rate=1e-8)  # fmt: skip
OSCAR = dict(name="adamw", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.05, schedule="triangle", clip="global",
             clip_norm=1.0, no_decay=NORMS)  # fmt: skip
PUBLISHED = {
    "pretrain:lxmert_base": (670_000, 256, 1e-4, 0.05, LXMERT | dict(clip_norm=1.0)),  # two streams, 1.7
    "vqa:lxmert_base": (None, 32, 5e-5, 0.1, LXMERT | dict(clip_norm=5.0)),
    "vqa:lxmert_gqa": (None, 32, 1e-5, 0.1, LXMERT | dict(clip_norm=5.0)),
    "classify:nlvr2_lxmert": (None, 32, 5e-5, 0.1, LXMERT | dict(clip_norm=5.0)),
    "pretrain:vilbert_base": (  # two streams, 2.6, the code of 12-in-1
        None, 512, 1e-4, 0.1, dict(name="adamw", b2=0.98, eps=1e-8, weight_decay=0.01, no_decay=NORMS)
    ),
    "vqa:vilbert_base": (  # two streams, 2.7, the first code: decay of biases and norms alone
        None, 256, 4e-5, 0.1, BERTADAM | dict(clip="array", clip_norm=1.0, schedule="steps", drops=(0.6, 0.8),
                                              rate_factors=("^answer_head/=2.5",))
    ),
    "pretrain:visualbert_base": (None, 48, 5e-5, 0.1, VISUALBERT),  # one stream, 1.4 and 1.3 (pooler)
    "classify:nlvr2_visualbert": (None, 64, 2e-5, 0.1, VISUALBERT),
    "pretrain:uniter_base": (200_000, None, 5e-5, 0.05, UNITER | dict(clip_norm=5.0)),  # one stream, 2.2 and 2.4
    "pretrain:uniter_large": (500_000, None, 5e-5, 0.02, UNITER | dict(clip_norm=5.0)),
    "vqa:visualbert_base": (None, 64, 2e-5, 0.1, VISUALBERT),
    "vqa:uniter_base": (6_000, None, 8e-5, 0.1, UNITER | dict(clip_norm=2.0, rate_factors=("^answer_head/=10",))),
    "vqa:uniter_large": (5_000, None, 5e-5, 0.1, UNITER | dict(clip_norm=2.0, rate_factors=("^answer_head/=10",))),
    "classify:snli_ve_uniter_large": (4_000, None, 3e-5, 0.1, UNITER | dict(clip_norm=2.0)),
    "classify:nlvr2_uniter_large": (5_000, None, 2e-5, 0.1, UNITER | dict(clip_norm=2.0)),
    "classify:snli_ve_uniter": (4_000, None, 8e-5, 0.1, UNITER | dict(clip_norm=2.0)),
    "classify:nlvr2_uniter": (8_000, None, 3e-5, 0.1, UNITER | dict(clip_norm=2.0)),
    "pretrain:b2t2_large": (  # one stream, 5: BERT's own optimizer
        None, 32, 2e-5, 0.1, BERTADAM | dict(clip="global", clip_norm=1.0, no_decay=NORMS)
    ),
    "pretrain:oscar_base": (  # one stream, 6: Oscar+
        2_000_000, 1_024, 5e-5, 0.0, dict(name="adamw", eps=1e-8, weight_decay=0.01, clip="global", clip_norm=10.0)
    ),
    "vqa:oscar_base": (None, 128, 5e-5, 0.0, OSCAR),  # one stream, 6: 32 on each GPU
    "vqa:oscar_large": (None, 96, 3e-5, 0.0, OSCAR),  # 24 on each
    "vqa:oscar_gqa": (None, 192, 5e-5, 0.0, OSCAR),  # Oscar's MODEL_ZOO.md, as the next lines: 48 on each GPU
    "caption:coco_oscar": (None, 256, 3e-5, 0.0, OSCAR),  # 64 on each of four
    "classify:nlvr2_oscar_large": (None, 24, 3e-5, 5_000 / 71_980, OSCAR),
    "retrieval:coco_oscar_large": (None, 128, 1e-5, 0.0, OSCAR),  # 16 on each of eight
    "classify:nlvr2_oscar": (None, 72, 3e-5, 10_000 / 24_000, OSCAR),
    "retrieval:coco_oscar": (None, 256, 2e-5, 0.0, OSCAR),  # 64 on each of four GPUs
    "retrieval:coco_vinvl": (None, 128, 2e-5, 0.0, OSCAR),  # 16 on each of eight
}  # fmt: skip


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_recipes_have_the_published_values(recipe):
    file, variant = recipe.split(":")
    config = importlib.import_module(f"configs.{file}").get_config(variant)
    steps, batch, rate, warmup, fields = PUBLISHED[recipe]
    assert (config.total_steps, config.batch_size) == (steps or config.total_steps, batch or config.batch_size)
    assert config.learning_rate == rate and config.warmup_steps == pytest.approx(warmup * config.total_steps, abs=1)
    assert {name: config.optimizer[name] for name in fields} == fields
    assert config.optimizer.counts_from == (0 if fields["name"] == "bertadam" else 1)
    if file == "pretrain":  # each piece for itself; nine tenths of the chosen regions are hidden, in UNITER all
        shares = dict(uniter=(1.0, 0.0), lxmert=(0.8, 0.1)).get(variant.split("_")[0], (0.9, 0.0))
        assert config.data.mask_tokens and (config.data.hidden_share, config.data.swapped_share) == shares


@pytest.mark.parametrize("variant, words, regions", [
    ("visualbert_base", 128, 100), ("uniter_base", 62, 100), ("oscar_base", 128, 50), ("oscar_large", 128, 50),
    ("uniter_large", 62, 100), ("oscar_gqa", 165, 45),
])  # fmt: skip
def test_questions_of_siblings_at_full_size(variant, words, regions):
    config, task = importlib.import_module("configs.vqa").get_config(variant), get_task("answer")
    batch, key = task.batch_shapes(config), jax.eval_shape(lambda: jax.random.key(0))
    assert batch.token_ids.shape[1:] == (1, words + regions)
    sums, _ = nnx.eval_shape(
        lambda batch, key: task.loss_sums(task.build_model(config, nnx.Rngs(0)), batch, key, config, ("answer",)),
        batch, key,
    )  # fmt: skip
    assert sums["answer"].shape == ()


def test_confidences_and_dropout():
    """One stream, 2.1: UNITER keeps regions of more confidence than 0.2, but all in RefCOCO. 6: dropout of Oscar."""
    confidences, rates = {}, {}
    for file in ("vqa", "classify", "retrieval", "refcoco", "vcr"):
        for variant in importlib.import_module(f"configs.{file}").VARIANTS:
            config, name = variant(), f"{file}:{variant.__name__}"
            confidences[name], rates[name] = config.data.region_confidence, config.model.encoder.dropout_rate
    uniter = ("vqa:uniter_base", "classify:nlvr2_uniter", "classify:snli_ve_uniter", "retrieval:flickr30k_uniter",
              "vqa:uniter_large", "classify:nlvr2_uniter_large", "classify:snli_ve_uniter_large")  # fmt: skip
    assert {name: value for name, value in confidences.items() if value} == dict.fromkeys(uniter, 0.2)
    assert {name for name, rate in rates.items() if rate == 0.3} == {
        "vqa:oscar_base", "vqa:oscar_large", "vqa:oscar_gqa", "classify:nlvr2_oscar", "classify:nlvr2_oscar_large",
    }  # fmt: skip


def test_lxmert_learns_all_of_its_losses():  # two streams, 1.5
    losses = importlib.import_module("configs.pretrain").get_config("lxmert_base").losses
    assert all(losses[name] for name in ("mlm", "relationship", "objects", "attributes", "features", "answers"))
    assert not losses.mrc


def groups_of(variant, tmp_path, **fields):
    """Return the decay and the factor of the rate of each parameter of a tiny model."""
    config = shrunk(variant, tmp_path, **fields)
    params = nnx.state(nnx.eval_shape(lambda: build(config)), nnx.Param)
    o = config.optimizer
    groups = Groups(o.weight_decay, tuple(o.no_decay), tuple(o.rate_factors))
    named = [parameter_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    values = [jax.tree.leaves(tree) for tree in (groups.decays(params), groups.factors(params))]
    return {name: (decay, factor) for name, decay, factor in zip(named, *values, strict=True)}


@pytest.mark.parametrize("variant", ["vilbert_base", "visualbert_base", "uniter_base"])
def test_decay_and_rates_of_the_parameters(variant, tmp_path):
    found = groups_of(variant, tmp_path)
    decaying = {name for name, (decay, _) in found.items() if decay}
    assert not any(name.endswith("bias") for name in decaying)
    norms = {name for name in decaying if name.endswith("norm/scale")}
    assert norms == ({f"{name}/scale" for name in ("fast_rcnn/appearance_norm", "fast_rcnn/geometry_norm",
                      "mrc_head/norm", "regression_head/norm")} if variant == "uniter_base" else set())  # fmt: skip
    assert {name for name in found if name.endswith(("kernel", "embeddings"))} <= decaying
    slow = {name: factor for name, (_, factor) in found.items() if factor != 1}
    if variant == "vilbert_base":
        bert = {name for name in found if "/t/" in name or name.endswith("embeddings") or "embedding_norm" in name}
        assert set(slow) == bert and set(slow.values()) == {0.1} and len(bert) > 20
    else:
        frozen = {"vlbert/pooler/bias", "vlbert/pooler/kernel"} if variant == "visualbert_base" else set()
        assert set(slow) == frozen and not any(slow.values())


def test_the_first_vilbert_decays_biases_and_norms_alone():
    optimizer = importlib.import_module("configs.vqa").get_config("vilbert_base").optimizer
    names = ("answer_head/classes/bias", "two_stream/visual_norm/scale", "two_stream/appearance/kernel",
             "two_stream/token_embeddings")  # fmt: skip
    tree = {name: np.zeros(1) for name in names}
    decays = Groups(0.01, tuple(optimizer.no_decay)).decays(tree)
    assert [decays[name] for name in names] == [0.01, 0.01, 0.0, 0.0]
