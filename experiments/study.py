"""Studies, and the runs that they declare in files of experiments/studies (`declaration.py`).

A run is identified by what it computes: recipe, overrides, seed, the run from whose weights it starts, and whether it
trains or probes. Settings with the same pre-training share it. A later change of a study does not mix rows.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from experiments.declaration import declared_scores, read_declaration

OF_STUDY = ("seed", "data.data_dir", "init.checkpoint")  # fields that the runner sets


@dataclasses.dataclass(frozen=True)
class Run:
    """A training, or a probe: recipe, fields that differ, seed, and the run from whose weights it starts."""

    recipe: str  # as pretrain or vcr:demo_qa2r, or an absolute path of another one
    overrides: tuple[tuple[str, Any], ...]  # (dotted field, value), by name
    seed: int
    after: Run | None = None
    mode: str = "train"  # train | probe

    def declaration(self) -> dict[str, Any]:
        """Return what identifies the run, as it is written to a row."""
        after = self.after and self.after.declaration()
        own = dict(recipe=self.recipe, overrides=dict(self.overrides), seed=self.seed, after=after)
        return own | (dict(mode=self.mode) if self.mode != "train" else {})

    @functools.cached_property
    def key(self) -> str:
        """The run as a text; equal runs have equal texts."""
        return key_of(self.declaration())

    @functools.cached_property
    def name(self) -> str:
        """Name of the workdir: the recipe, eight digits of a checksum of what identifies the run, and the seed."""
        digest = hashlib.sha256(self.key.encode()).hexdigest()[:8]
        kind = "" if self.mode == "train" else f"{self.mode}-"
        recipe = PurePath(self.recipe).name.replace(".py:", "_").removesuffix(".py").replace(":", "_")
        return f"{kind}{recipe}-{digest}-{self.seed}"

    def flags(self) -> list[str]:
        """Return the flags of the command for the overrides and the seed."""
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in self.overrides}
        return [f"--config.{name}={value}" for name, value in values.items()] + [f"--config.seed={self.seed}"]


def key_of(declaration: Mapping[str, Any]) -> str:
    """Return a declaration (`Run.declaration`) as a text that does not depend on the order of its fields."""
    return json.dumps(declaration, sort_keys=True)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement that one setting scores higher than another."""

    text: str
    score: str  # column of the table
    better: str
    worse: str
    paper: str = ""
    than: str = ""  # column of the worse setting; "" = `score`


@dataclasses.dataclass(frozen=True)
class Plot:
    """Lines over an axis in place of one column of points per setting."""

    x: str
    positions: Mapping[str, float]
    lines: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Curves:
    """Lines of the settings over levels of removal, one panel for each kind of target of the probes."""

    x: str
    panels: Mapping[str, Mapping[str, str]]  # title -> level -> number of the probes


@dataclasses.dataclass(frozen=True)
class Heat:
    """Maps of the layers and heads of each setting."""

    values: str
    chance: str


@dataclasses.dataclass(frozen=True)
class Study:
    """A study in one of its forms."""

    name: str
    form: str
    title: str
    about: str
    settings: Mapping[str, str]  # name -> what it is
    columns: Mapping[str, str]  # column -> metric: those of the pre-training, of its probes, then the tasks
    probes: Sequence[str]  # columns of the probes
    tasks: Sequence[str]  # columns that are fine-tuned
    cells: Mapping[tuple[str, str], Sequence[Run]]  # (setting, column) -> a run per seed (and seed of fine-tuning)
    claims: Sequence[Claim]
    plot: Plot | None
    figure: Curves | Heat | None  # of the probes, in place of the plot

    def runs(self) -> list[Run]:
        """Return every run once: the first seed of everything comes first, and each run after the one it needs."""
        found: dict[str, Run] = {}
        runs = (run for cell in self.cells.values() for run in cell)
        for run in sorted(runs, key=lambda run: ((run.after or run).seed, run.seed)):
            for one in (run.after, run):
                if one:
                    found.setdefault(one.key, one)
        return list(found.values())


def read_study(path: Path, form: str = "full", flags: Sequence[str] = ()) -> Study:
    """Read a study.

    Args:
        path: The file.
        form: One of `FORMS`.
        flags: Overrides of all commands, as --config.batch_size=16.

    Returns:
        The study; its recipes and overrides have been checked, and the values are those of the configs.

    Raises:
        ValueError: The file, a flag or an override is wrong; the message names the file and the field.
    """
    content = read_declaration(path, form)
    common = [_override(flag) for flag in flags]
    if not (cells := _cells(content, common, path)):
        raise ValueError(f"{path}: the form {form!r} has no run; it needs a setting, and scores or a task for it")
    groups = declared_scores(content)
    columns = {column: metric for scores in groups.values() for column, metric in scores.items()}
    claims = [Claim(**claim) for claim in content.get("claims", ())]
    plot = Plot(**content["plot"]) if "plot" in content else None
    figure = Curves(**content["curves"]) if "curves" in content else None
    figure = Heat(**content["heat"]) if "heat" in content else figure
    return Study(
        path.stem, form, content["title"], content["about"].strip(),
        {name: setting["about"] for name, setting in content["settings"].items()},
        columns, tuple(groups["probe.scores"]), tuple(content.get("tasks", {})), cells, claims,
        plot, figure,
    )  # fmt: skip


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the fields of nested tables by dotted names."""
    fields = {}
    for name, value in table.items():
        fields |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return fields


def _override(flag: str) -> tuple[str, str]:
    """Return field and value of a flag --config.FIELD=VALUE."""
    found = re.fullmatch(r"--config\.([\w.]+)=(.*)", flag, re.DOTALL)
    if not found or found[1] in OF_STUDY:
        raise ValueError(
            f"--flag={flag} is not usable; write --flag=--config.FIELD=VALUE. The study sets seed and init.checkpoint, "
            "and --data_dir the folder of the data."
        )
    return found[1], found[2]


def _cells(content: dict[str, Any], common: Sequence[tuple[str, str]], path: Path) -> dict[tuple[str, str], list[Run]]:
    """Return (setting, column) -> one run per seed, or per seed and seed of fine-tuning."""
    cells: dict[tuple[str, str], list[Run]] = {}
    pretrain = content["pretrain"]
    checked = functools.cache(functools.partial(_checked, path))
    for name, setting in content["settings"].items():

        def overrides(recipe: str, *tables: Mapping[str, Any], name: str = name) -> tuple[str, tuple]:
            fields = {field: value for table in tables for field, value in _flat(table).items()} | dict(common)
            texts = tuple((field, str(tuple(v) if isinstance(v, list) else v)) for field, v in sorted(fields.items()))
            return checked(name, recipe, texts)

        first, recipe = None, setting.get("recipe", pretrain["recipe"])
        if not setting.get("scratch"):
            first = overrides(recipe, pretrain.get("overrides", {}), setting.get("pretrain", {}))
        for seed in range(setting["seeds"]):
            root = None if first is None else Run(*first, seed)
            for column in pretrain["scores"] if root else ():
                cells.setdefault((name, column), []).append(root)
            for column in declared_scores(content)["probe.scores"] if root else ():
                probe = Run(root.recipe, root.overrides, seed, root, "probe")
                cells.setdefault((name, column), []).append(probe)
            for column, task in content.get("tasks", {}).items():
                tuned = overrides(task["recipe"], task.get("overrides", {}), setting.get("tune", {}))
                seeds = range(setting["tune_seeds"]) if "tune_seeds" in setting else (seed,)
                runs = [Run(*tuned, tune_seed, root) for tune_seed in seeds]
                cells.setdefault((name, column), []).extend(runs)
    return cells


def _checked(path: Path, setting: str, recipe: str, fields: tuple[tuple[str, str], ...]) -> tuple[str, tuple]:
    """Return a recipe and its overrides as a run has them.

    The values are those that the config has with them, so that 1e-3 and 0.001 are the same run. The path of a recipe
    that is not of the package is absolute, because trainings start in another folder.
    """
    from vlbert_jax.training.config import parse_command
    from vlbert_jax.training.recipes import recipe_folder, recipe_path
    from vlbert_jax.weights.stored_config import flat_config

    try:
        if not recipe.strip():
            raise ValueError("the recipe is empty; name one")
        if set_here := [name for name, _ in fields if name in OF_STUDY]:
            raise ValueError(f"{set_here[0]} is no field to override: the study sets it; remove it")
        file, colon, variant = recipe_path(recipe).partition(":")
        if Path(file).resolve().parent != recipe_folder().resolve():
            recipe = f"{Path(file).absolute()}{colon}{variant}"
        command = parse_command(["run", f"--config={recipe}", *(f"--config.{name}={value}" for name, value in fields)])
    except ValueError as error:
        raise ValueError(f"{path}, [settings.{setting!r}], {recipe}: {error}") from error
    values = flat_config(command.config.to_dict())
    return recipe, tuple((name, list(v) if isinstance(v := values[name], tuple) else v) for name, _ in fields)
