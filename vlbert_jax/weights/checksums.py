"""Checksums of the files of a checkpoint, by which a damaged one is found before it is used.

TensorStore notices most truncated files, but not every changed byte of an array. `checksums.json` in the folder of a
checkpoint has the size and the CRC-32 of each file in `state`, `meta` and `kept`. It is a part of the checkpoint when
that is committed. Checkpoints of earlier versions have none and are not checked.
"""

from __future__ import annotations

import concurrent.futures
import json
import logging
import os
import zlib
from pathlib import Path

from vlbert_jax.files import atomic_write, parse_json

log = logging.getLogger(__name__)
CHECKSUMS = "checksums.json"
PARTS = ("state", "meta", "kept")  # Orbax writes the other files later, or again
BLOCK = 1 << 22  # bytes that are read at a time; zlib computes about 1.5 GB/s of checksums on one core


def write_checksums(folder: Path) -> None:
    """Write `checksums.json` for the files of a checkpoint. Raises OSError."""
    files = sorted(path for part in PARTS for path in (folder / part).rglob("*") if path.is_file())
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        sums = dict(zip((path.relative_to(folder).as_posix() for path in files), pool.map(_sum, files), strict=True))
    with atomic_write(folder / CHECKSUMS) as path:
        path.write_text(json.dumps(sums, indent=1) + "\n")


def damage_of(folder: Path) -> str:
    """Return what is wrong with a checkpoint, for a message; "" if nothing is known to be wrong."""
    if not (folder / "state").exists():
        return f"{folder / 'state'} is missing"
    if not (folder / CHECKSUMS).exists():
        return ""
    try:
        sums = dict(parse_json((folder / CHECKSUMS).read_bytes()))
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            found = pool.map(lambda name: _sum(folder / name), sums)
            for (name, expected), value in zip(sums.items(), found, strict=True):
                if value != expected:
                    sizes = f" ({value[0]:,} bytes instead of {expected[0]:,})" if value[0] != expected[0] else ""
                    return f"{folder / name} has changed since it was saved{sizes}"
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except (OSError, ValueError, TypeError, LookupError) as error:  # of damaged checksums, too
        return f"{folder / CHECKSUMS} and the files that it lists cannot be compared ({error})"
    return ""


def newest_intact(folder: Path, remedy: str) -> Path | None:
    """Return the newest checkpoint that is not damaged, None without any; log each damaged one that is newer.

    Args:
      folder: the folder of the checkpoints of a run.
      remedy: what to do if all are damaged, for the message.

    Raises:
      ValueError: there are checkpoints, and all are damaged.
    """
    damage = ""
    for step in sorted((int(path.name) for path in folder.glob("*") if path.name.isdigit()), reverse=True):
        damage = damage_of(folder / str(step))
        if not damage:
            return folder / str(step)
        log.warning("checkpoint %d is damaged and not used: %s", step, damage)
    if damage:
        raise ValueError(f"all checkpoints in {folder} are damaged; of the oldest, {damage}; {remedy}")
    return None


def _sum(path: Path) -> list[int]:
    """Return the size and the CRC-32 of a file."""
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]
