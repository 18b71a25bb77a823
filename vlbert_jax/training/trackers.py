"""Where a run's metrics and examples are shown besides its own files: TensorBoard, and W&B on request."""

from __future__ import annotations

import importlib.util
import pathlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
import tensorboardX
from tensorboardX import summary

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
    """Event files in WORKDIR/tensorboard: scalars, examples, the config as text and as hyperparameters."""

    def __init__(
        self, config: ml_collections.ConfigDict, workdir: pathlib.Path, start_step: int, about: Mapping[str, Any]
    ):
        """Hide the events after `start_step` of an earlier start; write the config."""
        self.fields, self.has_fields = flat_config(config.to_dict()), False
        self.board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)
        table = "\n".join(f"| {name} | {value!r} |" for name, value in self.fields.items())
        self.board.add_text("config", f"| field | value |\n|---|---|\n{table}", start_step)
        self.board.add_text("command", f"    {about.get('command', '')}", start_step)

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Write one row of metrics; the first evaluation decides which scores the table of hyperparameters has."""
        for name, value in values.items():
            self.board.add_scalar(f"{split}/{name}", value, step)
        if split == "val" and not self.has_fields:
            simple = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in self.fields.items()}
            # `SummaryWriter.add_hparams` would write another run; here the table and the scalars belong together.
            for event in summary.hparams(simple, {f"val/{name}": value for name, value in values.items()}):
                self.board.file_writer.add_summary(event)
            self.has_fields = True

    def examples(self, step: int, drawings: Drawings) -> None:
        """Write examples as images, and their texts."""
        for number, (_, image) in enumerate(drawings, 1):
            self.board.add_image(f"examples/{number}", image, step, dataformats="HWC")
        if drawings:
            self.board.add_text("examples", "\n".join(f"{i}. {text}" for i, (text, _) in enumerate(drawings, 1)), step)

    def close(self) -> None:
        """Write the remaining events."""
        self.board.close()


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
