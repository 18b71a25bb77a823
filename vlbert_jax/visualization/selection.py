"""The choice of the examples that a report shows."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def spread(number: int, available: int) -> list[int]:
    """Return `number` of the indices below `available` at even distances, or all if there are fewer."""
    step = max(available / max(number, 1), 1)
    return [int(i * step) for i in range(min(number, available))]


def choose_at_rate(
    right: Float[np.ndarray, "c k"],
    total: Float[np.ndarray, "c k"],
    rates: Float[np.ndarray, "k"],
    number: int,
) -> list[int]:
    """Return rows of candidates, in order, of which the same share is right as of all examples.

    Examples at even distances are chosen first. As long as an exchange of one of them for another
    candidate brings the shares nearer to `rates`, the best exchange is made.

    Args:
        right: sum of the scores of each candidate in each metric.
        total: number of the answers that `right` sums over.
        rates: measured shares; NaN = not measured.
        number: examples to choose.
    """
    known = np.isfinite(rates)
    right, total, rates = (np.asarray(x, np.float64)[..., known] for x in (right, total, rates))

    def distance(right, total):
        """Return how far the shares of sums [..., k] are from the measured ones."""
        return np.abs(right / np.maximum(total, 1e-9) - rates).sum(-1)

    chosen = spread(number, len(right))
    while others := [i for i in range(len(right)) if i not in chosen]:
        sums = right[chosen].sum(0), total[chosen].sum(0)
        exchanged = (x[None, others] - x[chosen][:, None] + s for x, s in zip((right, total), sums, strict=True))
        distances = distance(*exchanged)
        out, into = np.unravel_index(distances.argmin(), distances.shape)
        if distances[out, into] >= distance(*sums) - 1e-9:
            break
        chosen[out] = others[into]
    return sorted(chosen)
