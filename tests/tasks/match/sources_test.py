"""Retrieval without fine-tuning, from pre-training with the relationship loss; and models of two streams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import pretrain, retrieval
from tests.helpers.predict_case import on_model, write_model
from tests.helpers.retrieval_case import build_tables, shrunk
from vlbert_jax.tasks import get_task
from vlbert_jax.tasks.match.batches import candidates_of
from vlbert_jax.tasks.match.examples import PairLayout, pair_on_device
from vlbert_jax.training import sharding
from vlbert_jax.training.evaluate import evaluate_run
from vlbert_jax.training.state import split_model
from vlbert_jax.weights import vlbert_names

MATCH = get_task("match")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return build_tables(tmp_path_factory.mktemp("data"))


def pretrained(path, data_dir, relationship):
    fields = {"losses.relationship": relationship, "model.encoder.pooler": relationship, "model.num_region_classes": 5}
    config = shrunk(pretrain.base_prec(), data_dir, **fields)
    return write_model(path, config), config


def test_scores_without_fine_tuning_are_the_difference_of_the_two_logits(data_dir, tmp_path, monkeypatch):
    path, source = pretrained(tmp_path / "weights", data_dir, True)
    config = shrunk(retrieval.flickr30k(), data_dir, **{"init.checkpoint": str(path), "init.scratch": False})
    rows = {}
    monkeypatch.setattr(type(MATCH), "joint_scores", lambda self, found, config: rows.update(found) or {})
    evaluate_run(config, MATCH, tmp_path, sharding.make_mesh(config.mesh, jax.devices()[:1]))

    def logits(model, batch):
        return model.relationship_logits(model.states(batch), None, batch.token_ids)

    candidates, layout = candidates_of(config), PairLayout.of(config)
    run = on_model(path, source, logits)
    batch = jax.tree.map(jnp.asarray, next(MATCH.eval_batches(config, 0, 1)["images"]))
    ids, lengths = (jnp.asarray(values[3:4]) for values in (candidates.ids, candidates.lengths))
    vocab_size = config.model.encoder.vocab_size
    pairs = pair_on_device(ids, lengths, batch.region_mask.sum(1), 13, vocab_size, layout.regions)
    of_text = np.array(run(batch.replace(**pairs)))
    np.testing.assert_allclose(rows["scores"][batch.index, 3], of_text[:, 1] - of_text[:, 0], atol=1e-5)
    assert np.ptp(of_text) > 0.1


def test_weights_without_the_head_are_refused(data_dir, tmp_path):
    path, _ = pretrained(tmp_path / "weights", data_dir, False)
    config = shrunk(retrieval.flickr30k(), data_dir, **{"init.checkpoint": str(path), "init.scratch": False})
    with pytest.raises(ValueError, match="such as .*reads the head of the relationship loss, which released VL-BERTs"):
        evaluate_run(config, MATCH, tmp_path, sharding.make_mesh(config.mesh, jax.devices()[:1]))


@pytest.mark.slow
def test_two_streams_score_a_pair_alike_in_training_and_evaluation(data_dir):
    """In a choice the sequences of an example have different images; alone there is one image."""
    fields = {"model.architecture": "lxmert", "model.encoder.init_deviation": 0.5}
    config = shrunk(retrieval.flickr30k(), data_dir, **fields)
    graphdef, params, constants = split_model(MATCH.build_model(config, nnx.Rngs(0)), MATCH, config)
    batch = jax.tree.map(jnp.asarray, next(MATCH.train_batches(config, 0, 0, 1)))
    images = ("boxes", "region_mask", "region_hidden", "region_features", "box_geometry")

    @jax.jit
    def score(batch):
        model = nnx.merge(graphdef, params, constants)
        return model.pair_scores(model.pair_states(batch), batch.token_ids)

    def alone(k, image):
        rows = batch.region_mask.shape[1] // 2
        part = slice(image * rows, (image + 1) * rows)
        fields = {name: getattr(batch, name)[:, part] for name in images if getattr(batch, name) is not None}
        names = ("token_ids", "region_ids", "segment_ids", "position_ids", "element_mask")
        fields |= {name: getattr(batch, name)[:, k : k + 1] for name in names}
        return score(batch.replace(**fields, image_size=batch.image_size[:, image : image + 1]))

    expected = jnp.concatenate([alone(k, image) for k, image in enumerate((0, 0, 0, 1))], axis=1)
    found = score(batch)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found[:, 0] - found[:, 3]).max() > 1e-4  # the same text with two images


def test_heads_of_pretraining_start_those_of_a_run_of_several_tasks():
    ends = dict(
        match=["vlbert.relationsip_head.caption_image_relationship.weight"],
        caption=["vlbert.mlm_head.predictions.bias", "vlbert.mlm_head.predictions.transform.dense.weight"],
    )
    tensors = {name: np.zeros(2) for names in ends.values() for name in names}
    found = vlbert_names.warm_start(tensors, "mixture")
    assert {f"heads.{task}.{name}" for task, names in ends.items() for name in names} <= found.keys()
    assert vlbert_names.warm_start(tensors, "match").keys() == tensors.keys()
    (entry,) = vlbert_names.name_table({("heads", "caption", "mlm_head", "bias"): (30,)}, 20)
    assert entry.official == f"heads.caption.{ends['caption'][0]}" and entry.rows == (0, 20)
