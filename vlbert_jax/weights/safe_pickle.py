"""Pickles of NumPy arrays in plain containers, read without running code from them."""

from __future__ import annotations

import collections
import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def _latin1(text: str, encoding: str) -> bytes:
    """Encode a text; old pickles ask for `_codecs.encode`, which would load any codec they name."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it holds bytes in the encoding {encoding}; only latin1 is read")
    return text.encode("latin1")


# The functions that pickles of arrays and of scalars call. They have private names in NumPy, which
# also differ between versions, so they are taken from what NumPy itself would write.
RECONSTRUCT_ARRAY = np.empty(0).__reduce__()[0]
ARRAY_FROM_BUFFER = np.empty(0).__reduce_ex__(5)[0]
RECONSTRUCT_SCALAR = np.float64(0).__reduce__()[0]
ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _latin1,
}
for _package in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    ADMITTED[f"{_package}.multiarray", "_reconstruct"] = RECONSTRUCT_ARRAY
    ADMITTED[f"{_package}.multiarray", "scalar"] = RECONSTRUCT_SCALAR
    ADMITTED[f"{_package}.numeric", "_frombuffer"] = ARRAY_FROM_BUFFER


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it would run code ({module}.{name}) when read, which is refused")
        return ADMITTED[module, name]


def load_pickle(path: Path, encodings: Sequence[str] = ("latin1",)) -> Any:
    """Return the content of the first pickle in a file.

    Args:
        path: the file.
        encodings: encodings for texts of Python 2; the first that decodes all of them is used.

    Raises:
        ValueError: The pickle is damaged or asks for more than arrays.
        OSError: The file cannot be read.
    """
    content = path.read_bytes()
    for encoding in encodings:
        try:
            return _Unpickler(io.BytesIO(content), encoding=encoding).load()
        except Exception as error:  # a damaged pickle raises errors of nearly every class
            problem = error
            if not isinstance(error, UnicodeDecodeError):
                break
    raise ValueError(
        f"{path} is not a pickle of plain arrays, lists, dicts and texts, or it is cut short: {problem}"
    )


def pickle_arrays(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Return the arrays in nested dicts by their dotted names."""
    if isinstance(tree, np.ndarray):
        return {prefix.removesuffix("."): tree}
    if not isinstance(tree, Mapping):
        return {}
    found = {}
    for key, value in tree.items():
        found |= pickle_arrays(value, f"{prefix}{key}.")
    return found
