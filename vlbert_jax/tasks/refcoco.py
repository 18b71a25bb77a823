"""Referring expressions: which region does the phrase mean (paper, section 4.3)."""

from flax import nnx
from jaxtyping import Array, Float, Int

from vlbert_jax.tasks.model import PredictionHead, VisualLinguisticModel, at, model_options


class RefCOCOModel(VisualLinguisticModel):
    """VL-BERT and a score per region; the head's hidden layer starts as that of masked regions."""

    def __init__(self, encoder, fast_rcnn: dict, rngs: nnx.Rngs):
        super().__init__(encoder, fast_rcnn, rngs)
        self.region_head = PredictionHead(encoder, 1, rngs)

    def region_logits(self, states: Float[Array, "b 1 s d"], positions: Int[Array, "b r"]) -> Float[Array, "b r"]:
        """`positions` are those of the regions in the sequence."""
        return self.region_head(at(states[:, 0], positions))[..., 0]


def build_model(config, rngs: nnx.Rngs) -> RefCOCOModel:
    return RefCOCOModel(*model_options(config), rngs)
