"""Test that pickles of plain values from Python 2 and 3 are read, and that no pickle runs code."""

import os
import pickle
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlbert_jax.weights.safe_pickle import load_pickle


def python2_pickle(value) -> bytes:
    """Return a pickle of protocol 2 as Python 2 writes it; `bytes` become its `str`."""

    def encode(item) -> bytes:
        if isinstance(item, dict):
            return b"}" + b"".join(encode(key) + encode(content) + b"s" for key, content in item.items())
        if isinstance(item, list):
            return b"]" + b"".join(encode(content) + b"a" for content in item)
        if isinstance(item, bytes):
            return b"U" + bytes([len(item)]) + item
        if isinstance(item, str):
            return b"X" + struct.pack("<I", len(item.encode())) + item.encode()
        return b"J" + struct.pack("<i", item)

    return b"\x80\x02" + encode(value) + b"."


def load(tmp_path, content: bytes):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(content)
    return load_pickle(path, ("utf-8", "latin-1"))


def test_strings_of_python_2_and_3(tmp_path):
    content = {b"raw": b"a dog", "sent": "caf\u00e9", "tokens": [b"a", "dog"], b"n": 7}
    plain = {"raw": "a dog", "sent": "caf\u00e9", "tokens": ["a", "dog"], "n": 7}
    assert load(tmp_path, python2_pickle(content)) == plain
    assert load(tmp_path, python2_pickle([b"caf\xc3\xa9"])) == ["caf\u00e9"]
    assert load(tmp_path, python2_pickle([b"caf\xe9"])) == ["caf\u00e9"]  # invalid UTF-8 is read as Latin-1
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert load(tmp_path, pickle.dumps(plain, protocol)) == plain


class Call:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_runs_nothing(tmp_path, protocol):
    trace = tmp_path / "trace"
    for call in (Call(os.mkdir, str(trace)), Call(print, "run"), Call(eval, "1"), Call(dict)):
        with pytest.raises(ValueError, match=r"refs\(unc\)\.p is not a pickle of plain .* would run code"):
            load(tmp_path, pickle.dumps([{"ref_id": call}], protocol))
    assert not trace.exists()


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    try:
        load(tmp_path_factory.getbasetemp(), content)
    except ValueError:
        pass
