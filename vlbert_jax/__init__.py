"""VL-BERT (Su et al., ICLR 2020) in JAX: one Transformer that reads words and image regions together."""

import os

# Of transformers only tokenizers are used here: that PyTorch is missing is no news.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def load(path, **options):
    """A trained model for pictures of one's own: `vlbert_jax.predictor.load`, imported when it is called."""
    from vlbert_jax.prediction import predictor

    return predictor.load(path, **options)


__version__ = "0.1.0"
