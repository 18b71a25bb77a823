"""Visual commonsense reasoning: four sequences, one per choice, share an image (paper, section 4.1)."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vlbert_jax.encoder import dense, dropout
from vlbert_jax.tasks.model import PredictionHead, VisualLinguisticModel, at, model_options


class VCRModel(VisualLinguisticModel):
    """VL-BERT with a pooler, a score per choice, and the auxiliary classes of the objects (official CNN_LOSS_TOP)."""

    def __init__(self, encoder, fast_rcnn: dict, num_object_classes: int, rngs: nnx.Rngs):
        encoder = dataclasses.replace(encoder, pooler=True)
        super().__init__(encoder, fast_rcnn, rngs)
        self.dropout_rate = encoder.dropout_rate
        self.choice_head = dense(encoder.hidden_size, 1, ("embed", None), encoder, rngs)
        self.object_head = PredictionHead(encoder, num_object_classes, rngs)

    def choice_logits(self, states: Float[Array, "b n s d"], key=None) -> Float[Array, "b n"]:
        pooled = dropout(self.vlbert.pool(states), self.dropout_rate, key)
        return self.choice_head(pooled)[..., 0].astype(jnp.float32)

    def object_logits(
        self, states: Float[Array, "b n s d"], positions: Int[Array, "b n r"]
    ) -> Float[Array, "b n r c"]:
        """`positions` are those of the regions in their sequences."""
        return self.object_head(at(states, positions))


def build_model(config, rngs: nnx.Rngs) -> VCRModel:
    """The model of a config; config.model.num_object_classes counts the background too."""
    return VCRModel(*model_options(config), config.model.num_object_classes, rngs)
