"""Read the JSON files of public tasks and check their fields; errors name file, place and remedy."""

from __future__ import annotations

import difflib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from data_prep.manifest import SourceError, described, is_stored
from vlbert_jax.files import distinct_fields, parse_json

MISSING = "download it, or correct --source"
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh9": "bzip2", b"\xfd7zXZ": "xz", b"PK\3\4": "zip"}  # first bytes -> program
KINDS = {str: "a text", int: "an integer", list: "a list", tuple: "a list", dict: "an object", bool: "true or false"}


def read_json(path: pathlib.Path, kind: type, hook: Callable[[dict], Any] | None = None) -> Any:
    """Return the value of a JSON file.

    Args:
      path: the file.
      kind: list or dict, which the value must be.
      hook: replaces each object, the inner ones first.

    Raises:
      SourceError: the file is missing, not JSON or of another kind.
    """
    try:
        content = parse_json(_bytes_of(path), hook)
    except ValueError as error:
        raise SourceError(f"{path}: the file is not JSON ({error}); download it again") from None
    if not isinstance(content, kind):
        raise SourceError(f"{path}: the file is {described(content)}, not {KINDS[kind]}; download it again")
    return content


def read_json_lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place, such as "dev.json, line 3", and the object of each line that is not empty.

    Raises SourceError if the file is missing or a line is no JSON object.
    """
    for place, _, item in objects_of(path, text_of(path, "download it again"), "download the file again"):
        yield place, item


def text_of(path: pathlib.Path, remedy: str) -> str:
    """Return the text of a file without its byte order mark.

    Args:
      path: the file.
      remedy: what to do where the text is not UTF-8.

    Raises:
      SourceError: the file cannot be read, or it is compressed or not UTF-8.
    """
    try:
        return _bytes_of(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: the text is not UTF-8 ({error}); {remedy}") from None


def _bytes_of(path: pathlib.Path) -> bytes:
    """Return the content of a file. Raises SourceError if it cannot be read, or is compressed."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: the file cannot be read ({error.strerror}); {MISSING}") from None
    if kind := next((kind for start, kind in COMPRESSED.items() if content.startswith(start)), ""):
        raise SourceError(f"{path}: the file is compressed by {kind}; unpack it")
    return content


def objects_of(path: pathlib.Path, content: str, remedy: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield the place, the number from 1 on, and the object of each line that is not empty.

    Args:
      path: the file, for messages.
      content: its text.
      remedy: what to do about a line that is no JSON object.

    Raises:
      SourceError: a line is none.
    """
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            item = parse_json(line, pairs_hook=distinct_fields)
        except json.JSONDecodeError as error:
            raise SourceError(f"{place}: the line is not JSON ({error}); {remedy}") from None
        except ValueError as error:
            raise SourceError(f"{place}: {error}; {remedy}") from None
        if not isinstance(item, dict):
            raise SourceError(f"{place}: the line is {described(item)}, not an object; {remedy}")
        yield place, number, item


def field(item: Any, name: str, kind: type, place: str) -> Any:
    """Return a field of an object.

    Args:
      item: the object; it may be another value, because it is of a foreign file.
      name: name of the field.
      kind: str, int, list, dict or bool, which the value must be.
      place: where the object is, for the message.

    Raises:
      SourceError: there is no object or no such field, or it has another type or too many digits.
    """
    if not isinstance(item, dict):
        raise SourceError(f"{place}: it is {described(item)}, not an object; download the file again")
    if name not in item:
        close = difflib.get_close_matches(name, item, 1)
        hint = f"; {close[0]!r} is there" if close else ""
        raise SourceError(f"{place}: the field {name!r} is missing{hint}; the fields are {', '.join(item) or 'none'}")
    if type(item[name]) is not kind:
        raise SourceError(f"{place}: the field {name!r} is {described(item[name])}, not {KINDS[kind]}")
    if kind is int and not is_stored(item[name]):
        raise SourceError(f"{place}: the field {name!r} is {described(item[name])}, which has more than 64 bits")
    return item[name]


def chosen_splits(given: Iterable[str], known: Iterable[str], files: Callable[[str], pathlib.Path]) -> list[str]:
    """Return the splits to build: the given ones, or all whose file exists; in the order of `known`.

    Args:
      given: requested splits.
      known: all splits.
      files: function from a split to its file.

    Raises:
      SourceError: a split is unknown, or none has a file.
    """
    given, known = list(given), list(known)
    if unknown := [split for split in given if split not in known]:
        raise SourceError(f"--splits: there is no split {unknown[0]!r}; choose from {', '.join(known)}")
    found = [split for split in known if (split in given if given else files(split).exists())]
    if not found:
        raise SourceError(f"{files(known[0])}: the file does not exist; --source must be the folder that contains it")
    return found
