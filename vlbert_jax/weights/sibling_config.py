"""The config of a sibling of VL-BERT from the shapes of its tensors: what the published files determine."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_collections

from vlbert_jax.model.architectures import get_architecture
from vlbert_jax.model.two_stream_config import two_stream_options
from vlbert_jax.weights.family_names import WORDS, family_of
from vlbert_jax.weights.family_start import OBJECT_WORDS
from vlbert_jax.weights.read import Weights
from vlbert_jax.weights.two_stream_options import config_from_tensors

PUBLISHED_HEADS = {768: 12, 1024: 16}  # width of every published model -> its attention heads
# Size of a vocabulary -> name of it; that with words for objects is UNITER's, which are not published.
TOKENIZERS = {28996: "bert-base-cased", 28996 + OBJECT_WORDS: "bert-base-cased", 30522: "bert-base-uncased"}
BOTTOM_UP = "the bottom-up-attention detector (ResNet-101, Visual Genome)"  # the one of this package
DETECTORS = {
    "uniter": BOTTOM_UP,
    "oscar": BOTTOM_UP,
    "vinvl": "VinVL's detector (ResNeXt-152 C4, four data sets)",
    "lxmert": BOTTOM_UP,
    "vilbert": BOTTOM_UP,
    "12-in-1": "12-in-1's detector (ResNeXt-152, fc6, Visual Genome)",
    "b2t2": "a ResNet-152 v2 on the image and on crops",
}
VISUALBERT_DETECTORS = {  # by the width of a feature
    2048: "Pythia's detector (ResNeXt, fc6, Visual Genome)",
    1024: "Detectron's Mask R-CNN (ResNet-101-FPN, fc6, COCO)",
    512: "the region head in VisualBERT's own code (ResNet-50)",
}
LAYER = "bert.encoder.layer.0.intermediate.dense.weight"


def family_config(source: Weights, num_heads: int | None) -> dict[str, Any]:
    """Return the config of the model that the tensors of `source` are of; `Task.config_from_family` has further fields.

    Raises:
        ValueError: A tensor that determines a size is missing, or nothing says how many heads there are.
    """
    architecture = get_architecture(source.architecture)
    if architecture.streams == 2:
        return _two_stream_config(source, num_heads)
    shapes = {name: array.shape for name, array in source.tensors.items()}
    positions, segments = (f"bert.embeddings.{kind}_embeddings.weight" for kind in ("position", "token_type"))
    projection = f"{family_of(architecture).modules['fast_rcnn/projection']}.weight"
    if lacking := [name for name in (WORDS, positions, segments, LAYER, projection) if name not in shapes]:
        raise ValueError(f"the weights of {architecture.name} lack {', '.join(lacking)}")
    vocab_size, hidden_size = shapes[WORDS]
    heads = num_heads or source.num_heads or PUBLISHED_HEADS.get(hidden_size)
    if heads is None:
        raise ValueError(
            f"weights do not say how many attention heads there are, and no published {architecture.name} is "
            f"{hidden_size} wide: put its config.json (num_attention_heads) next to the weights, or convert them with "
            "--num_heads"
        )
    joined = architecture.geometry_size if architecture.geometry == "joint" else 0
    return dict(
        compute_dtype="float32",
        model=dict(
            architecture=architecture.name,
            encoder=dict(
                vocab_size=vocab_size,
                hidden_size=hidden_size,
                num_layers=sum(name.endswith("intermediate.dense.weight") for name in shapes),
                num_heads=heads,
                mlp_size=shapes[LAYER][0],
                max_positions=shapes[positions][0],
                num_segments=shapes[segments][0],
                pooler="bert.pooler.dense.weight" in shapes,
            ),
            **_without_pixels(shapes[projection][1] - joined),
        ),
        **_data(source, vocab_size, shapes[projection][1] - joined),
    )


def _without_pixels(feature_size: int) -> dict[str, Any]:
    """Return the fields of a model that reads precomputed features; it has no ResNet."""
    resnet = dict(stem_width=64, widths=(64, 128, 256, 512), blocks=(3, 4, 23, 3), strides=(1, 2, 2))
    resnet |= dict(stride_in_1x1=True, frozen_stages=(1, 2), frozen_batch_norm=True)
    return dict(region_head=resnet, train_region_head=False, feature_size=feature_size)


def _data(source: Weights, vocab_size: int, feature_size: int, system: str = "") -> dict[str, Any]:
    """Return the fields about data and losses; `system` is the name in DETECTORS, "" = the architecture."""
    return dict(
        data=dict(
            features="precomputed",
            hide_pixels=False,
            expects=expected_detector(system or source.architecture, feature_size),
            vocab=source.vocab or TOKENIZERS.get(vocab_size, "bert-base-uncased"),
        ),
        losses=dict(region=0.0),
    )


def _two_stream_config(source: Weights, num_heads: int | None) -> dict[str, Any]:
    """Return the config of LXMERT or ViLBERT; raise ValueError where `config.model` cannot express the model."""
    shapes = {name: array.shape for name, array in source.tensors.items()}
    settings = source.settings | (dict(num_attention_heads=num_heads) if num_heads else {})
    found = config_from_tensors(shapes, settings)
    text, vilbert = found.text, source.architecture == "vilbert"
    numbers = {kinds: sum(n for group, n in found.layers if kinds in group) for kinds in "tvx"}
    # The first two of LXMERT are the layers before those of both streams.
    before = 0 if vilbert else numbers["x"]
    published = 64, (128 if vilbert else 64)
    sizes = (text.hidden_size // text.num_heads, found.visual.hidden_size // found.visual.num_heads)
    if sizes != published and "num_attention_heads" not in settings:
        raise ValueError(
            "weights do not say how many attention heads there are, and no published model has these widths: put its "
            "config.json (num_attention_heads) next to the weights, or convert them with --num_heads"
        )
    config = dict(
        compute_dtype="float32",
        model=dict(
            architecture=source.architecture,
            encoder=dict(
                vocab_size=found.vocab_size,
                hidden_size=text.hidden_size,
                num_layers=numbers["t"],
                num_heads=text.num_heads,
                mlp_size=text.mlp_size,
                max_positions=found.max_positions,
                num_segments=found.num_segments,
                dropout_rate=found.dropout_rate,
                init_deviation=found.init_deviation,
                scan_layers=True,
                remat="none",
                pooler=True,
            ),
            two_stream=dict(
                layers=(numbers["t"] - before, numbers["v"] - before, numbers["x"]),
                visual=dataclasses.astuple(found.visual),
                cross=(found.cross_size, found.cross_heads),
                task_tokens=found.task_tokens,
                task_number=0,
            ),
            switches=dict(product_size=found.pool_size if found.pool == "mul" else 0),
            **_without_pixels(found.feature_size),
        ),
        **_data(source, found.vocab_size, found.feature_size, "12-in-1" if found.task_tokens else ""),
    )
    built, _ = two_stream_options(ml_collections.ConfigDict(config))
    for field in ("layers", "geometry_size", "pool", "num_segments"):
        if getattr(built, field) != getattr(found, field):
            said = {"pool": "fusion_method", "layers": "t_biattention_id, v_biattention_id"}.get(field)
            said = f" (config.json: {said})" if said and source.settings else ""
            raise ValueError(
                f"the model of these weights has {field}={getattr(found, field)}{said}, but {source.architecture} here "
                f"has {getattr(built, field)}"
            )
    return config


def expected_detector(architecture: str, feature_size: int) -> str:
    """Return the detector whose features published weights were trained on, "" if unknown."""
    by_width = VISUALBERT_DETECTORS if architecture == "visualbert" else {}
    return by_width.get(feature_size) or DETECTORS.get(architecture.removesuffix("_positions"), "")
