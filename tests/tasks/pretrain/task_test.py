"""The pre-training task has the expected losses, phases, baselines and scores on synthetic data."""

import functools
import json
import logging
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from configs import pretrain as recipes
from data_prep.build import build_scenes
from tests.helpers import ROOT
from tests.helpers.pretrain_case import FEATURES, PRETRAIN, build, first_batch, losses_and_gradients, shrunk
from tests.helpers.report_case import report_examples
from vlbert_jax.batch import NO_IMAGE
from vlbert_jax.convert import main
from vlbert_jax.data.tokenizer import masking_ids, tokenizer_of
from vlbert_jax.model.visual_linguistic import without_image, without_words
from vlbert_jax.tasks.losses import cross_entropy
from vlbert_jax.tasks.pretrain.batches import eval_batches
from vlbert_jax.training import optimizer, sharding
from vlbert_jax.training.loop import train
from vlbert_jax.training.state import create_state, open_run
from vlbert_jax.training.step import train_step
from vlbert_jax.visualization.metric_names import parse_metric


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_scenes(folder, num_train=40, num_val=20, num_train_stories=20, num_val_stories=8, feature_width=FEATURES)
    return folder


VARIANTS = {
    "demo": {"mlm_caption", "mlm_text", "mrc", "region"},
    "base_e2e": {"mlm_caption", "mlm_text", "mrc"},
    "base_prec": {"mlm_caption", "mlm_text", "mrc"},
    "base_prec_no_text": {"mlm_caption", "mrc"},
    "large_e2e": {"mlm_caption", "mlm_text", "mrc"},
    "large_prec": {"mlm_caption", "mlm_text", "mrc"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_shipped_recipes_train(variant, data_dir):
    """Losses start near those of a uniform guess; the expected parameters have gradients."""
    gains = {f"model.encoder.{kind}_visual_gain_init": 0.1 for kind in ("text", "region")}
    config = shrunk(variant, data_dir, **{"opening.steps": 0, "losses.region_fixed_until": 0}, **gains)
    batch = first_batch(config)
    losses, reached = losses_and_gradients(config, batch, build(config))
    assert losses.keys() == VARIANTS[variant]
    uniform = dict(mlm_caption=np.log(256), mlm_text=np.log(256), mrc=np.log(81), region=np.log(81))
    for name, loss in losses.items():
        assert abs(loss - uniform[name]) < (0.5 if name != "region" else 2), (name, loss)
    convolutions = {name for name in reached["mrc"] if "c5" in name or "backbone" in name}
    assert bool(convolutions) == config.model.train_region_head
    if config.model.region_head.frozen_batch_norm:
        assert not any(name.endswith(("gain", "offset")) for name in convolutions)
    if config.losses.text_only:
        assert "vlbert/text_only_visual" in reached["mlm_text"] - reached["mlm_caption"]


ABLATION = {  # the docstring of configs/pretrain.py describes these settings
    "a": ("base_prec_no_text", {"losses.mrc": False}, {"mlm_caption"}),
    "b": ("base_prec_no_text", {}, {"mlm_caption", "mrc"}),
    "c": (
        "base_prec_no_text",
        {"losses.relationship": True, "model.encoder.pooler": True},
        {"mlm_caption", "mrc", "relationship"},
    ),
}


@pytest.mark.parametrize("setting", ABLATION)
def test_ablations_train(setting, data_dir):
    variant, fields, expected = ABLATION[setting]
    config = shrunk(variant, data_dir, **fields)
    losses, _ = losses_and_gradients(config, first_batch(config), build(config))
    assert losses.keys() == expected
    assert all(np.isfinite(list(losses.values())))
    assert ("--config.losses.mrc=False" in recipes.__doc__) and (variant in recipes.__doc__)


@pytest.mark.parametrize("variant", ["demo", "base_e2e", "base_prec"])
def test_one_program_serves_all_updates(variant, data_dir):
    """An update does not change the types of the state, so it compiles only once."""
    config = shrunk(variant, data_dir)
    mesh = sharding.make_mesh(config.mesh)
    tx = optimizer.make_optimizer(config.optimizer, optimizer.learning_rate_schedule(config))
    graphdef, state, shardings, _ = create_state(config, PRETRAIN, tx, mesh)
    static = dict(graphdef=graphdef, task=PRETRAIN, config=config, tx=tx, mesh=mesh, shardings=shardings)
    step = functools.partial(train_step, **static, names=PRETRAIN.active_losses(config, 0))
    with jax.set_mesh(mesh):
        after, _ = jax.eval_shape(step, state, first_batch(config))
    types = [[(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)] for tree in (state, after)]
    assert types[0] == types[1] and not any(weak for _, _, weak in types[0])


def test_the_relationship_loss_requires_the_pooler(data_dir):
    config = shrunk("base_prec", data_dir, **{"losses.relationship": True})
    with pytest.raises(ValueError, match="model.encoder.pooler=True"):
        PRETRAIN.build_model(config, nnx.Rngs(0))


@pytest.mark.parametrize("field, values", [("mrc_targets", "soft, hard"), ("normalize", "targets, examples")])
def test_unknown_options_of_losses_are_reported(field, values, data_dir):
    config = shrunk("base_prec", data_dir, **{f"losses.{field}": "mean"})
    with pytest.raises(ValueError, match=f"config.losses.{field} is 'mean', not one of {values}"):
        losses_and_gradients(config, first_batch(config), build(config))


def test_the_opening_requires_its_loss(data_dir):
    with pytest.raises(ValueError, match="losses.region=1.0"):
        PRETRAIN.build_model(shrunk("demo", data_dir, **{"losses.region": 0.0}), nnx.Rngs(0))


@pytest.mark.slow
def test_each_phase_trains_its_parameters(data_dir):
    """The phases train the region head, then the other parameters, then all; others are idle."""
    config = shrunk("demo", data_dir, **{"opening.steps": 2, "losses.region_fixed_until": 4})
    opening, middle, last = (PRETRAIN.active_losses(config, step) for step in (1, 3, 4))
    assert opening == ("region",) and set(middle) == VARIANTS["demo"] - {"region"} and set(last) == VARIANTS["demo"]
    batch, model = first_batch(config), build(config)
    paths = {"/".join(map(str, path)): path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    for names in (opening, middle, last):
        _, reached = losses_and_gradients(config, batch, model, names)
        reached = set().union(*reached.values())
        assert reached and not any(PRETRAIN.is_idle(paths[name], config, names) for name in reached)
    idle = {name for name, path in paths.items() if PRETRAIN.is_idle(path, config, middle)}
    assert idle and all("c5" in name or "backbone" in name or "region_c" in name for name in idle)
    assert not any(PRETRAIN.is_idle(path, config, last) for path in paths.values())


def test_examples_first_normalization(data_dir):
    """The loss is the mean over sequences of their mean losses."""
    config = shrunk("base_prec", data_dir, **{"losses.normalize": "examples"})
    batch, model = first_batch(config), build(config)
    losses, _ = losses_and_gradients(config, batch, model, ("mlm_caption",))

    @nnx.jit
    def word_losses(model, batch):
        states = model.encode(batch, model.region_states(batch, model.appearance(batch)))
        return cross_entropy(model.mlm_logits(states, batch.targets.mlm_positions), batch.targets.mlm_labels)[:, 0]

    each = np.asarray(word_losses(model, batch))
    means = [
        row[mask].mean()
        for row, mask in zip(each, np.asarray(batch.targets.mlm_mask)[:, 0], strict=True)
        if mask.any()
    ]
    np.testing.assert_allclose(losses["mlm_caption"], np.mean(means), rtol=1e-3)


def test_without_targets_losses_are_zero(data_dir):
    config = shrunk("base_prec", data_dir)
    batch = first_batch(config)
    masks = {name: jnp.zeros_like(getattr(batch.targets, name)) for name in ("mlm_mask", "mrc_mask")}
    batch = batch.replace(targets=batch.targets.replace(**masks))
    losses, reached = losses_and_gradients(config, batch, build(config))
    assert set(losses.values()) == {0.0}
    assert not any(reached.values())


def test_baselines_do_not_depend_on_removed_inputs(data_dir):
    """States of a caption without its image do not depend on the image.

    Without words, no token id of a word remains.
    """
    config = shrunk("base_e2e", data_dir, **{"model.encoder.text_visual_gain_init": 1.0})
    batch, model = first_batch(config), build(config)
    other = batch.replace(pixels=255 - batch.pixels, boxes=batch.boxes + 1)
    vocab_size = config.model.encoder.vocab_size

    @jax.jit
    def states_of(batch, regions):
        return model.encode(batch, regions)

    @jax.jit
    def regions(batch):
        return model.region_states(batch, model.appearance(batch))

    assert np.abs(states_of(batch, regions(batch)) - states_of(other, regions(other))).max() > 1e-3
    blind = without_image(batch, vocab_size)
    assert (np.asarray(blind.region_ids) == NO_IMAGE).all()
    alone = states_of(blind, None)
    words = np.asarray(batch.token_ids[:, 0] < vocab_size) & np.asarray(batch.element_mask[:, 0])
    sighted = states_of(blind, regions(other))
    np.testing.assert_allclose(np.asarray(alone)[:, 0][words], np.asarray(sighted)[:, 0][words], atol=1e-5)

    tokenizer = tokenizer_of(config)
    wordless = without_words(batch, *masking_ids(config))
    ids = np.asarray(wordless.token_ids[:, 0])[words]
    assert set(ids) <= {tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id}
    kept = np.asarray(batch.token_ids) >= vocab_size
    np.testing.assert_array_equal(np.asarray(wordless.token_ids)[kept], np.asarray(batch.token_ids)[kept])


def test_evaluation_masks_do_not_depend_on_training(data_dir):
    def evaluated(mask_words):
        config = shrunk("base_prec", data_dir, **{"data.mask_words": mask_words})
        return {name: next(batches) for name, batches in eval_batches(config, 0, 1).items()}

    few, many = evaluated(0.15), evaluated(0.9)
    assert few.keys() == {"captions", "text"}
    for name in few:
        np.testing.assert_array_equal(few[name].targets.mlm_mask, many[name].targets.mlm_mask)


def test_the_report_of_a_run_without_hidden_regions(data_dir):
    config = shrunk("demo", data_dir, **{"losses.mrc": False})
    cards = report_examples(PRETRAIN, build(config), config, {}).cards
    assert cards and all(card.masked and not card.hidden_regions for card in cards)


def test_scores_count_each_target_once(data_dir):
    """Counts over all evaluation batches, with padding, equal the targets of the split."""
    config = shrunk("demo", data_dir)
    graphdef, state = nnx.split(build(config))
    score = jax.jit(lambda state, batch: PRETRAIN.score(nnx.merge(graphdef, state), batch, config))
    counts, targets, examples = {}, 0, 0
    for batches in eval_batches(config, 0, 1).values():
        for batch in batches:
            for name, (_, count) in score(state, batch).items():
                counts[name] = counts.get(name, 0) + float(count)
            if batch.boxes is not None:
                targets += batch.targets.mlm_mask.sum()
                examples += batch.region_mask.any(1).sum()
    assert examples == 20
    assert counts["mlm_caption_accuracy"] == counts["mlm_caption_accuracy_blind"] == targets
    groups = sum(counts[f"visual_word_accuracy_objects_{i}"] for i in (1, 2, 3))
    assert 0 < counts["visual_word_accuracy"] == groups < targets
    assert counts["mlm_text_accuracy"] > 0 and counts["mrc_accuracy"] > 0


@pytest.mark.slow
def test_the_command_from_data_to_report(data_dir, tmp_path):
    """The shrunk demo trains, evaluates and reports; another evaluation has the same scores."""
    fields = dict(
        total_steps=2,
        batch_size=8,
        log_every_steps=1,
        eval_every_steps=0,
        checkpoint_every_steps=0,
    )
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    config = shrunk("demo", data_dir)
    for section, names in (
        ("data", ("data_dir", "sequence_length", "text_min_words", "image_scale")),
        ("model.encoder", ("hidden_size", "num_layers", "num_heads", "mlp_size")),
        ("model.region_head", ("stem_width", "widths", "roi_size")),
    ):
        values = functools.reduce(getattr, section.split("."), config)
        flags += [f"--config.{section}.{name}={values[name]}" for name in names]
    flags += ["--config.opening.steps=1", "--config.losses.region_fixed_until=0"]
    command = [sys.executable, "-m", "vlbert_jax.main", "--config=configs/pretrain.py", f"--workdir={tmp_path}", *flags]
    one_device = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")  # the batch is too small for eight
    environment = os.environ | {"XLA_FLAGS": one_device}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["split"]) for row in rows] == [(1, "train"), (2, "train"), (2, "val")]
    page = (tmp_path / "report/index.html").read_text()
    assert "data:image/" in page and 'src="http' not in page
    assert "hidden regions classified from the caption" in page and "masked words are guessed right" in page
    assert "python -m vlbert_jax.main --config=configs/pretrain.py" in page  # the command
    names = {parse_metric(name).base for name in rows[-1]} - {"step", "split"}
    assert names <= set(PRETRAIN.metric_labels)
    again = subprocess.run([*command, "--mode=evaluate"], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert again.returncode == 0, again.stderr[-2000:]
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores.items() >= {k: v for k, v in rows[-1].items() if "accuracy" in k}.items()


@pytest.mark.slow
def test_a_run_starts_from_a_converted_bert(data_dir, tmp_path, caplog):
    """A run starts from a Hugging Face BERT, converted or not, and updates its weights."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    fields = {"total_steps": 1, "opening.steps": 0, "losses.region_fixed_until": 0, "warmup_steps": 0, "report": False}
    config = shrunk("demo", data_dir, **fields, **{"eval_every_steps": 0, "optimizer.schedule": "constant"})
    sizes = config.model.encoder
    torch.manual_seed(0)
    bert = transformers.BertForPreTraining(
        transformers.BertConfig(
            vocab_size=sizes.vocab_size,
            hidden_size=sizes.hidden_size,
            num_hidden_layers=sizes.num_layers,
            num_attention_heads=sizes.num_heads,
            intermediate_size=sizes.mlp_size,
            max_position_embeddings=sizes.max_positions,
        )
    )
    bert.save_pretrained(tmp_path / "bert")
    assert main([str(tmp_path / "bert"), str(tmp_path / "converted")]) == 0
    caplog.set_level(logging.INFO)
    words = bert.bert.embeddings.word_embeddings.weight.detach().numpy()
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    config.init.bert = str(tmp_path / "bert")
    start = open_run(config, PRETRAIN, tmp_path / "start", mesh).state
    np.testing.assert_array_equal(start.params["vlbert"]["token_embeddings"][...][: len(words)], words)
    config.init.update(dict(bert="", checkpoint=str(tmp_path / "converted")))
    _, state = train(config, PRETRAIN, tmp_path / "run", mesh)
    for field in ("bert", "checkpoint"):
        assert f"parameters of vlbert/encoder: 32 from init.{field}" in caplog.text
    assert "parameters of fast_rcnn/projection: 2 from scratch" in caplog.text
    assert int(state.step) == 1 and bool(state.finite)
    assert main([str(tmp_path / "run"), str(tmp_path / "exported.safetensors"), "--strict"]) == 0
    exported = load_file(tmp_path / "exported.safetensors")
    kernel = state.params["mrc_head"]["classes"]["kernel"][...]
    np.testing.assert_array_equal(exported["module.vlbert.mvrc_head.region_cls_pred.weight"].T, kernel)
    moved = np.abs(np.asarray(state.params["vlbert"]["token_embeddings"][...])[: len(words)] - words)
    assert 0 < moved.max() <= 1.1 * config.learning_rate  # one update of Adam from the weights of BERT
