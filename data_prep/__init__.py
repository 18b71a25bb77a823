"""TFDS builders, one per corpus, and the embedded corpus `scenes`."""
