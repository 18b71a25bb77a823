"""Configs that an earlier version stored, read as configs of this version.

A config is stored as JSON with a schema number next to it: under `schema` in the meta of a checkpoint,
and as the field `schema` of a config.json. Configs without a number have schema 1. A new field of a
recipe needs no new schema if runs without it may continue with any value of it. All other new fields,
and renamed ones, need a new number with an entry in CHANGES.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlbert_jax.tasks import RENAMED, RENAMED_METRICS
from vlbert_jax.weights.shipped import locate_weights

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Change:
    """The difference between a schema and the one before it; fields have dotted names."""

    renamed: Mapping[str, str]  # old name -> new name
    added: Mapping[str, Any]  # new field -> the value that computes what runs before it computed
    values: Mapping[str, Callable[[Any], Any]] = dataclasses.field(default_factory=dict)  # field -> old to new value


def current_metric(name: str) -> str:
    """Return the present name of a metric of this version or an earlier one."""
    old = next((old for old in RENAMED_METRICS if name.startswith(old)), "")
    return RENAMED_METRICS.get(old, "") + name.removeprefix(old)


CHANGES = {
    2: Change(
        renamed={
            "losses.normalise": "losses.normalize",
            "newly_initialised": "newly_initialized",  # of converted weights
        },
        added={
            "matmul_precision": "default",
            "data.caffe_resize": False,
            "data.even_regions": False,
            "model.region_head.roi_operation": "align",
            "model.region_head.caffe_max_pool": False,
            "model.region_head.mask_padding": False,
        },
    ),
    3: Change(
        renamed={},
        added={
            "model.architecture": "vlbert",
            "model.answer_head": "mask",
            "losses.regression": False,
            "losses.transport": 0.0,
        },
    ),
    4: Change(
        renamed={},
        added={
            "model.relationship_classes": 2,
            "optimizer.no_decay": (),
            "optimizer.rate_factors": (),
            "optimizer.clip": "global",
            "optimizer.counts_from": 1,
            "optimizer.least_rate": 0.0,
            "data.text_length": 0,
            "losses.objects": False,
            "losses.attributes": False,
            "losses.features": False,
            "losses.only_matched": False,
            "data.mask_tokens": False,
            "data.mask_least_one": False,
            "data.hidden_share": 0.9,
        },
    ),
    5: Change(
        renamed={},
        added={},
        values={"task": lambda name: RENAMED.get(name, name), "best_metric": current_metric},
    ),
    6: Change(
        renamed={},
        added={
            "model.grounding_head": "hidden",
            "model.matching_head": "relationship",
            "model.label_hidden": 0,
            "data.swapped_share": 0.0,
        },
    ),
    7: Change(
        renamed={},
        added={"model.choice_head": "score", "data.arrangement": "context", "data.align_regions": False},
    ),
    8: Change(renamed={}, added={"model.matching_hidden": 0}),
}
SCHEMA = max(CHANGES)
VOCABULARIES = "vocabularies"  # folder of a workdir with a copy of each file of words that its config names


def upgraded(stored: Mapping[str, Any], schema: Any, place: str) -> dict[str, Any]:
    """Return a stored config with the names of this version and the fields that were added since.

    A field is added only to a block that the config has, because tasks have different blocks.

    Args:
      stored: the config as nested dicts.
      schema: its schema number; None = 1.
      place: where it is stored, for messages.

    Raises:
      ValueError: a later version of vlbert_jax stored the config.
    """
    schema = 1 if schema is None else schema
    if not isinstance(schema, int) or schema < 1:
        raise ValueError(f"{place}: the config is damaged: its schema is {str(schema)[:60]!r}, not a number from 1")
    if schema > SCHEMA:
        raise ValueError(
            f"{place}: the config has schema {schema}, this version of vlbert_jax reads up to {SCHEMA}: "
            "install the version that wrote it, or a later one"
        )
    config, added = copy.deepcopy(dict(stored)), []
    for number in range(schema + 1, SCHEMA + 1):
        for old, new in CHANGES[number].renamed.items():
            block, name = _block_of(config, old)
            if block is not None and name in block:
                block[new.rpartition(".")[2]] = block.pop(name)
        for field, value in CHANGES[number].added.items():
            block, name = _block_of(config, field)
            if block is not None and name not in block:
                block[name] = copy.deepcopy(value)
                added.append(f"{field}={value!r}")
        for field, translate in CHANGES[number].values.items():
            block, name = _block_of(config, field)
            if block is not None and name in block:
                block[name] = translate(block[name])
    if added:
        log.info("%s: the stored config lacks these fields; they mean %s", place, ", ".join(added))
    return config


def completed(stored: Mapping[str, Any], current: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return an upgraded config with the fields of `current` that it lacks, at the values of `current`.

    Fields that `upgraded` has added and `current` does not have are removed.

    Args:
      stored: a config of `upgraded`.
      current: the config of this run, as nested dicts.
      place: where the first is stored, for messages.
    """
    config, fields = copy.deepcopy(dict(stored)), flat_config(current)
    lacking = [name for name in fields if name not in flat_config(config)]
    for field in lacking:
        *blocks, name = field.split(".")
        block = config
        for part in blocks:
            block = block.setdefault(part, {})
        block[name] = fields[field]
    for change in CHANGES.values():
        for field in change.added:
            block, name = _block_of(config, field)
            if block is not None and field not in fields:
                block.pop(name, None)
    if lacking:
        values = ", ".join(f"{name}={fields[name]!r}" for name in lacking)
        log.info("%s: the stored config lacks these fields; the values of this run count: %s", place, values)
    return config


def _block_of(config: dict[str, Any], field: str) -> tuple[dict[str, Any] | None, str]:
    """Return the block in which `field` is or would be, None where there is no such block, and its last name."""
    *blocks, name = field.split(".")
    block: Any = config
    for part in blocks:
        block = block.get(part) if isinstance(block, dict) else None
    return block if isinstance(block, dict) else None, name


def flat_config(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted name -> value of every field; tuples become lists, because JSON has no tuples."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flat_config(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def own_vocabularies(path: str | Path) -> dict[str, str]:
    """Return field of `config.data` -> absolute path of the copy of its file that is stored with the weights.

    Args:
      path: a workdir, one checkpoint in it, a folder that `convert` wrote, a shipped model, or other weights,
        which have none.
    """
    place = locate_weights(path).expanduser().absolute()
    for folder in (place / VOCABULARIES, place.parent.parent / VOCABULARIES):
        if place.is_dir() and folder.is_dir():
            return {file.stem: str(file) for file in sorted(folder.iterdir())}
    return {}
