"""Names of the tensors of heads that several tasks have."""


def hidden_head(module: str, original: str) -> dict[str, str]:
    """Return module -> tensor of a head with a hidden layer, an activation and a norm, as PyTorch numbers the layers.

    Args:
        module: Module of vlbert_jax.
        original: Prefix of the tensors; layer 1 is the activation, which has none.
    """
    layers = dict(transform=0, norm=2, classes=3)
    return {f"{module}/{layer}": f"{original}.{number}" for layer, number in layers.items()}
