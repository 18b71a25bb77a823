"""Which task an update trains: a function of the number of the update alone."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

GOLDEN = (5**0.5 - 1) / 2  # multiples of it, modulo 1, are spread evenly


def parts_of_steps(ratios: Mapping[str, float], first: int, count: int) -> Int[np.ndarray, "n"]:
    """Return the number of the part, in the order of the names, that each of some updates trains.

    Each part gets its share of any number of updates in a row, up to a few, in an irregular order.

    Args:
        ratios: Name of a part -> its share, relative to the others.
        first: The first update, from 0.
        count: Number of updates.

    Raises:
        ValueError: There is no part, or a share is not positive.
    """
    shares = np.array([ratios[name] for name in sorted(ratios)], np.float64)
    if not len(shares) or not (np.isfinite(shares) & (shares > 0)).all():
        raise ValueError(f"config.ratios is {dict(ratios)}; it must have a positive number for each part")
    places = np.modf((np.arange(first, first + count) + 0.5) * GOLDEN)[0]
    return np.searchsorted(np.cumsum(shares) / shares.sum(), places, side="right").clip(max=len(shares) - 1)


def name_at(ratios: Mapping[str, float], step: int) -> str:
    """Return the name of the part that update `step`, from 0, trains."""
    return sorted(ratios)[int(parts_of_steps(ratios, step, 1)[0])]


def counts_before(ratios: Mapping[str, float], step: int) -> dict[str, int]:
    """Return how many of the updates before `step` train each part."""
    numbers = np.bincount(parts_of_steps(ratios, 0, step), minlength=len(ratios))
    return {name: int(number) for name, number in zip(sorted(ratios), numbers, strict=True)}
