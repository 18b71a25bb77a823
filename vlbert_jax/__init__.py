"""VL-BERT (Su et al., ICLR 2020) in JAX: one Transformer that reads words and image regions together."""

__version__ = "0.1.0"
