"""From a folder of your own images and texts to a model that answers, in one call: `vlbert_jax.fine_tune`."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import jax

from vlbert_jax.compiled import keep_programs
from vlbert_jax.files import is_address, user_path
from vlbert_jax.main import import_builder, run
from vlbert_jax.memory import keep_freed_memory
from vlbert_jax.prediction.predictor import Predictor, load

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
        folder: Folder of train.jsonl, val.jsonl and images; docs/own_data.md describes it.
        checkpoint: A pre-trained model: its weights, the workdir of its run, or the name of a shipped model.
        workdir: Folder of the run.
        kind: Overrides the kind that follows from the fields: "caption" for images with texts.
        **overrides: Options of `python -m data_prep.build own`, such as detector="WEIGHTS", and fields of the config,
            such as learning_rate=1e-4 or `**{"losses.class_weights": "balanced"}`.

    Returns:
        The model of the best evaluation; its `scores` are those of this evaluation.

    Raises:
        ValueError: Something is wrong with the data or a field; the message is one line.
    """
    if is_address(str(workdir)):
        raise ValueError(f"{workdir} is an address; `fine_tune` builds records, so give a folder")
    workdir = pathlib.Path(user_path(str(workdir)))
    options = {name: overrides.pop(name) for name in DATA if name in overrides}
    for name in ("images", "regions", "detector"):
        if name in options:
            options[name] = user_path(str(options[name]))
    # Training takes seconds to import, and `help(vlbert_jax)` imports this module.
    from vlbert_jax.training.config import parse_command

    builder = import_builder("own")
    from data_prep.manifest import SourceError

    try:
        builder.build_own(user_path(str(folder)), workdir / "data", "own", suggest=False, **options)
    except SourceError as error:
        raise ValueError(str(error)) from None
    fields = {"data.data_dir": workdir / "data", "data.texts": "own/own", "init.checkpoint": checkpoint} | overrides
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    recipe = f"--config=own:{kind}" if kind else "--config=own"
    command = parse_command(["fine_tune", recipe, f"--workdir={workdir}", *flags])
    keep_programs()
    keep_freed_memory()
    with jax.default_prng_impl(command.config.prng_impl):
        run(command.config, workdir, command.mode)
    predictor = load(workdir, detector=options.get("detector"))
    predictor.scores = best_scores(workdir, command.config.best_metric)
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
