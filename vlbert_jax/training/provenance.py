"""Data and versions of libraries that decide what a run computes; stored with each checkpoint."""

import importlib.metadata
import logging
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import ml_collections

from vlbert_jax.data.records import corpus_fingerprint
from vlbert_jax.data.tokenizer import tokenizer_of, write_tokenizer
from vlbert_jax.files import atomic_write
from vlbert_jax.model.config import architecture_of
from vlbert_jax.weights.stored_config import VOCABULARIES, own_vocabularies

log = logging.getLogger(__name__)

PACKAGES = ("jax", "jaxlib", "grain")  # sampling, arithmetic and the order of the data depend on them
# Texts in config.data that name no file, though a folder next to the data may have the same name.
NO_PATHS = ("data_dir", "embedded", "extractor", "features", "train_split", "eval_split", "train_boxes", "eval_boxes",
            "positive", "scorer")  # fmt: skip


def data_paths(config: ml_collections.ConfigDict) -> dict[str, str]:
    """Return field of `config.data` -> path of the file or folder that it names.

    In a run of several tasks, the fields of a part begin with its name and a dot.
    """
    paths, blocks = {}, {"": config.data}
    blocks |= {f"{name}.": part.data for name, part in config.get("parts", {}).items()}
    for prefix, data in blocks.items():
        for name, path in data.items():
            if isinstance(path, str) and path and name not in (*NO_PATHS, *(("vocab",) if prefix else ())):
                inside = os.path.join(config.data.data_dir, path)
                paths[prefix + name] = inside if os.path.exists(inside) or not os.path.isfile(path) else path
    return paths


def copy_vocabularies(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Copy the tokenizer and the lists of words that `config.data` names into the workdir, atomically.

    With them the workdir is complete: it answers questions on another machine, without the data.
    """
    with atomic_write(workdir / VOCABULARIES) as folder:
        folder.mkdir()
        for name, path in data_paths(config).items():
            if name == "vocab":
                write_tokenizer(tokenizer_of(config), folder / name)
            elif os.path.isfile(path):  # parts of one task share their list, as they share their head
                shutil.copyfile(path, folder / f"{name.rpartition('.')[2]}{pathlib.Path(path).suffix}")


def with_own_vocabularies(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """Return the config with the copies in the workdir in place of files that do not exist here."""
    lacking = {name for name, path in data_paths(config).items() if not os.path.exists(path)}
    config = config.copy_and_resolve_references()
    own = own_vocabularies(workdir)
    for name in lacking:
        part, _, field = name.rpartition(".")
        if field in own:
            data = config.parts[part].data if part else config.data
            data[field] = own[field]
    return config


def provenance_of(config: ml_collections.ConfigDict) -> dict[str, dict[str, str]]:
    """Return `data`: field -> fingerprint of the content, wherever it is, and `versions`: package -> version.

    Names and sizes of all files count, and samples of the content (`corpus_fingerprint`). Of the names of the
    detector's classes only architectures that read them depend; others have them in reports.
    """
    unused = () if architecture_of(config).region_names else ("class_names",)
    paths = {name: path for name, path in data_paths(config).items() if name.rpartition(".")[2] not in unused}
    marks = {name: corpus_fingerprint(path) for name, path in paths.items()}
    data = {name: mark for name, mark in marks.items() if mark}
    return dict(data=data, versions={name: importlib.metadata.version(name) for name in PACKAGES})


def check_provenance(before: Mapping[str, Any], now: Mapping[str, Any], allow_other_data: bool):
    """Compare the provenance of a checkpoint with that of this process; what one of them lacks is not compared.

    Logs a warning where versions differ.

    Raises:
      ValueError: data differ, and `allow_other_data` is False.
    """

    def changes(kind: str) -> list[tuple[str, str, str]]:
        old, new = before.get(kind, {}), now[kind]
        return [(name, old[name], new[name]) for name in new if name in old and old[name] != new[name]]

    for name, old, new in changes("versions"):
        log.warning("%s is %s; the run was started with %s: its results may differ slightly", name, new, old)
    for name, old, new in changes("data"):
        line = f"what config.data.{name} names has changed since the checkpoint: it was {old}; it is {new}"
        if not allow_other_data:
            raise ValueError(
                f"{line}. Restore the data, choose another --workdir, or continue with the changed data by "
                "--config.allow_other_data=True"
            )
        log.warning("%s", line)
