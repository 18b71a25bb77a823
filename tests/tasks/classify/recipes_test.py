"""The shipped recipes of classification have valid shapes at their full size; no values are computed."""

import jax
import pytest
from flax import nnx

from configs import classify as recipes
from vlbert_jax.tasks import get_task
from vlbert_jax.tasks.classify.examples import labels_of

CLASSIFY = get_task("classify")
# Recipe -> images, sequences and elements of an example.
SHAPES = {
    "demo": (1, 1, 32), "demo_pairs": (2, 2, 32), "nlvr2": (2, 2, 78), "nlvr2_controlled": (2, 2, 78),
    "nlvr2_uniter": (2, 2, 161), "nlvr2_uniter_large": (2, 2, 161), "nlvr2_oscar_large": (2, 2, 95),
    "nlvr2_lxmert": (2, 2, 20), "nlvr2_visualbert": (2, 1, 418), "nlvr2_oscar": (2, 2, 95), "snli_ve": (1, 1, 158),
    "snli_ve_uniter": (1, 1, 162), "snli_ve_uniter_large": (1, 1, 162), "hateful_memes": (1, 1, 230),
}  # fmt: skip


def test_every_recipe_is_checked():
    assert set(SHAPES) == {variant.__name__ for variant in recipes.VARIANTS}


@pytest.mark.parametrize("variant", SHAPES)
def test_shapes(variant):
    config = recipes.get_config(variant)
    assert len(labels_of(config)) == config.model.num_labels
    batch = CLASSIFY.batch_shapes(config)
    images, sequences, elements = SHAPES[variant]
    assert batch.image_size.shape[1] == images and batch.token_ids.shape[1:] == (sequences, elements)


@pytest.mark.parametrize(
    "variant", ["nlvr2_uniter", "nlvr2_lxmert", "nlvr2_oscar", "nlvr2_oscar_large", "snli_ve_uniter"]
)
def test_losses(variant):
    config = recipes.get_config(variant)
    key, batch = jax.eval_shape(lambda: jax.random.key(0)), CLASSIFY.batch_shapes(config)
    sums, metrics = nnx.eval_shape(
        lambda batch, key: CLASSIFY.loss_sums(
            CLASSIFY.build_model(config, nnx.Rngs(0)), batch, key, config, ("classify",)
        ),
        batch,
        key,
    )
    assert sums["classify"].shape == () and set(metrics) == {"classify_accuracy"}
