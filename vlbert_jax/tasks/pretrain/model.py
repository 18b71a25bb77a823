"""The pre-training model: VL-BERT with the heads of its losses."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vlbert_jax.batch import Batch
from vlbert_jax.model.config import EncoderConfig, RegionHeadConfig
from vlbert_jax.model.layers import MLMHead, PredictionHead, dense, gelu, layer_norm, split_keys
from vlbert_jax.model.two_stream import TwoStreamStates
from vlbert_jax.model.two_stream_config import TwoStreamConfig
from vlbert_jax.model.two_stream_heads import TwoStreamHeads, VisualHead
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
    """VL-BERT or a sibling, of one stream or of two, and the pre-training heads."""

    def __init__(
        self,
        encoder: EncoderConfig | TwoStreamConfig,
        region_head: RegionHeadConfig,
        num_region_classes: int,
        *,
        mrc: bool = True,
        relationship: bool = False,
        relationship_classes: int = 2,
        region_classifier: bool = False,
        regression: bool = False,
        num_attributes: int = 0,
        num_answers: int = 0,
        rngs: nnx.Rngs,
    ):
        """Build the trunk and the heads of the chosen losses.

        In two streams regression has a head of its own, which is that of the region classes with other columns
        (ViLBERT), and `num_attributes` > 0 adds LXMERT's head of objects, attributes and appearance. `num_answers` > 0
        adds its head of answers to the questions among the captions.
        """
        if (relationship or num_answers) and not encoder.pooler:
            which = "relationship" if relationship else "answers"
            raise ValueError(f"the {which} loss reads the pooler: set model.encoder.pooler=True with it")
        super().__init__(encoder, region_head, rngs)
        text, visual = encoder.encoder_config("text"), encoder.encoder_config("visual")
        two_streams, feature_size = self.two_stream is not None, self.fast_rcnn.feature_size
        self.mlm_head = MLMHead(text, self.token_embeddings.shape[0], rngs)
        norm = region_head.architecture.region_class_norm
        columns = feature_size if two_streams and regression else num_region_classes
        mrc = mrc or (two_streams and regression)
        self.mrc_head = PredictionHead(visual, columns, rngs, norm=norm) if mrc else None
        sizes = encoder.pool_size, relationship_classes
        self.relationship_head = dense(*sizes, ("embed", None), text, rngs) if relationship else None
        options = dict(norm=True, inputs=encoder.pool_size, hidden=2 * encoder.pool_size, dropout_rate=0.0)
        self.question_head = PredictionHead(text, num_answers, rngs, **options) if num_answers else None
        classifier = (
            dense(feature_size, num_region_classes, ("feature", None), text, rngs) if region_classifier else None
        )
        self.region_classifier = classifier
        tied = regression and not two_streams
        self.regression_head = RegressionHead(text, feature_size, rngs) if tied else None
        objects = TwoStreamHeads(objects=num_region_classes - 1, attributes=num_attributes, features=feature_size)
        self.visual_head = VisualHead(visual, objects, rngs) if num_attributes else None
        if isinstance(encoder, TwoStreamConfig) and not (self.mrc_head or self.visual_head):
            self.wanted = encoder.pooled_streams if relationship or num_answers else ("text",)

    def encode(self, batch: Batch, region_states, key=None, wanted=None):
        """Return the states of all elements; in two streams, only the first sequence of an example sees its image."""
        n = batch.token_ids.shape[1]
        if batch.boxes is None:  # texts, which pass the layers that those of a training batch do
            wanted = ("text",)
        if self.two_stream is None or region_states is None or n == 1:
            return super().encode(batch, region_states, key, wanted)
        keys = split_keys(key, 2)
        captions = super().encode(_sequences(batch, slice(0, 1)), region_states, keys[0], wanted)
        texts = super().encode(_sequences(batch, slice(1, None)), None, keys[1], ("text",))
        return captions.with_text(texts)

    def mlm_logits(self, states, positions: Int[Array, "b n m"]) -> Float[Array, "b n m v"]:
        """Return a logit per token at the masked words."""
        return self.mlm_head(self.words_at(states, positions), self.token_embeddings[...])

    def mrc_logits(self, states, positions: Int[Array, "b k"]) -> Float[Array, "b k c"]:
        """Return a logit per region class at the hidden regions."""
        return self.mrc_head(self.first_regions_at(states, positions))

    def regressed_features(self, states, positions: Int[Array, "b k"]) -> Float[Array, "b k g"]:
        """Return the appearance that the hidden regions are taken to have."""
        if self.regression_head is None:
            return self.mrc_logits(states, positions)
        kernel = self.fast_rcnn.projection.kernel[...][-self.fast_rcnn.feature_size :]  # without the rows for geometry
        return self.regression_head(self.first_regions_at(states, positions), kernel)

    def visual_predictions(self, states: TwoStreamStates) -> dict[str, Float[Array, "b r c"]]:
        """Return LXMERT's predictions for all regions of the first sequence: objects, attributes, features."""
        return self.visual_head(states.visual[:, 0])

    def question_logits(
        self, states, key=None, token_ids: Int[Array, "b n s"] | None = None
    ) -> Float[Array, "b answers"]:
        """Return a logit per answer to a question among the captions."""
        return self.question_head(self.pooled(states, key, token_ids))

    def relationship_logits(
        self, states, key=None, token_ids: Int[Array, "b n s"] | None = None
    ) -> Float[Array, "b c"]:
        """Return the logits: the caption does not belong, or belongs, to the image.

        A third class means that a second text, as the names of detected objects, does not belong (Oscar).
        """
        return self.relationship_head(self.pooled(states, key, token_ids)).astype(jnp.float32)


def _sequences(batch: Batch, chosen: slice) -> Batch:
    """Return a batch with some of the sequences of each example."""
    names = ("token_ids", "region_ids", "segment_ids", "position_ids", "element_mask")
    return batch.replace(**{name: getattr(batch, name)[:, chosen] for name in names})
