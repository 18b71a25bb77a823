"""Where a run's metrics and examples are shown besides its own files: TensorBoard, and W&B on request."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

from vlbert_jax.weights.stored_config import flat_config

Drawings = Sequence[tuple[str, np.ndarray]]  # texts, and images (uint8 [height, width, 3]) that hold them


class Tracker:
    """A program that shows metrics and examples; every method is called in the order of the steps."""

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Show one row of metrics."""
        raise NotImplementedError

    def examples(self, step: int, drawings: Drawings) -> None:
        """Show examples of the report."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what is not yet written."""
        raise NotImplementedError


def check_tracker(config: ml_collections.ConfigDict) -> None:
    """Raise ValueError where `config.tracker` names a tracker that is unknown or not installed."""
    name = config.get("tracker", "")
    if name not in ("", "wandb"):
        raise ValueError(f"config.tracker is {name!r}; it can be empty or 'wandb'")
    if name and importlib.util.find_spec(name) is None:
        raise ValueError(
            f"config.tracker is {name!r}, but the package is not installed: pip install {name}, or leave the field "
            "empty; TensorBoard needs no setting"
        )


def open_trackers(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, start_step: int, about: Mapping[str, Any]
) -> list[Tracker]:
    """Return the trackers of a run that continues at `start_step`; `about` is the content of versions.json."""
    check_tracker(config)
    trackers: list[Tracker] = [TensorBoard(config, workdir, start_step, about)]
    if config.get("tracker", ""):
        trackers.append(WeightsAndBiases(config, workdir, about))
    return trackers


class TensorBoard(Tracker):
    """Event files in WORKDIR/tensorboard: scalars, examples, the config as text and as hyperparameters.

    Events are written where they arise. The thread of `tensorboardX.SummaryWriter` waits by the wall clock: it ends
    when the clock jumps back by 25 days or the disk is full, and then the run waits for it forever.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, workdir: pathlib.Path, start_step: int, about: Mapping[str, Any]
    ):
        """Hide the events after `start_step` of an earlier start; write the config."""
        self.fields, self.has_fields = flat_config(config.to_dict()), False
        folder = workdir / "tensorboard"
        folder.mkdir(exist_ok=True)
        # The program and its starts within a second have files of their own.
        self.file = EventsWriter(str(folder / "events"), f".{os.getpid()}.{len(list(folder.iterdir()))}")
        self.file.write_event(
            Event(wall_time=time.time(), step=start_step + 1, session_log=SessionLog(status=SessionLog.START))
        )
        table = "\n".join(f"| {name} | {value!r} |" for name, value in self.fields.items())
        self._write(start_step, summary.text("config", f"| field | value |\n|---|---|\n{table}"))
        self._write(start_step, summary.text("command", f"    {about.get('command', '')}"))

    def _write(self, step: int, *values: Any) -> None:
        for value in values:
            self.file.write_event(Event(wall_time=time.time(), step=step, summary=value))
        self.file.flush()

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Write one row of metrics; the first evaluation decides which scores the table of hyperparameters has."""
        self._write(step, *(summary.scalar(f"{split}/{name}", value) for name, value in values.items()))
        if split == "val" and not self.has_fields:
            simple = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in self.fields.items()}
            # `SummaryWriter.add_hparams` would write another run; here the table and the scalars belong together.
            self._write(step, *summary.hparams(simple, {f"val/{name}": value for name, value in values.items()}))
            self.has_fields = True

    def examples(self, step: int, drawings: Drawings) -> None:
        """Write examples as images, and their texts."""
        images = [image for _, image in drawings]
        self._write(step, *(summary.image(f"examples/{k}", x, dataformats="HWC") for k, x in enumerate(images, 1)))
        if drawings:
            texts = "\n".join(f"{number}. {text}" for number, (text, _) in enumerate(drawings, 1))
            self._write(step, summary.text("examples", texts))

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class WeightsAndBiases(Tracker):
    """A run of W&B in WORKDIR/wandb; the mode and the account are those of wandb's environment variables."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: pathlib.Path, about: Mapping[str, Any]):
        """Start a run, or continue the one of the workdir."""
        import wandb  # pyright: ignore[reportMissingImports]

        self.wandb, mark = wandb, workdir / "wandb_id"
        known = mark.read_text().strip() if mark.exists() else secrets.token_hex(4)
        self.run = wandb.init(
            project="vlbert_jax", name=workdir.name, id=known, resume="allow", dir=str(workdir),
            config=flat_config(config.to_dict()) | {"command": about.get("command", "")},
        )  # fmt: skip
        mark.write_text(f"{known}\n")
        self.run.define_metric("*", step_metric="step")  # a restart repeats steps, which wandb's own count refuses

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Log one row of metrics."""
        self.run.log({"step": step} | {f"{split}/{name}": value for name, value in values.items()})

    def examples(self, step: int, drawings: Drawings) -> None:
        """Log examples as images with captions."""
        images = [self.wandb.Image(image, caption=text) for text, image in drawings]
        if images:
            self.run.log({"step": step, "examples": images})

    def close(self) -> None:
        """Wait until everything is written or sent."""
        self.run.finish()
