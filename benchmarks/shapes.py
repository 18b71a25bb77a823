"""Sizes of the benchmarks: the shapes of their synthetic batches, the recipes that fit them, and toy sizes."""

import ml_collections

from configs import pretrain

# Captions (with as many text-only sequences), text tokens of each, boxes, image (width, height).
SHAPES = {
    "base_prec": dict(captions=4, tokens=64, text_tokens=64, boxes=37, image=(800, 600)),
    "base_e2e": dict(captions=1, tokens=20, text_tokens=64, boxes=20, image=(800, 600)),
    "large_e2e": dict(captions=1, tokens=20, text_tokens=64, boxes=20, image=(800, 600)),
}
BASE = ("base_prec", "base_e2e")
SMALL = dict(tokens=16, text_tokens=16, boxes=5, image=(128, 96))  # replaces these numbers at a toy size


def recipe_of(name: str, small: bool = False) -> ml_collections.ConfigDict:
    """Return the config of a recipe without its accumulation of gradients, so that a batch is computed at once."""
    config = getattr(pretrain, name)()
    config.grad_accumulation_steps = 1
    if small:
        shrink(config)
    return config


def shape_of(name: str, captions: int | None = None, small: bool = False) -> dict:
    """Return the shape of a batch of a recipe."""
    shape = SHAPES[name] | (SMALL if small else {})
    return shape | (dict(captions=captions) if captions else {})


def fit_to_shape(config: ml_collections.ConfigDict, shape: dict) -> None:
    """Set the sizes of the batch in a config of pre-training."""
    tokens, boxes = shape["tokens"], shape["boxes"]
    config.batch_size = shape["captions"] * (2 if config.losses.text_only else 1)
    config.data.update(
        dict(
            text_length=tokens,
            text_min_words=shape["text_tokens"],
            max_regions=boxes - 1,
            sequence_length=max(tokens + boxes, shape["text_tokens"]),
            image_scale=tuple(sorted(shape["image"])),
        )
    )


def shrink(config: ml_collections.ConfigDict) -> None:
    """Give a model two layers of width 48 (one of each kind in two streams) and a ResNet of one block per stage."""
    config.model.encoder.update(dict(num_layers=2, hidden_size=48, num_heads=4, mlp_size=96))
    config.model.two_stream.update(dict(layers=(1, 1, 1), visual=(48, 4, 96), cross=(48, 4)))
    config.model.region_head.blocks = (1, 1, 1, 1)
    if config.task == "pretrain":
        config.model.encoder.vocab_size = 2000
