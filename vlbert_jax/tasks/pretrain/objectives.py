"""One objective per update (UNITER): which one is a function of the seed and the number of the update alone."""

from __future__ import annotations

import math

import numpy as np

from vlbert_jax.data.streams import stream_seed
from vlbert_jax.tasks.schedule import name_at, parts_of_steps

# Objective -> its losses. Losses of no objective, such as that of the region head, count in every update.
OBJECTIVES = {
    "mlm": ("mlm_caption", "mlm_text"),
    "mrc": ("mrc",),
    "regression": ("regression",),
    "relationship": ("relationship", "transport"),
}
# Modules that only some objectives use: updates of others leave them unchanged, as the official code does.
USED_BY = {
    "mlm_head": ("mlm",),
    "mrc_head": ("mrc",),
    "regression_head": ("regression",),
    "relationship_head": ("relationship",),
    "hidden_appearance": ("mrc", "regression"),
    **dict.fromkeys(("pooler", "region_pooler", "text_pooler", "visual_pooler"), ("relationship",)),
}


def shares(config) -> dict[str, float]:
    """Return objective -> its share of the updates, `config.losses.ratios`; none where an update trains all losses.

    Raises:
        ValueError: A share is negative or not finite, belongs to a loss that is off, or is missing for one that is on.
    """
    given = config.losses.get("ratios", {})
    found = {name: given[name] for name in OBJECTIVES if given.get(name, 0)}
    for name, share in found.items():
        if not (math.isfinite(share) and share > 0):
            raise ValueError(f"config.losses.ratios.{name} is {share}; it must be a number of at least 0.")
    for name in OBJECTIVES if found else ():
        is_on = bool(config.losses.get(name, False))
        if is_on != (name in found):
            raise ValueError(
                f"config.losses.{name} is {config.losses.get(name, False)}, but config.losses.ratios.{name} is "
                f"{given.get(name, 0)}: an update trains one objective, so each that is on, and no other, has a share."
            )
    return found


def objective_at(config, step: int) -> str:
    """Return the objective of update `step`, from 0; "" where an update trains all losses."""
    given = shares(config)
    return name_at(given, _first(config) + step) if given else ""


def numbers_of_updates(config) -> dict[str, int]:
    """Return objective -> number of the updates of the run that train it; none where an update trains all losses."""
    given = shares(config)
    if not given:
        return {}
    numbers = np.bincount(parts_of_steps(given, _first(config), config.total_steps), minlength=len(given))
    return {name: int(number) for name, number in zip(sorted(given), numbers, strict=True)}


def _first(config) -> int:
    """Return where the order of the objectives begins; it depends on the seed."""
    return stream_seed(config.seed, "objectives") % 2**20


def losses_of(objective: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return which of the losses `names` an update with this objective trains; all of them for ""."""
    others = {loss for name, losses in OBJECTIVES.items() if objective and name != objective for loss in losses}
    return tuple(name for name in names if name not in others)


def is_unused(path: tuple, config, names: tuple[str, ...]) -> bool:
    """Return whether a parameter belongs to a module that no objective of the losses `names` uses."""
    if not shares(config):
        return False
    users = next((USED_BY[str(part)] for part in path if str(part) in USED_BY), ())
    if path[0] == "mrc_head" and not config.losses.mrc:
        users = ("regression",)  # of two streams, whose head predicts classes or features
    return bool(users) and not any(loss in names for user in users for loss in OBJECTIVES[user])

