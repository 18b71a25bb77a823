"""Visual question answering: the answer is read at a [MASK] behind the question (paper, section 4.2)."""

from flax import nnx
from jaxtyping import Array, Float, Int

from vlbert_jax.tasks.model import PredictionHead, VisualLinguisticModel, at, model_options


class VQAModel(VisualLinguisticModel):
    """VL-BERT and the head over the answer vocabulary; the head's hidden layer starts as that of masked words."""

    def __init__(self, encoder, fast_rcnn: dict, num_answers: int, rngs: nnx.Rngs):
        super().__init__(encoder, fast_rcnn, rngs)
        self.answer_head = PredictionHead(encoder, num_answers, rngs, norm=True, dropout_rate=encoder.dropout_rate)

    def answer_logits(
        self, states: Float[Array, "b 1 s d"], positions: Int[Array, " b"], key=None
    ) -> Float[Array, "b answers"]:
        """`positions` are those of [MASK]."""
        return self.answer_head(at(states[:, 0], positions[:, None])[:, 0], key)


def build_model(config, rngs: nnx.Rngs) -> VQAModel:
    """The model of a config; config.model.num_answers is the size of the answer vocabulary."""
    return VQAModel(*model_options(config), config.model.num_answers, rngs)
