"""TFDS builders, one per corpus, and the generators of the synthetic corpora."""

import vlbert_jax as vlbert_jax  # it arranges what Ctrl-C does while a command is imported
