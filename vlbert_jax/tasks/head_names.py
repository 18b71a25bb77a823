"""Names and sizes of the tensors of heads that several tasks have."""

from collections.abc import Mapping

WORDS = "bert.embeddings.word_embeddings"


def hidden_head(module: str, original: str) -> dict[str, str]:
    """Return module -> tensor of a head with a hidden layer, an activation and a norm, as PyTorch numbers the layers.

    Args:
        module: Module of vlbert_jax.
        original: Prefix of the tensors; layer 1 is the activation, which has none.
    """
    layers = dict(transform=0, norm=2, classes=3)
    return {f"{module}/{layer}": f"{original}.{number}" for layer, number in layers.items()}


def size_of(shapes: Mapping[str, tuple[int, ...]], layer: str) -> tuple[int, int]:
    """Return the outputs and the inputs of a linear layer of PyTorch; (0, 0) where there is none."""
    shape = shapes.get(f"{layer}.weight", ())
    return (shape[0], shape[1]) if len(shape) == 2 else (0, 0)


def reads_one_image(shapes: Mapping[str, tuple[int, ...]], layer: str) -> bool:
    """Return whether a layer reads the pooled vector of one image; one of two images, for NLVR2, is twice as wide."""
    return size_of(shapes, layer)[1] == size_of(shapes, WORDS)[1]
