"""Changed copies of files: of their bytes, and, where the format is known, of what is inside a correct container."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import struct
import zipfile
from collections.abc import Sequence

LENGTHS = (0, 1, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**63 - 1, 2**64 - 1)
NUMBERS = (b"-1", b"0", b"1", b"-0.0", b"1e400", b"NaN", b"Infinity", b"4294967296", b"9223372036854775808", b"9" * 400)
TEXTS = (
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r", b"\t", b'"', b"\xe2\x80\xa8", b"\\ud800", b"null", b"[]", b"{}",
    b"[" * 3000, b'{"a":' * 3000, b"&a;", b"../../../etc/passwd", b"a" * 70_000, "\u0130".encode(), b"%s%n",
)  # fmt: skip
VALUES = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, -(2**70), 10**400, 0.5, 1e300, float("nan"), float("inf"), "",
    " ", "\0", "\ud800", "0", "-1", "../../etc/passwd", "\u2028", "x" * 5000, [], {}, [[]], [None], {"": None},
)  # fmt: skip
PLACES = 12  # values of a JSON text among which the one that changes is chosen


def mutate(seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """Return a changed copy of one of the seeds; one in fifty is not changed."""
    content, other = rng.choice(seeds), rng.choice(seeds)
    if rng.random() < 0.02:
        return content
    if rng.random() < 0.5 and (inside := _inside(content, rng)) is not None:
        content = inside
        if rng.random() < 0.7:
            return content
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        content = rng.choice(CHANGES)(content, other, rng)
    return content


# --- Bytes -------------------------------------------------------------------------------------------------


def _span(content: bytes, rng: random.Random) -> tuple[int, int]:
    """Return the start and end of a block, mostly a short one."""
    start = rng.randint(0, len(content))
    return start, min(len(content), start + rng.choice((1, 2, 4, 8, 16, 64, 256, 4096)))


def _flip(content: bytes, _, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 32)) if content else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _byte(content: bytes, _, rng: random.Random) -> bytes:
    start, _ = _span(content, rng)
    return content[:start] + bytes([rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))]) + content[start + 1 :]


def _cut(content: bytes, _, rng: random.Random) -> bytes:
    return content[: rng.randint(0, len(content))]


def _behead(content: bytes, _, rng: random.Random) -> bytes:
    return content[rng.randint(0, min(64, len(content))) :]


def _delete(content: bytes, _, rng: random.Random) -> bytes:
    start, end = _span(content, rng)
    return content[:start] + content[end:]


def _insert(content: bytes, _, rng: random.Random) -> bytes:
    start, _ = _span(content, rng)
    new = rng.choice((*TEXTS, rng.randbytes(rng.choice((1, 4, 64)))))
    return content[:start] + new + content[start:]


def _repeat(content: bytes, _, rng: random.Random) -> bytes:
    start, end = _span(content, rng)
    return content[:end] + content[start:end] * rng.choice((1, 2, 50)) + content[end:]


def _swap(content: bytes, _, rng: random.Random) -> bytes:
    (a, b), (c, d) = sorted((_span(content, rng), _span(content, rng)))
    return content if b > c else content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def _join(content: bytes, other: bytes, rng: random.Random) -> bytes:
    return content[: rng.randint(0, len(content))] + other[rng.randint(0, len(other)) :]


def _length(content: bytes, _, rng: random.Random) -> bytes:
    """Overwrite some bytes by an extreme number, of fixed size or, as in protobuf, of seven bits per byte."""
    start, number = _span(content, rng)[0], rng.choice(LENGTHS)
    if rng.random() < 0.3:
        new = bytearray()
        while number > 0x7F:
            new.append(number & 0x7F | 0x80)
            number >>= 7
        new.append(number)
    else:
        size = rng.choice((1, 2, 4, 8))
        new = (number % 2 ** (8 * size)).to_bytes(size, rng.choice(("little", "big")))
    return content[:start] + bytes(new) + content[start + len(new) :]


def _number(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Replace the digits of a number in a text."""
    found = list(re.finditer(rb"\d+", content[:20_000]))
    if not found:
        return _byte(content, other, rng)
    start, end = rng.choice(found).span()
    return content[:start] + rng.choice(NUMBERS) + content[end:]


CHANGES = (_flip, _byte, _cut, _behead, _delete, _insert, _repeat, _swap, _join, _length, _length, _number)


# --- Inside of a container ---------------------------------------------------------------------------------


def _inside(content: bytes, rng: random.Random) -> bytes | None:
    """Return the content with a change inside its container, None where the format is not one of these."""
    if content[:2] == b"PK":
        return _zip(content, rng)
    if content[8:9] == b"{" and (size := struct.unpack("<Q", content[:8])[0]) < len(content):
        header = _json(content[8 : 8 + size], rng)
        return None if header is None else struct.pack("<Q", len(header)) + header + content[8 + size :]
    if content[:1] in (b"{", b"["):
        return _json(content, rng) or _json_line(content, rng)
    return None


def _zip(content: bytes, rng: random.Random) -> bytes | None:
    """Pack an archive again, in which a file is changed, renamed, left out or there twice, with correct checksums."""
    packed, which = io.BytesIO(), rng.random()
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(content)) as archive:
        chosen = rng.choice(archive.namelist())
        with zipfile.ZipFile(packed, "w") as changed:
            for name in archive.namelist():
                inside = archive.read(name)
                if name == chosen and which < 0.1:
                    continue
                if name == chosen and which < 0.2:
                    name = rng.choice(("/", "a", "../a", name + "\0", name.upper(), "x" * 300))
                elif name == chosen:
                    inside = rng.choice(CHANGES)(inside, inside, rng)
                changed.writestr(zipfile.ZipInfo(name), inside, rng.choice((0, 0, 8, 12, 14)))
        return packed.getvalue()
    return None


def _json(content: bytes, rng: random.Random) -> bytes | None:
    """Change one value of a JSON text: replace, remove or repeat it, or rename its field."""
    try:
        tree = json.loads(content)
    except ValueError:
        return None
    places: list[tuple] = []

    def walk(node, depth: int) -> None:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        for key in rng.sample(keys, min(PLACES, len(keys))):
            places.append((node, key))
            if isinstance(node[key], dict | list) and node[key] and depth < 8:
                walk(node[key], depth + 1)

    if isinstance(tree, dict | list) and tree and rng.random() < 0.97:
        walk(tree, 0)
        for _ in range(rng.choice((1, 1, 2))):
            node, key = rng.choice(places)
            _change(node, key, rng)
    else:
        tree = rng.choice(VALUES)
    return json.dumps(tree).encode()


def _change(node, key, rng: random.Random) -> None:
    """Change one value in place; an earlier change may have removed it."""
    what = rng.random()
    with contextlib.suppress(KeyError, IndexError):
        if what < 0.6:
            node[key] = rng.choice(VALUES)
        elif what < 0.8:
            node.pop(key)
        elif isinstance(node, list):
            node.append(node[key])
        else:
            node[rng.choice((str(key) + "2", str(key).upper(), "", "0"))] = node.pop(key)


def _json_line(content: bytes, rng: random.Random) -> bytes | None:
    lines = content.split(b"\n")
    number = rng.randrange(len(lines))
    changed = _json(lines[number], rng)
    return None if changed is None else b"\n".join([*lines[:number], changed, *lines[number + 1 :]])
