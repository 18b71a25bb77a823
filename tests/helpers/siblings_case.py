"""Write small files of VL-BERT's siblings as their authors do, with random values."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.weights_case import official_shapes

HEADS = ("--num_heads=2",)
KEPT = (2048, 2054)  # widths of features
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"what is on the table a cat ? red ball".split()]
COPIES = {".predictions.decoder.weight": "word_embeddings.weight", ".predictions.decoder.bias": "predictions.bias"}


def small_tensors(name: str, layers: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Return random tensors of the list names_`name`.tsv with fewer layers and smaller widths; copies share memory."""

    def small(n: int) -> int:
        if ".in_proj_" in key and n != 768:  # query, key and value
            return 3 * small(n // 3)
        return n if n < 32 or (n in KEPT and not key.startswith("vil_")) else n // 64 if n > 2048 else n // 48

    rng, tensors = np.random.default_rng(seed), {}
    for key, shape in official_shapes(name).items():
        layer = re.search(r"\.(?:layer|[rx]_layers)\.(\d+)\.", key)
        if layer is None or int(layer[1]) < layers:
            tensors[key] = np.asarray(0.3 * rng.standard_normal(tuple(map(small, shape)), dtype=np.float32))
    for key in tensors:
        for copy, original in COPIES.items():
            if key.endswith(copy):
                tensors[key] = next(array for other, array in tensors.items() if other.endswith(original))
        if key.endswith(".weight_g"):
            tensors[key] = np.asarray(np.abs(tensors[key]))
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


def write_words(folder: Path, count: int) -> None:
    """Write a vocabulary of `count` tokens."""
    words = WORDS + [f"w{i}" for i in range(count - len(WORDS))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")


def write_image(folder: Path, size: tuple[int, int]) -> Path:
    """Write an image of this width and height, and return its path."""
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return folder / "photo.png"


def regions(width: int, count: int = 4, labels=()) -> dict:
    """Return the content of a file of boxes with features, in an image of at least 80 x 80 pixels."""
    rng = np.random.default_rng(1)
    low = rng.uniform(0, 40, (count, 2))
    content = dict(boxes=np.concatenate([low, low + rng.uniform(5, 40, (count, 2))], 1).tolist())
    content["features"] = rng.normal(size=(count, width)).astype(np.float32).tolist()
    return content | (dict(labels=list(labels)) if labels else {})
