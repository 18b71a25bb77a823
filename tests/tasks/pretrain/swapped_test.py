"""Regions that a model sees with the feature of another image's region, as LXMERT's pre-training has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_prep.build import build_scenes
from tests.helpers.pretrain_case import FEATURES, PRETRAIN, build, first_batch, records_of_train, shrunk
from vlbert_jax.data.masking import Samples, mask_regions, swapped_regions
from vlbert_jax.tasks.pretrain.batches import eval_batches, train_batches
from vlbert_jax.tasks.pretrain.losses import loss_sums, with_swaps


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_scenes(folder, num_train=40, num_val=8, num_train_stories=20, num_val_stories=4, feature_width=FEATURES)
    return folder


def recipe(data_dir, **fields):
    losses = {"losses.text_only": False, "losses.mrc": False, "losses.features": True}
    shares = {"data.mask_regions": 0.9, "data.hidden_share": 0.5, "data.swapped_share": 0.5}
    return shrunk("base_prec", data_dir, **{"model.architecture": "lxmert"} | losses | shares | fields)


def test_the_shares_of_the_selected_regions():
    draws = Samples(0.0, 0.0, 0.0, np.zeros(0), np.zeros(0, int), np.linspace(0, 1, 10_000, endpoint=False))
    asked, hidden = mask_regions(draws, 0.15, hidden_share=0.8)
    swapped = swapped_regions(draws, 0.15, 0.8, 0.1)
    np.testing.assert_allclose([asked.sum(), hidden.sum(), len(swapped)], [1500, 1200, 150], atol=1)
    assert asked[swapped].all() and not hidden[swapped].any()
    assert not len(swapped_regions(draws, 0.15, 0.9, 0.0)) and not len(swapped_regions(draws, 0.0, 0.8, 0.1))


def test_features_are_those_of_other_images(data_dir):
    config = recipe(data_dir)
    known = {}
    for number, record in enumerate(records_of_train(data_dir, config.data.captions)):
        known |= {np.asarray(feature, np.float32).tobytes(): number for feature in record["features"]}
    batch = next(train_batches(config, 0, 0, 1))
    rows, features, count = batch.targets.swap_rows, batch.targets.swap_features, 0
    for example, row in np.argwhere(rows > 0):
        place = rows[example, row]
        own, other = batch.region_features[example, place], features[example, row]
        assert batch.region_mask[example, place] and not batch.region_hidden[example, place]
        assert place in batch.targets.mrc_regions[example][batch.targets.mrc_mask[example]]
        assert known[other.tobytes()] != known[own.tobytes()]
        count += 1
    selected, hidden = batch.targets.mrc_mask.sum(), batch.region_hidden.sum()
    assert count > 10 and abs(count + hidden - selected) <= batch.region_mask.sum() * 0.1  # few fall beyond the targets
    (evaluated,) = eval_batches(config, 0, 1).values()
    assert next(evaluated).targets.swap_rows is None
    with pytest.raises(ValueError, match="swapped_share is 0.5, but regions of images have no stored features"):
        next(train_batches(recipe(data_dir, **{"data.features": "image"}), 0, 0, 1))
    with pytest.raises(ValueError, match="hidden_share is 0.9 and config.data.swapped_share 0.5: both are shares of"):
        next(train_batches(recipe(data_dir, **{"data.hidden_share": 0.9}), 0, 0, 1))


def test_the_model_sees_them_and_predicts_the_own_ones(data_dir):
    """The loss is that of a batch with these features whose targets are the own ones."""
    config = recipe(data_dir)
    batch = first_batch(config)
    model, names = build(config), PRETRAIN.active_losses(config, 0)
    seen = np.array(batch.region_features)
    for example, row in np.argwhere(np.asarray(batch.targets.swap_rows) > 0):
        seen[example, batch.targets.swap_rows[example, row]] = batch.targets.swap_features[example, row]
    changed = np.abs(seen - batch.region_features).max(-1) > 0
    assert changed.sum() == (batch.targets.swap_rows > 0).sum()
    np.testing.assert_array_equal(with_swaps(batch.region_features, batch), seen)
    plain = batch.replace(targets=batch.targets.replace(swap_rows=None, swap_features=None))
    assert with_swaps(plain.region_features, plain) is plain.region_features

    @jax.jit
    def predicted(batch):
        states = model.encode(batch, model.region_states(batch, model.appearance(batch)))
        return model.visual_predictions(states)["features"]

    sums, _ = jax.jit(lambda batch: loss_sums(model, batch, None, config, names))(batch)
    asked = np.zeros(batch.region_mask.shape, bool)
    for example, mask in enumerate(np.asarray(batch.targets.mrc_mask)):
        asked[example, np.asarray(batch.targets.mrc_regions)[example][mask]] = True
    errors = [
        np.abs(predicted(batch.replace(region_features=jnp.asarray(given))) - batch.region_features[:, 1:])
        for given in (seen, batch.region_features)
    ]
    expected, other = (
        np.where(e < 1, e**2 / 2, e - 0.5).mean(-1)[asked[:, 1:]].sum() / 0.15 for e in errors
    )
    np.testing.assert_allclose(sums["features"], expected, rtol=1e-5)
    assert abs(expected - other) > 1e-3
