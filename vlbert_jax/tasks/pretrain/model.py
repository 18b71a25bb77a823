"""The pre-training model: VL-BERT with the heads of its losses."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vlbert_jax.model.config import EncoderConfig, RegionHeadConfig
from vlbert_jax.model.layers import PredictionHead, dense, gather_positions, gelu, layer_norm
from vlbert_jax.model.visual_linguistic import VisualLinguisticModel


class MLMHead(nnx.Module):
    """Hidden layer, GELU and norm; the decoder is the token table with a separate bias."""

    def __init__(self, config: EncoderConfig, rows: int, rngs: nnx.Rngs):
        size = config.hidden_size
        self.vocab_size, self.gelu = config.vocab_size, config.architecture.gelu
        self.transform = dense(size, size, ("embed", None), config, rngs)
        self.norm = layer_norm(size, config.dtype, rngs)
        self.bias = nnx.Param(jnp.zeros(rows), axes=("vocab",))

    @jax.named_scope("head")
    def __call__(
        self, states: Float[Array, "... d"], table: Float[Array, "rows d"]
    ) -> Float[Array, "... rows"]:
        """Return float32 logits; rows of the table that are not words get -inf."""
        hidden = self.norm(gelu(self.transform(states), self.gelu))
        logits = jnp.einsum(
            "...d,vd->...v", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        bias = jnp.where(jnp.arange(table.shape[0]) < self.vocab_size, self.bias[...], -jnp.inf)
        return logits + jnp.expand_dims(bias, tuple(range(logits.ndim - 1)))


class PretrainingModel(VisualLinguisticModel):
    """VL-BERT and the pre-training heads."""

    def __init__(
        self,
        encoder: EncoderConfig,
        region_head: RegionHeadConfig,
        num_region_classes: int,
        *,
        relationship: bool = False,
        region_classifier: bool = False,
        rngs: nnx.Rngs,
    ):
        if relationship and not encoder.pooler:
            raise ValueError("the relationship loss reads the pooler: set model.encoder.pooler=True with it")
        super().__init__(encoder, region_head, rngs)
        self.mlm_head = MLMHead(encoder, self.vlbert.token_embeddings.shape[0], rngs)
        self.mrc_head = PredictionHead(encoder, num_region_classes, rngs)
        size = encoder.hidden_size
        self.relationship_head = dense(size, 2, ("embed", None), encoder, rngs) if relationship else None
        classifier = (
            dense(self.fast_rcnn.feature_size, num_region_classes, ("feature", None), encoder, rngs)
            if region_classifier
            else None
        )
        self.region_classifier = classifier

    def mlm_logits(
        self, states: Float[Array, "b n s d"], positions: Int[Array, "b n m"]
    ) -> Float[Array, "b n m v"]:
        """Return a logit per token at the masked words."""
        return self.mlm_head(gather_positions(states, positions), self.vlbert.token_embeddings[...])

    def mrc_logits(
        self, states: Float[Array, "b n s d"], positions: Int[Array, "b k"]
    ) -> Float[Array, "b k c"]:
        """Return a logit per region class at the hidden regions."""
        return self.mrc_head(gather_positions(states[:, 0], positions))

    def relationship_logits(self, states: Float[Array, "b n s d"]) -> Float[Array, "b 2"]:
        """Return two logits: the caption does not belong, or belongs, to the image."""
        return self.relationship_head(self.vlbert.pool(states[:, 0])).astype(jnp.float32)
