"""The pre-training model: VL-BERT with the heads of its losses."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vlbert_jax.model.config import EncoderConfig, RegionHeadConfig
from vlbert_jax.model.layers import MLMHead, PredictionHead, dense, gather_positions, gelu, layer_norm
from vlbert_jax.model.visual_linguistic import VisualLinguisticModel


class RegressionHead(nnx.Module):
    """Hidden layer, GELU and norm; then the projection of the regions backwards, with a separate bias (UNITER)."""

    def __init__(self, config: EncoderConfig, feature_size: int, rngs: nnx.Rngs):
        size = config.hidden_size
        self.gelu = config.architecture.gelu
        self.transform = dense(size, size, ("embed", None), config, rngs)
        self.norm = layer_norm(size, config.dtype, rngs)
        self.bias = nnx.Param(jnp.zeros(feature_size), axes=("feature",))

    @jax.named_scope("head")
    def __call__(self, states: Float[Array, "... d"], kernel: Float[Array, "g d"]) -> Float[Array, "... g"]:
        """Return float32 features."""
        hidden = self.norm(gelu(self.transform(states), self.gelu))
        features = jnp.einsum("...d,gd->...g", hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
        return features + jnp.expand_dims(self.bias[...], tuple(range(features.ndim - 1)))


class PretrainingModel(VisualLinguisticModel):
    """VL-BERT and the pre-training heads."""

    def __init__(
        self,
        encoder: EncoderConfig,
        region_head: RegionHeadConfig,
        num_region_classes: int,
        *,
        mrc: bool = True,
        relationship: bool = False,
        relationship_classes: int = 2,
        region_classifier: bool = False,
        regression: bool = False,
        rngs: nnx.Rngs,
    ):
        if relationship and not encoder.pooler:
            raise ValueError("the relationship loss reads the pooler: set model.encoder.pooler=True with it")
        super().__init__(encoder, region_head, rngs)
        self.mlm_head = MLMHead(encoder, self.vlbert.token_embeddings.shape[0], rngs)
        norm = encoder.architecture.region_class_norm
        self.mrc_head = PredictionHead(encoder, num_region_classes, rngs, norm=norm) if mrc else None
        size = encoder.hidden_size
        classes = relationship_classes
        self.relationship_head = dense(size, classes, ("embed", None), encoder, rngs) if relationship else None
        classifier = (
            dense(self.fast_rcnn.feature_size, num_region_classes, ("feature", None), encoder, rngs)
            if region_classifier
            else None
        )
        self.region_classifier = classifier
        self.regression_head = RegressionHead(encoder, self.fast_rcnn.feature_size, rngs) if regression else None

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

    def regressed_features(
        self, states: Float[Array, "b n s d"], positions: Int[Array, "b k"]
    ) -> Float[Array, "b k g"]:
        """Return the appearance that the hidden regions are taken to have."""
        kernel = self.fast_rcnn.projection.kernel[...][-self.fast_rcnn.feature_size :]  # without the rows for geometry
        return self.regression_head(gather_positions(states[:, 0], positions), kernel)

    def relationship_logits(self, states: Float[Array, "b n s d"]) -> Float[Array, "b c"]:
        """Return the logits: the caption does not belong, or belongs, to the image.

        A third class means that a second text, as the names of detected objects, does not belong (Oscar).
        """
        return self.relationship_head(self.vlbert.pool(states[:, 0])).astype(jnp.float32)
