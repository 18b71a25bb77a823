"""Options of a two-stream model from the shapes of its tensors and the official configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vlbert_jax.model.two_stream_config import StreamConfig, TwoStreamConfig, connected_layers
from vlbert_jax.model.two_stream_heads import TwoStreamHeads
from vlbert_jax.weights.two_stream_names import TABLES, TRUNK, WORDS, two_stream_family


def config_from_tensors(
    shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any] | None = None
) -> TwoStreamConfig:
    """Return the options of a model.

    Shapes do not determine the number of heads. Without `settings`, a head is 64 wide, and 128 in the
    visual stream and the cross-attention of ViLBERT, as in all published models.

    Args:
        shapes: Plain name -> shape.
        settings: Fields of the official configuration (config.json), as far as they are known.

    Raises:
        ValueError: The tensors are not those of a two-stream model, or contradict the settings.
    """
    settings = settings or {}
    family = two_stream_family(shapes)
    if family is None:
        raise ValueError(f"These are not tensors of LXMERT or ViLBERT: {', '.join(list(shapes)[:4]) or 'none'}")

    def layers(name: str) -> int:
        found = {int(m.group(1)) for x in shapes if (m := re.match(rf"encoder\.{name}\.(\d+)\.", x))}
        if found != set(range(len(found))):
            raise ValueError(f"encoder.{name} has the layers {sorted(found)}; some are missing")
        return len(found)

    def heads(field: str, width: int, head_size: int) -> int:
        number = settings.get(field) or max(width // head_size, 1)
        if width % number:
            raise ValueError(f"{field} is {number}, which does not divide the width {width}")
        return number

    text_size, geometry = shapes[WORDS][1], TRUNK[family]["geometry"]
    visual_size, geometry_size = shapes[f"{geometry}.weight"]
    text_heads = heads("num_attention_heads", text_size, 64)
    text = StreamConfig(text_size, text_heads, _rows(shapes, "encoder.layer.0.intermediate.dense"))
    options = dict(
        vocab_size=shapes[WORDS][0],
        max_positions=shapes[TABLES["position_embeddings"]][0],
        num_segments=shapes[TABLES["segment_embeddings"]][0],
        feature_size=shapes[f"{TRUNK[family]['appearance']}.weight"][1],
        geometry_size=geometry_size,
        pool_size=_rows(shapes, TRUNK[family]["text_pooler"]),
    )
    if family == "lxmert":
        groups = (("t", layers("layer")), ("v", layers("r_layers")), ("xtv", layers("x_layers")))
        return TwoStreamConfig(
            layers=tuple(group for group in groups if group[1]),
            text=text, visual=text, cross_size=text_size, cross_heads=text_heads, **options,
        )  # fmt: skip
    connections, num_text, num_visual = layers("c_layer"), layers("layer"), layers("v_layer")
    text_ids = settings.get("t_biattention_id", range(num_text - connections, num_text))
    visual_ids = settings.get("v_biattention_id", range(num_visual - connections, num_visual))
    if not len(text_ids) == len(visual_ids) == connections:
        raise ValueError(
            f"the weights have {connections} connections, t_biattention_id of config.json has {len(text_ids)} and "
            f"v_biattention_id {len(visual_ids)}: take the config.json of these weights"
        )
    visual_mlp = _rows(shapes, "encoder.v_layer.0.intermediate.dense")
    cross_size = _rows(shapes, "encoder.c_layer.0.biattention.query1")
    return TwoStreamConfig(
        layers=connected_layers(num_text, num_visual, text_ids, visual_ids),
        text=text,
        visual=StreamConfig(visual_size, heads("v_num_attention_heads", visual_size, 128), visual_mlp),
        cross_size=cross_size,
        cross_heads=heads("bi_num_attention_heads", cross_size, 128),
        shared_cross=False,
        still_rows=("token",),
        task_tokens=shapes.get(TABLES["task_embeddings"], (0,))[0],
        visual_norm="sum",
        pool=settings.get("fusion_method", "mul"),
        **options,
    )


def _rows(shapes: Mapping[str, tuple[int, ...]], module: str) -> int:
    return shapes[f"{module}.weight"][0]


def heads_from_tensors(shapes: Mapping[str, tuple[int, ...]]) -> TwoStreamHeads:
    """Return the heads that tensors have; `shapes` maps plain names to shapes."""

    def rows(module: str) -> int:
        return shapes.get(f"{module}.weight", (0,))[0]

    return TwoStreamHeads(
        mlm="cls.predictions.bias" in shapes,
        relationship=bool(rows("cls.seq_relationship") or rows("cls.bi_seq_relationship")),
        objects=rows("obj_predict_head.decoder_dict.obj"),
        attributes=rows("obj_predict_head.decoder_dict.attr"),
        features=rows("obj_predict_head.decoder_dict.feat"),
        region_classes=rows("cls.imagePredictions.decoder"),
        answers=max(map(rows, ("answer_head.logit_fc.3", "vil_prediction.logit_fc.3", "vil_prediction.main.3"))),
        gqa_answers=rows("vil_prediction_gqa.logit_fc.3"),
        pair_classes=max(rows("logit_fc.3"), rows("vil_binary_prediction.logit_fc.3")),
        choice="vil_logit.weight" in shapes,
        relations=rows("vil_tri_prediction"),
        grounding="vision_logit.weight" in shapes,
        word_scores="linguisic_logit.weight" in shapes,
        relu_answers="vil_prediction.main.3.weight" in shapes,
    )
