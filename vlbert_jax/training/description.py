"""What a workdir says about its run: config.json, versions.json, and the facts that its report shows."""

import collections
import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

from vlbert_jax.files import atomic_write, read_json_object, with_addresses
from vlbert_jax.training.logs import readable_seconds
from vlbert_jax.weights.stored_config import SCHEMA

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "numpy",
    "vlbert_jax",
)
# Fields of versions.json that are read again.
KINDS = dict(packages=dict, devices=dict, hosts=int, revision=str, command=str, machine=str)


def write_description(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Write config.json and versions.json of the newest start; return the content of versions.json.

    The latter has the packages, the devices, the git revision, the command, the machine and the time of the start.
    """
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    devices = collections.Counter(device.device_kind for device in jax.devices())
    git = ["git", "-C", str(pathlib.Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        revision = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # not a checkout, or no git
        revision = None
    about = {
        "packages": versions,
        "devices": devices,
        "hosts": jax.process_count(),
        "revision": revision,
        "command": command_line(sys.orig_argv),
        "machine": machine(),
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    stored = {"schema": SCHEMA} | json.loads(config.to_json_best_effort())
    for name, content in (("config.json", stored), ("versions.json", about)):
        with atomic_write(workdir / name) as path:
            path.write_text(json.dumps(content, indent=2) + "\n")
    return about


def command_line(argv: Sequence[str]) -> str:
    """Return the command that started this process, as a shell takes it, without folders of the programs."""
    program, *rest = argv
    if rest and pathlib.Path(rest[0]).name.startswith("vlbert-"):  # a console script
        program, *rest = rest
    return shlex.join([pathlib.Path(program).name, *rest])


def machine() -> str:
    """Return processor, cores, memory and operating system of this machine."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        if found := re.search(r"^model name\s*:\s*(.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            processor = found[1]
    with contextlib.suppress(OSError, ValueError, AttributeError):  # not POSIX
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        processor += f", {memory:.0f} GiB"
    return f"{os.cpu_count()} cores of {processor}, {platform.system()}"


def facts_of(workdir: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the facts about the run of a workdir, by name; those that it does not know are empty.

    Args:
      workdir: folder of the run.
      rows: rows of its metrics.jsonl.
    """
    path = workdir / "versions.json"
    remedy = "remove it; the next start of the run writes it again"
    about = read_json_object(path, remedy) if path.exists() else {}
    about = {name: value for name, value in about.items() if value is not None}  # outside a checkout: no revision
    try:
        started = datetime.datetime.fromisoformat(about["started"]) if "started" in about else None
        if wrong := [name for name, kind in KINDS.items() if not isinstance(about.get(name, kind()), kind)]:
            raise ValueError(f"{wrong[0]} is {str(about[wrong[0]])[:60]!r}")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}; {remedy}") from None
    devices = ", ".join(f"{count} × {kind}" for kind, count in about.get("devices", {}).items())
    hosts = about.get("hosts", 1)
    return {
        "command": about.get("command", ""),
        "commit": about.get("revision", ""),
        "duration": _duration(workdir, started, rows),
        "machine": about.get("machine", ""),
        "devices": devices + (f", {hosts} processes" if hosts > 1 else ""),
        "versions": ", ".join(f"{name} {version}" for name, version in about.get("packages", {}).items()),
        "workdir": with_addresses(str(workdir)),
    }


def _duration(workdir: pathlib.Path, begin: datetime.datetime | None, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the time of all updates, and begin and end of the newest start; None = not known."""
    seconds, before = 0.0, 0
    for row in rows:
        if row["split"] == "train":
            seconds += (row.get("step_time_ms") or 0.0) * (row["step"] - before) / 1e3
            before = row["step"]
    parts = [f"{readable_seconds(seconds)} of updates"] if seconds else []
    if begin and (metrics := workdir / "metrics.jsonl").exists():
        end = datetime.datetime.fromtimestamp(metrics.stat().st_mtime, begin.tzinfo)
        if end >= begin:
            last = f"{readable_seconds((end - begin).total_seconds())} in all for the newest start"
            parts.append(f"{last}, {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}")
    return "; ".join(parts)

