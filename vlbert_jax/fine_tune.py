"""From a folder of your own images and texts to a model that answers, in one call: `vlbert_jax.fine_tune`."""

from __future__ import annotations

import argparse
import math
import pathlib
from typing import Any

import jax

from vlbert_jax.compiled import keep_programs
from vlbert_jax.files import user_path, with_addresses
from vlbert_jax.main import import_builder, run
from vlbert_jax.memory import keep_freed_memory
from vlbert_jax.prediction.predictor import Predictor, load
from vlbert_jax.storage.workdir import local_workdir
from vlbert_jax.weights.checksums import damage_of

DATA = ("images", "regions", "detector", "features", "answers", "positive", "num_threads")  # options of the build


def fine_tune(
    folder: str | pathlib.Path,
    checkpoint: str | pathlib.Path,
    workdir: str | pathlib.Path,
    *,
    kind: str = "",
    **overrides: Any,
) -> Predictor:
    """Build the tables of a folder, fine-tune a model on them, and return it.

    The tables are written to `workdir`/data. The same call continues an interrupted run, and returns the model of a
    finished one at once.

    Args:
        folder: Folder or address (gs://, s3://) of train.jsonl, val.jsonl and images; docs/own_data.md describes it.
        checkpoint: A pre-trained model: its weights, the workdir of its run, or the name of a shipped model.
        workdir: Folder or address of the run.
        kind: Overrides the kind that follows from the fields: "caption" for images with texts.
        **overrides: Options of `python -m data_prep.build own`, such as detector="WEIGHTS", and fields of the config,
            such as learning_rate=1e-4 or `**{"losses.class_weights": "balanced"}`.

    Returns:
        The model of the best evaluation; its `scores` are those of this evaluation.

    Raises:
        ValueError: Something is wrong with the data or a field; the message is one line.
        StorageError: An address cannot be read or written.
    """
    given = argparse.Namespace(source=user_path(str(folder)), data_dir=f"{user_path(str(workdir))}/data", shard=(0, 1))
    options = {name: overrides.pop(name) for name in DATA if name in overrides}
    for name in ("images", "regions", "detector"):
        setattr(given, name, user_path(str(options.pop(name, "") or "")))
    # Training takes seconds to import, and `help(vlbert_jax)` imports this module.
    from vlbert_jax.training.config import parse_command

    builder, stored = import_builder("own"), import_builder("stored")
    from data_prep.manifest import SourceError

    data_dir = given.data_dir
    try:
        with stored.local_places(given):
            places = given.images, given.regions, given.detector
            builder.build_own(given.source, given.data_dir, "own", *places, suggest=False, **options)
    except SourceError as error:
        raise ValueError(with_addresses(str(error))) from None
    fields = {"data.data_dir": data_dir, "data.texts": "own/own", "init.checkpoint": checkpoint} | overrides
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    recipe = f"--config=own:{kind}" if kind else "--config=own"
    command = parse_command(["fine_tune", recipe, f"--workdir={workdir}", *flags])
    keep_programs()
    keep_freed_memory()
    with jax.default_prng_impl(command.config.prng_impl), local_workdir(command.workdir, True, damage_of) as local:
        run(command.config, local, command.mode)
        scores = best_scores(local, command.config.best_metric)
    predictor = load(command.workdir, detector=given.detector or None)
    predictor.scores = scores
    return predictor


def best_scores(workdir: pathlib.Path, metric: str) -> dict[str, float]:
    """Return the scores of the best evaluation of a run; {} if none has this metric."""
    from vlbert_jax.training.metrics import read_rows
    from vlbert_jax.training.patience import lower_is_better

    rows = [row for row in read_rows(workdir / "metrics.jsonl") if row["split"] == "val"]
    rows = [row for row in rows if isinstance(row.get(metric), float) and math.isfinite(row[metric])]
    if not rows:
        return {}
    best = (min if lower_is_better(metric) else max)(rows, key=lambda row: row[metric])
    return {name: value for name, value in best.items() if name not in ("step", "split")}
