"""TFDS builders, one per corpus, and the generators of the synthetic corpora."""
