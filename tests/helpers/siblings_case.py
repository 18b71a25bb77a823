"""Write small files of VL-BERT's siblings as their authors do, with random values."""

import re
from pathlib import Path

import numpy as np

from tests.helpers.weights_case import official_shapes

HEADS = ("--num_heads=2",)
KEPT = (2048, 2054)  # widths of features
COPIES = {"decoder.weight": "word_embeddings.weight", "decoder.bias": "predictions.bias"}


def small_tensors(name: str, layers: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Return random tensors of the list names_`name`.tsv with fewer layers and smaller widths; copies share memory."""

    def small(n: int) -> int:
        return n if n < 16 or n in KEPT else n // 64 if n > 2000 else n // 48

    rng, tensors = np.random.default_rng(seed), {}
    for key, shape in official_shapes(name).items():
        layer = re.search(r"\.layer\.(\d+)\.", key)
        if layer is None or int(layer[1]) < layers:
            tensors[key] = 0.3 * rng.standard_normal(tuple(map(small, shape)), dtype=np.float32)
    for key in tensors:
        for copy, original in COPIES.items():
            if key.endswith(copy):
                tensors[key] = next(array for other, array in tensors.items() if other.endswith(original))
        if key == "feat_regress.weight":
            tensors[key] = tensors["uniter.img_embeddings.img_linear.weight"]
        if key.endswith("mask_embedding.weight"):
            tensors[key][0] = 0  # no model reads this row
    return tensors


def save(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """Write a PyTorch file of the tensors alone, and return its path."""
    import torch

    shared = {id(array): torch.from_numpy(array) for array in tensors.values()}
    torch.save({name: shared[id(array)] for name, array in tensors.items()}, path)
    return path
