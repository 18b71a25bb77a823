"""Shrink shipped recipes to the smallest sizes, without a change of other settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def shrink(config: Any, demo: Any, data_dir: Any, num_layers: int, names: Iterable[str]) -> None:
    """Set a tiny float32 model and small images in `config`, and no report, which would compile a program.

    Args:
        config: the config of a shipped recipe, changed in place.
        demo: the demo's config, from which the fields `names` of `config.data` are copied.
        data_dir: folder of the demo's corpus.
        num_layers: layers of the encoder.
        names: fields of `config.data` that the corpus determines.
    """
    config.model.encoder.update(
        dict(vocab_size=256, hidden_size=16, num_layers=num_layers, num_heads=2, mlp_size=32, max_positions=40)
    )
    config.model.two_stream.update(dict(layers=(1, 1, 1), visual=(16, 2, 32), cross=(16, 2)))
    config.model.switches.product_size = 16
    config.model.region_head.update(
        dict(stem_width=4, widths=(2, 2, 3, 3), blocks=(1, 1, 1, 1), strides=(1, 2, 1), roi_size=2, roi_chunk=8)
    )
    config.data.update({name: demo.data[name] for name in names})
    config.data.update(dict(data_dir=str(data_dir), image_scale=(32, 48), num_threads=1, prefetch=1))
    config.report = False
    config.compute_dtype, config.prng_impl = "float32", "threefry2x32"
