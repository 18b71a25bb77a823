"""Paths that users give, and files and folders that are written atomically. `data_prep` uses it too: no JAX."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def user_path(text: str) -> str:
    """Return a path of the user with `~` expanded and without redundant parts, such as a last slash.

    A shell does not expand the `~` of `--name=~/folder`. Commands call this where they read their flags; all other
    code takes paths as they are. An address with a scheme, such as gs://bucket, and "" stay as they are.
    """
    return str(Path(os.path.expanduser(text))) if text and "://" not in text else text


def required_path(text: str) -> str:
    """Return `user_path`, for the parsers of commands; raise ArgumentTypeError for ""."""
    import argparse

    if not text.strip():  # such as a variable of the shell that is not set; Path("") would be the current folder
        raise argparse.ArgumentTypeError("is empty; give a file or folder")
    return user_path(text)


def user_file(text: str) -> Path:
    """Return `required_path` as a Path; raise ArgumentTypeError for an address, too."""
    import argparse

    if is_address(text):
        raise argparse.ArgumentTypeError(f"{text} is an address; give a file or folder, and copy it from there")
    return Path(required_path(text))


def is_address(path: str | os.PathLike) -> bool:
    """Return whether a path is an address with a scheme, such as gs://bucket/run."""
    return "://" in os.fspath(path)


COPIES: dict[str, str] = {}  # folder on local disk -> the address of which it is a copy


def address_of(folder: str | os.PathLike) -> str:
    """Return the address of which a folder is a copy; "" for other folders."""
    return COPIES.get(os.fspath(folder), "")


def with_addresses(text: str) -> str:
    """Return a text with the addresses in place of the folders that are copies of them (vlbert_jax/storage)."""
    for folder, address in COPIES.items():
        text = text.replace(folder, address)
    return text


def user_paths(text: str) -> str:
    """Apply `user_path` to each part of a comma-separated list."""
    return ",".join(map(user_path, text.split(",")))


@contextlib.contextmanager
def atomic_write(target: Path, replaces_folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to `target`; it replaces `target` on success and is deleted on failure.

    The path is the same each time, so what a killed process left is overwritten. A file replaces a folder only with
    `replaces_folder`, since the folder of a mistyped path may hold anything; a folder replaces both.

    Raises:
        IsADirectoryError: The target is a folder, and the new content is a file.
        OSError: The target cannot be written; the error names a file.
    """
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (target.with_name(f".{target.name}.{end}") for end in ("partial", "old"))
    _remove(temporary)
    try:
        yield temporary
        if target.is_dir() and not (temporary.is_dir() or replaces_folder):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        if target.exists() and (target.is_dir() or temporary.is_dir()):  # a folder is replaced in two steps
            _remove(old)
            target.rename(old)
        try:
            temporary.replace(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        _remove(old)
    except OSError as error:
        if error.filename or not error.errno:
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error  # the error of a full disk has no name
    finally:
        _remove(temporary)


def _remove(path: Path):
    """Delete a file or folder, if it exists.

    After an error, such as that of a full disk, other threads may still be writing to a folder for a moment.
    """
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for _ in range(20):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(0.1)


@contextlib.contextmanager
def disk_full(directory: Path):
    """Turn the errors of a full disk (OSError, ValueError of the array store) into one clear line.

    The incomplete newest checkpoint is removed, so that small files can still be closed.
    """
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
            for partial in directory.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(partial, ignore_errors=True)
            raise OSError(
                f"no space left on device while saving to {directory}; earlier checkpoints are intact. "
                "Free some space and run the same command again."
            ) from error
        raise


def read_lines(path: str | os.PathLike) -> list[str]:
    """Return the lines of a UTF-8 text file without their ends; a byte order mark is removed.

    Only line ends separate lines; `str.splitlines` would also split at U+2028, form feeds and other separators.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not UTF-8; the message names it.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.rstrip("\n") for line in file]
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(path)}: the text is not UTF-8 ({error}); save it as UTF-8") from None


def read_json_object(path: str | os.PathLike, remedy: str, *fields: str) -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
        path: The file.
        remedy: What to do about a damaged file, for the message.
        *fields: Fields that the object must have.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a JSON object with these fields; the message names the file and the remedy.
    """
    with open(path, "rb") as file:
        content = file.read()
    return json_object(content, os.fspath(path), remedy, *fields)


def distinct_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of a JSON object; raise ValueError where one is there twice, of which one would be lost."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in fields if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} is there twice")
    return fields


def parse_json(
    content: str | bytes,
    hook: Callable[[dict], Any] | None = None,
    pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """Return the value of a JSON text of another program.

    Args:
        content: The text.
        hook: Replaces each object, the inner ones first.
        pairs_hook: Does so from the fields in their order, such as `distinct_fields`; `hook` is not called then.

    Raises:
        ValueError: It is not JSON, nested too deeply, or a text in it is no Unicode and could not be stored.
    """
    if isinstance(content, bytes):
        content = content.decode(json.detect_encoding(content))
    try:
        value = json.loads(content, object_hook=hook, object_pairs_hook=pairs_hook)
        if "\\ud" in content or "\\uD" in content:  # half of such a pair is no character
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 20) : error.end]
        raise ValueError(f"the text {around!r} ends with half of a surrogate pair") from None
    return value


def json_object(content: str | bytes, place: str, remedy: str, *fields: str) -> dict[str, Any]:
    """Return the JSON object in a text that comes from `place`; see `read_json_object`."""
    try:
        found = parse_json(content)
    except ValueError as error:
        problem = f"not JSON ({error})" if content else "empty"
        raise ValueError(f"{place} is damaged: it is {problem}; {remedy}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{place} is damaged: it is not a JSON object; {remedy}")
    if missing := [name for name in fields if name not in found]:
        raise ValueError(f"{place} is damaged: it has no {', '.join(missing)}; {remedy}")
    return found
