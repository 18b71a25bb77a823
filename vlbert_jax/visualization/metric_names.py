"""Names of metrics and the format of their values.

`X_blind` is the baseline of the metric `X`: words guessed without the image, or hidden regions
(`mrc`) without the caption. `X_objects_2` is `X` over the examples of group 2. Metrics with
"accuracy" or another of SHARES in their names are shares.

A task gives its metrics readable labels (`Task.metric_labels`); those of every run are here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Real
from typing import NamedTuple

LABELS = {
    "loss": "total loss",
    "grad_norm": "norm of the gradient before clipping",
    "learning_rate": "learning rate",
    "step_time_ms": "time of an update, ms",
    "data_wait_time_ms": "wait for data in an update, ms",
    "samples_per_sec": "sequences per second",
}


SHARES = ("accuracy", "_f1", "auroc", "average_precision", "recall")  # in the names of metrics between 0 and 1


class MetricName(NamedTuple):
    """The parts of a metric's name."""

    base: str
    blind: bool
    group: tuple[str, int] | tuple[()]  # () = all examples


def parse_metric(name: str) -> MetricName:
    """Return the parts of a name.

    X_accuracy_blind_objects_2 gives ("X_accuracy", True, ("objects", 2)).
    """
    blind = re.search(r"_blind(?=_|$)", name) is not None
    name = re.sub(r"_blind(?=_|$)", "", name)
    found = re.fullmatch(r"(.+(?:accuracy|loss))_([a-z]+)_(\d+)", name)
    return MetricName(found[1], blind, (found[2], int(found[3]))) if found else MetricName(name, blind, ())


def is_share(name: str) -> bool:
    """Return whether the values of a metric are between 0 and 1."""
    return any(share in name for share in SHARES)


def blind_input(name: str) -> str:
    """Return the input that the blind baseline of a metric does without."""
    return "caption" if name.startswith("mrc") else "image"


def format_value(name: str, value: Real) -> str:
    """Return the value of a metric as text."""
    return f"{100 * value:.1f} %" if is_share(name) else f"{value:.4g}"


def format_difference(name: str, values: Mapping[bool, Real]) -> str:
    """Return the value minus that of the blind baseline, empty if there is only one.

    The key of `values` is True for the blind baseline.
    """
    if len(values) < 2:
        return ""
    difference = values[False] - values[True]
    return f"{100 * difference:+.1f}" if is_share(name) else f"{difference:+.3g}"


def title_of(name: str, labels: Mapping[str, str]) -> str:
    """Return the label of a metric, or its name as words where it has none."""
    return labels.get(name) or LABELS.get(name) or name.replace("_", " ")


def title_of_group(group: tuple[str, int], labels: Mapping[str, str]) -> str:
    """Return the label of a group of examples; `labels` may have one for the name of its kind."""
    kind, number = group
    return f"{labels.get(kind, kind)} {number}"
