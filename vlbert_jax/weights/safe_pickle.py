"""Pickles of NumPy arrays in plain containers, read without running code from them."""

from __future__ import annotations

import collections
import io
import pickle
import pickletools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LONGEST_NAME = 1000  # characters


def _latin1(text: str, encoding: str) -> bytes:
    """Encode a text; old pickles ask for `_codecs.encode`, which would load any codec they name."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it holds bytes in the encoding {encoding}; only latin1 is read")
    return text.encode("latin1")


def _reconstruct(*_) -> np.ndarray:
    """Return an empty array, which its state then fills, as NumPy writes it; other sizes could be of any length."""
    return np.empty(0, np.int8)


def _dtype(text: str, *options: bool) -> np.dtype:
    """Return a type of plain values; objects would be allocated before their number is checked."""
    found = np.dtype(text, *options)
    if found.hasobject:
        raise pickle.UnpicklingError("it holds arrays of objects; only numbers and texts are read")
    return found


# The functions that pickles of arrays and of scalars call. They have private names in NumPy, which
# also differ between versions, so they are taken from what NumPy itself would write.
ARRAY_FROM_BUFFER = np.empty(0).__reduce_ex__(5)[0]
RECONSTRUCT_SCALAR = np.float64(0).__reduce__()[0]
ADMITTED = {
    ("numpy", "ndarray"): "numpy.ndarray",  # an argument of `_reconstruct`, never called
    ("numpy", "dtype"): _dtype,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _latin1,
}
for _package in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    ADMITTED[f"{_package}.multiarray", "_reconstruct"] = _reconstruct
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
    problem: Exception | None = _far_memo(content)
    for encoding in () if problem else encodings:
        try:
            return _Unpickler(io.BytesIO(content), encoding=encoding).load()
        except Exception as error:  # a damaged pickle raises errors of nearly every class
            problem = error
            if not isinstance(error, UnicodeDecodeError):
                break
    raise ValueError(
        f"{path} is not a pickle of plain arrays, lists, dicts and texts, or it is cut short: {problem}"
    )


def _far_memo(content: bytes) -> Exception | None:
    """Return the error for a pickle that is damaged, or numbers its values beyond their count, else None.

    `pickle` allocates and fills a list of this number, so that some bytes could take all memory.
    """
    try:
        for count, (opcode, number, _) in enumerate(pickletools.genops(content)):
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and number > count:
                return pickle.UnpicklingError(f"after {count} values, one has the number {number}")
    except Exception as error:  # as below
        return error
    return None


def check_names(file: io.BufferedIOBase) -> None:
    """Raise UnpicklingError where the next pickle in a file names a function by a very long text.

    PyTorch searches its message about such a name in a time that grows with the square of the length.
    """
    for opcode, name, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL" and len(name) > LONGEST_NAME:
            raise pickle.UnpicklingError(f"it names a function by {len(name):,} characters")


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
