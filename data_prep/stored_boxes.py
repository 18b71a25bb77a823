"""The boxes of a table of images that is built, for builders of texts about them."""

from __future__ import annotations

import functools
import pathlib

import numpy as np

from data_prep.stored import fetch_records
from vlbert_jax.data.overlap import finds
from vlbert_jax.data.records import open_split


class StoredBoxes:
    """The boxes of the images of a table that is built; those of the last image are kept."""

    def __init__(self, table: str | pathlib.Path):
        """Remember the directory that the builder of images wrote; the table is opened when it is needed."""
        self._table = pathlib.Path(table)
        self._last: tuple[int, np.ndarray] = -1, np.zeros((0, 4))

    @functools.cached_property
    def _records(self):
        fetch_records(self._table)
        return open_split(self._table.parents[2], f"{self._table.parts[-3]}/{self._table.parts[-2]}", "images")

    def usable(self, number: int, right: np.ndarray) -> list[bool]:
        """Return whether a box of an image counts as one of the right boxes [m, 4]; empty where none is known."""
        if not len(right):
            return []
        if self._last[0] != number:
            self._last = number, self._records[number]["boxes"]
        return [finds(self._last[1], right)]
