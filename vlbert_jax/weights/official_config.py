"""The config.json that authors put next to their weights: what it must say, and whether it is of these weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlbert_jax.files import read_json_object
from vlbert_jax.weights import two_stream_names

HEADS = ("num_attention_heads", "v_num_attention_heads", "bi_num_attention_heads")
CONNECTIONS = ("t_biattention_id", "v_biattention_id")  # ViLBERT's layers from which streams read each other
SUPPORTED = dict(
    hidden_act=("gelu",),
    position_embedding_type=("absolute",),
    dynamic_attention=(False,),
    fusion_method=("mul", "sum"),
)


def read_official_config(file: Path) -> dict[str, Any]:
    """Return the fields of an official config.

    Raises:
        ValueError: The file is not such a config, a field that is read has another type, or the model has an option
            that is not supported.
    """
    fields = read_json_object(file, "download it again")
    for name in HEADS:
        if (value := fields.get(name)) is not None and not _is_number(value, 1):
            raise ValueError(f"{file} says {name} {value!r}; it must be a whole number from 1 on")
    for name in CONNECTIONS:
        value = fields.get(name, [])
        if not isinstance(value, list) or not all(_is_number(layer, 0) for layer in value):
            raise ValueError(f"{file} says {name} {value!r}; it must be a list of the numbers of layers")
    for name, values in SUPPORTED.items():
        if name in fields and fields[name] not in values:
            raise ValueError(f"{file} says {name} {fields[name]}; only {' or '.join(map(str, values))} is supported")
    return fields


def _is_number(value: Any, least: int) -> bool:
    return type(value) is int and value >= least


def check_official_config(
    file: Path, fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], kind: str, streams: int
) -> None:
    """Raise ValueError if a config is of another model than the weights next to it.

    Args:
        file: The config.
        fields: Its fields.
        shapes: Name in the table of the model -> shape.
        kind: Name of the architecture, or BERT.
        streams: Streams of the model.
    """
    if streams == 2:
        expected = dict(model_type=kind) | _two_stream_sizes(shapes, kind)
    else:
        words = next(shape for name, shape in shapes.items() if name.endswith("word_embeddings.weight"))
        layers = sum(name.endswith("intermediate.dense.weight") for name in shapes)
        expected = dict(vocab_size=words[0], hidden_size=words[1], num_hidden_layers=layers)
        expected |= dict(bypass_transformer=False)  # a layer of its own for both modalities, in VisualBERT
        expected |= dict(model_type="bert") if kind == "BERT" else {}
    for field, value in expected.items():
        if fields.get(field, value) != value:
            raise ValueError(
                f"{file} says {field} {fields[field]}, but the weights next to it, read as {kind}'s, have {value}: "
                "take the config.json of these weights"
            )


def _two_stream_sizes(shapes: Mapping[str, tuple[int, ...]], family: str) -> dict[str, int]:
    def layers(name: str) -> int:
        return len({m[1] for x in shapes if (m := re.match(rf"encoder\.{name}\.(\d+)\.", x))})

    words = shapes[two_stream_names.WORDS]
    sizes = dict(vocab_size=words[0], hidden_size=words[1])
    if family == "lxmert":
        return sizes | dict(l_layers=layers("layer"), r_layers=layers("r_layers"), x_layers=layers("x_layers"))
    visual = shapes[f"{two_stream_names.TRUNK[family]['geometry']}.weight"][0]
    return sizes | dict(num_hidden_layers=layers("layer"), v_num_hidden_layers=layers("v_layer"), v_hidden_size=visual)
