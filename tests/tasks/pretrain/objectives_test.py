"""One objective per update: shares, data, trained modules and scores (UNITER)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_prep.build import build_scenes
from tests.helpers.pretrain_case import FEATURES, PRETRAIN, build, first_batch, losses_and_gradients, shrunk
from vlbert_jax.tasks.pretrain.batches import eval_batches, train_batches
from vlbert_jax.tasks.pretrain.losses import loss_sums
from vlbert_jax.tasks.pretrain.objectives import objective_at
from vlbert_jax.training import sharding
from vlbert_jax.training.loop import train
from vlbert_jax.training.metrics import read_rows
from vlbert_jax.training.preemption import Preemption, Stopped


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_scenes(folder, num_train=40, num_val=20, num_train_stories=20, num_val_stories=8, feature_width=FEATURES)
    return folder


def by_turns(data_dir, **fields):
    config = shrunk("uniter_base", data_dir, **{"total_steps": 1100, "model.encoder.num_layers": 1}, **fields)
    config.data.max_mrc_targets = 6  # all regions
    return config


def test_each_objective_has_its_share_of_the_updates(data_dir):
    config = by_turns(data_dir)
    order = [objective_at(config, step) for step in range(config.total_steps)]
    given = dict(mlm=400, relationship=300, mrc=200, regression=200)
    assert {name: order.count(name) for name in given} == {name: update.number for name, update in updates(config)}
    assert all(abs(order.count(name) - number) <= 3 for name, number in given.items())
    expected = dict(
        mlm=("mlm_caption",), mrc=("mrc",), regression=("regression",), relationship=("relationship", "transport")
    )
    assert {name: update.losses for name, update in updates(config)} == expected
    for step in range(0, 1100, 97):
        assert PRETRAIN.active_losses(config, step) == expected[order[step]]
    config.seed = 1
    assert [objective_at(config, step) for step in range(50)] != order[:50]
    config.losses.ratios.update(dict.fromkeys(given, 0.0))
    assert objective_at(config, 3) == "" and len(PRETRAIN.active_losses(config, 3)) == 5


def updates(config):
    return PRETRAIN.updates(config).items()


def test_captions_are_masked_for_the_objective_of_their_update(data_dir):
    """The records are those of a run without turns; words, regions or pairs are asked, and a restart repeats them."""
    config, plain = by_turns(data_dir), by_turns(data_dir)
    plain.losses.ratios.update(dict.fromkeys(config.losses.ratios, 0.0))
    turns, together = train_batches(config, 0, 0, 1), train_batches(plain, 0, 0, 1)
    seen, own, shapes = {}, [], set()
    for step in range(11):
        batch, other = next(turns), next(together)
        # Row 0, the whole image, is the mean of the regions that are not hidden.
        np.testing.assert_array_equal(batch.region_features[:, 1:], other.region_features[:, 1:])
        shapes.add(tuple(x.shape for x in jax.tree.leaves(batch)))
        targets, objective = batch.targets, objective_at(config, step)
        masked, hidden = targets.mlm_mask.any(-1).mean(), targets.mrc_mask.any(-1).mean()
        assert hidden == batch.region_hidden.any(-1).mean()
        seen.setdefault(objective, []).append((masked, hidden))
        if objective == "relationship":
            own += targets.relationship.tolist()
        else:
            assert targets.relationship.all()
        if objective == "mlm":
            rows = other.targets.relationship == 1
            np.testing.assert_array_equal(targets.mlm_labels[rows], other.targets.mlm_labels[rows])
    assert len(shapes) == 1 and 0.3 < np.mean(own) < 0.7
    # At least one word, or one region, of each caption.
    expected = dict(mlm=(1, 0), mrc=(0, 1), regression=(0, 1), relationship=(0, 0))
    assert {name: {*values} for name, values in seen.items()} == {name: {pair} for name, pair in expected.items()}
    again, later = next(train_batches(config, 10, 0, 1)), batch
    jax.tree.map(np.testing.assert_array_equal, again, later)


def test_an_objective_trains_the_modules_that_it_uses(data_dir):
    config = by_turns(data_dir)
    plain = by_turns(data_dir, **{f"losses.ratios.{name}": 0.0 for name in config.losses.ratios})
    batch, model = first_batch(plain), build(config)
    paths = {"/".join(map(str, path)): path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    _, reached = losses_and_gradients(plain, batch, model)
    heads = dict(mlm="mlm_head", mrc="mrc_head", regression="regression_head", relationship="relationship_head")
    for objective, update in updates(config):
        idle = {name for name, path in paths.items() if PRETRAIN.is_idle(path, config, update.losses)}
        used = set().union(*(reached[name] for name in update.losses))
        assert idle & used <= {"fast_rcnn/hidden_appearance"}  # this batch hides regions whatever the loss is
        assert {name.split("/")[0] for name in idle if "_head" in name} == {*heads.values()} - {heads[objective]}
        assert ("vlbert/pooler/kernel" in idle) == (objective != "relationship")
        assert ("fast_rcnn/hidden_appearance" in idle) == (objective not in ("mrc", "regression"))
        assert not any("encoder" in name or "embeddings" in name for name in idle)
        assert not any(PRETRAIN.is_idle(path, plain, update.losses) for path in paths.values())


@pytest.mark.slow
def test_a_resumed_run_continues_with_the_objective_of_its_update(data_dir, tmp_path):
    """The rows of a run that stops between two objectives are those of a run that does not stop."""
    off = {"losses.regression": False, "losses.relationship": False, "losses.transport": 0.0}
    off |= {"losses.ratios.regression": 0.0, "losses.ratios.relationship": 0.0}
    often = {"log_every_steps": 1, "checkpoint_every_steps": 0, "eval_every_steps": 0, "warmup_steps": 0}
    config = by_turns(data_dir, **off, **often, report=False)
    config.total_steps, mesh = 3, sharding.make_mesh(config.mesh, jax.devices()[:1])

    def order():
        return [objective_at(config, step) for step in range(3)]

    while order() != ["mrc", "mlm", "mlm"]:  # a resumed run with the order of its own updates would begin with mrc
        config.seed += 1
    train(config, PRETRAIN, tmp_path / "whole", mesh)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Preemption, "reached", lambda self: True)
        with pytest.raises(Stopped, match="step 1 is saved"):
            train(config, PRETRAIN, tmp_path / "parts", mesh)
    train(config, PRETRAIN, tmp_path / "parts", mesh)
    whole, parts = (
        [{k: v for k, v in row.items() if "time" not in k and "per_sec" not in k} for row in read_rows(path)]
        for path in (tmp_path / name / "metrics.jsonl" for name in ("whole", "parts"))
    )
    assert whole == parts and len(whole) == 4
    for row, loss in zip(whole, ("mrc_loss", "mlm_caption_loss", "mlm_caption_loss"), strict=False):
        assert {name for name in row if name.endswith("_loss")} == {loss}


def test_an_evaluation_scores_all_objectives(data_dir):
    """Words and regions of captions of other images are in no score, as in training."""
    config = by_turns(data_dir)
    batch = jax.tree.map(jnp.asarray, next(eval_batches(config, 0, 1)["captions"]))
    graphdef, state = nnx.split(build(config))
    names = ("regression", "transport")

    @jax.jit
    def compute(state):
        model = nnx.merge(graphdef, state)
        return PRETRAIN.score(model, batch, config), loss_sums(model, batch, None, config, names)[0]

    found, sums = compute(state)
    own = np.asarray(batch.targets.relationship) == 1
    words, regions = np.asarray(batch.targets.mlm_mask)[own].sum(), np.asarray(batch.targets.mrc_mask)[own].sum()
    assert 0 < own.sum() < len(own) and words and regions
    counts = dict(mlm_caption_accuracy=words, mrc_accuracy=regions, regression_loss=regions)
    counts |= dict(relationship_accuracy=len(own), transport_loss=len(own))
    assert {name: int(found[name][1]) for name in counts} == counts
    for name in names:
        np.testing.assert_allclose(found[f"{name}_loss"][0], sums[name], rtol=1e-5)


@pytest.mark.parametrize("fields, message", [
    ({"losses.ratios.mlm": -1.0}, "config.losses.ratios.mlm is -1.0; it must be"),
    ({"losses.ratios.mrc": 0.0}, "config.losses.mrc is True, but config.losses.ratios.mrc is 0"),
    ({"losses.regression": False}, "config.losses.regression is False, but config.losses.ratios.regression is 2.0"),
    ({"losses.objects": True}, "config.losses.objects is in no objective"),
])  # fmt: skip
def test_shares_and_losses_must_fit(fields, message, data_dir):
    with pytest.raises(ValueError, match=message):
        PRETRAIN.build_model(by_turns(data_dir, **fields), nnx.Rngs(0))
