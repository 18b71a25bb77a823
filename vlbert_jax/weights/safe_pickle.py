"""Pickles of NumPy arrays in plain containers, read without running anything that may be in them."""

from __future__ import annotations

import collections
import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def _latin1(text: str, encoding: str) -> bytes:
    """What old pickles call to get bytes; `_codecs.encode` itself would load any codec that they name."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in {encoding}")
    return text.encode("latin1")


_ARRAY = np._core.multiarray
ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _latin1,
}
for _package in ("numpy.core", "numpy._core"):  # the older name and the newer
    ADMITTED[f"{_package}.multiarray", "_reconstruct"] = _ARRAY._reconstruct
    ADMITTED[f"{_package}.multiarray", "scalar"] = _ARRAY.scalar
    ADMITTED[f"{_package}.numeric", "_frombuffer"] = np._core.numeric._frombuffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it would run code ({module}.{name}) when read, which is refused")
        return ADMITTED[module, name]


def load_pickle(path: Path, encodings: Sequence[str] = ("latin1",)) -> Any:
    """What the first pickle of a file holds; texts of Python 2 by the first encoding that can read all of them.

    Raises ValueError for what is damaged or asks for more than arrays, OSError.
    """
    content = path.read_bytes()
    for encoding in encodings:
        try:
            return _Unpickler(io.BytesIO(content), encoding=encoding).load()
        except Exception as error:  # a damaged pickle raises nearly everything
            problem = error
            if not isinstance(error, UnicodeDecodeError):
                break
    raise ValueError(f"{path} is no pickle of plain arrays, lists, dicts and texts, or is cut short: {problem}")


def pickle_arrays(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """The arrays in nested dicts, by their dotted names."""
    if isinstance(tree, np.ndarray):
        return {prefix.removesuffix("."): tree}
    if not isinstance(tree, Mapping):
        return {}
    found = {}
    for key, value in tree.items():
        found |= pickle_arrays(value, f"{prefix}{key}.")
    return found
