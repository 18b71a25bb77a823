"""Studies: files of experiments/studies that declare runs, and the runs that they declare.

A file STUDY.toml has these tables:

    title, about           heading and introduction of the page
    [pretrain]             recipe; overrides (fields of its config); scores (column of the table -> metric)
    [probe]                every pre-training is probed (--mode=probe): scores (column -> number in probes.json, as
                           visual_words.aligned.accuracy)
    [tasks.NAME]           fine-tuned after every pre-training: recipe, score (a metric), overrides
    [settings.NAME]        a row of the table: about, seeds (their number), pretrain and tune (overrides of
                           the pre-training and of each fine-tuning), recipe (of its pre-training, if it is another),
                           scratch (true = no pre-training)
    [[claims]]             what the study tests: text, paper (its figures), score (a column), better, worse (settings),
                           than (the column of the worse one, if it is another)
    [plot]                 x (what the horizontal axis shows), positions and lines: setting -> its place, and its line
    [curves]               instead, of probes: x, and panels: title -> level on the axis -> number in probes.json;
                           a line joins the levels up to "all"
    [heat]                 instead, of probes: values and chance, numbers in probes.json; one map for each setting
    [small]                a form that ends soon: settings and tasks (names that it keeps), seeds, and `replace`, whose
                           tables replace fields of the study
    [real]                 the same for real data, where `replace` has other recipes and sizes; optional

A run is identified by what it computes: recipe, overrides, seed, the run from whose weights it starts, and whether it
trains or probes. Settings with the same pre-training share it. A later change of a study does not mix rows.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STUDIES = Path(__file__).resolve().parent / "studies"
FORMS = ("small", "full", "real")
FIELDS: dict[str, dict[str, type]] = {  # table -> field -> type
    "": dict(title=str, about=str, pretrain=dict, probe=dict, tasks=dict, settings=dict, claims=list, plot=dict,
             curves=dict, heat=dict, small=dict, real=dict),
    "pretrain": dict(recipe=str, overrides=dict, scores=dict),
    "probe": dict(scores=dict),
    "tasks": dict(recipe=str, score=str, overrides=dict),
    "settings": dict(about=str, seeds=int, recipe=str, pretrain=dict, tune=dict, scratch=bool),
    "claims": dict(text=str, paper=str, score=str, better=str, worse=str, than=str),
    "plot": dict(x=str, positions=dict, lines=dict),
    "curves": dict(x=str, panels=dict),
    "heat": dict(values=str, chance=str),
    "small": dict(settings=list, tasks=list, seeds=int, replace=dict),
    "real": dict(settings=list, tasks=list, seeds=int, replace=dict),
}
REQUIRED = {
    "": ("title", "about", "pretrain", "settings", "small"),
    "pretrain": ("recipe", "scores"),
    "probe": ("scores",),
    "tasks": ("recipe", "score"),
    "settings": ("about", "seeds"),
    "claims": ("text", "score", "better", "worse"),
    "plot": ("x", "positions", "lines"),
    "curves": ("x", "panels"),
    "heat": ("values", "chance"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """A training, or a probe: recipe, fields that differ, seed, and the run from whose weights it starts."""

    recipe: str  # as pretrain or vcr:demo_qa2r
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
        return f"{kind}{self.recipe.replace(':', '_')}-{digest}-{self.seed}"

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
    cells: Mapping[tuple[str, str], Sequence[Run]]  # (setting, column) -> one run per seed
    claims: Sequence[Claim]
    plot: Plot | None
    figure: Curves | Heat | None  # of the probes, in place of the plot

    def runs(self) -> list[Run]:
        """Return every run once: the first seed of everything comes first, and each run after the one it needs."""
        found: dict[str, Run] = {}
        for run in sorted((run for cell in self.cells.values() for run in cell), key=lambda run: run.seed):
            for one in (run.after, run):
                if one:
                    found.setdefault(one.key, one)
        return list(found.values())


# --- Reading ---------------------------------------------------------------------------------------------


def study_path(name: str) -> Path:
    """Return the file of a study; `name` may also be the path of a file with another study.

    Raises:
        ValueError: There is no such study; the message has the names.
    """
    path = Path(name) if name.endswith(".toml") else STUDIES / f"{name}.toml"
    if not path.is_file():
        names = sorted(file.stem for file in STUDIES.glob("*.toml"))
        raise ValueError(f"there is no study {name!r}{nearest(name, names)}; there are: {', '.join(names)}")
    return path


def nearest(name: str, names: Sequence[str]) -> str:
    """Return a remark that proposes the name most like a misspelt one; empty where none is like it."""
    close = difflib.get_close_matches(name, names, n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def declared_forms(path: Path) -> list[str]:
    """Return the forms that the file of a study declares. Raises ValueError if it is not TOML."""
    content = _read(path)
    return [form for form in FORMS if form == "full" or form in content]


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML ({error}); correct this line") from None


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
    content = _read(path)
    _check(content, path)
    if form != "full":
        if form not in content:
            raise ValueError(f"{path} has no table [{form}], which declares this form; add it, or run another form")
        content = _reduced(content, form, path)
    common = [_override(flag) for flag in flags]
    groups = _scores(content)
    columns: dict[str, str] = {}
    for group, scores in groups.items():
        if both := set(columns) & set(scores):
            earlier = next(name for name, others in groups.items() if min(both) in others)
            raise ValueError(f"{path}: {min(both)!r} is in {earlier} and in {group}; rename one of them")
        columns |= scores
    if not columns:
        raise ValueError(f"{path}: {', '.join(groups)} are empty; name at least one score")
    claims = [Claim(**claim) for claim in content.get("claims", ())]
    plot = Plot(**content["plot"]) if "plot" in content else None
    figure = Curves(**content["curves"]) if "curves" in content else None
    figure = Heat(**content["heat"]) if "heat" in content else figure
    return Study(
        path.stem, form, content["title"], content["about"].strip(),
        {name: setting["about"] for name, setting in content["settings"].items()},
        columns, tuple(groups["probe.scores"]), tuple(content.get("tasks", {})), _cells(content, common, path), claims,
        plot, figure,
    )  # fmt: skip


def _scores(content: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return column -> metric of the pre-training, of its probes and of the tasks, by where they are declared."""
    tasks = {name: task["score"] for name, task in content.get("tasks", {}).items()}
    probes = content.get("probe", {}).get("scores", {})
    return {"pretrain.scores": content["pretrain"]["scores"], "probe.scores": probes, "tasks": tasks}


def _check(content: dict[str, Any], path: Path) -> None:
    """Raise ValueError for a field that is unknown, missing or of another type, and for a name that does not exist."""
    _check_fields(content, "", str(path))
    _check_fields(content["pretrain"], "pretrain", f"{path}, [pretrain]")
    for kind in {"small", "real", "probe", "curves", "heat"} & set(content):
        _check_fields(content[kind], kind, f"{path}, [{kind}]")
    figures = {"curves", "heat"} & set(content)
    if figures and "probe" not in content:
        raise ValueError(f"{path}: [{min(figures)}] draws numbers of probes; add [probe]")
    for kind in ("tasks", "settings"):
        for name, table in content.get(kind, {}).items():
            _check_fields(table, kind, f"{path}, [{kind}.{name!r}]")
    for name, setting in content["settings"].items():
        if setting["seeds"] < 1:
            raise ValueError(f"{path}, [settings.{name!r}]: seeds is {setting['seeds']}; it must be 1 or more")
        if setting.get("scratch") and setting.get("pretrain"):
            raise ValueError(f"{path}, [settings.{name!r}] has no pre-training; remove scratch or pretrain")
    columns = [column for scores in _scores(content).values() for column in scores]
    names = dict(score=columns, than=columns, better=[*content["settings"]], worse=[*content["settings"]])
    for number, claim in enumerate(content.get("claims", ()), 1):
        _check_fields(claim, "claims", f"{path}, claim {number}")
        for field, known in names.items():
            if field in claim:  # `than` is optional
                _check_name(claim[field], known, f"{path}, claim {number}: {field}")
    if "plot" in content:
        _check_fields(content["plot"], "plot", f"{path}, [plot]")
        for field in ("positions", "lines"):
            for name in content["plot"][field]:
                _check_name(name, [*content["settings"]], f"{path}, [plot]: {field}")
            if missing := set(content["settings"]) - set(content["plot"][field]):
                raise ValueError(f"{path}, [plot]: {field} lacks the setting {min(missing)!r}; add it")


def _check_fields(table: Any, kind: str, place: str) -> None:
    if not isinstance(table, dict):
        raise ValueError(f"{place} is {table!r}; it must be a table")
    for name, value in table.items():
        if name not in FIELDS[kind]:
            known, hint = ", ".join(FIELDS[kind]), nearest(name, [*FIELDS[kind]])
            raise ValueError(f"{place}: unknown field {name!r}{hint}; the fields are: {known}")
        expected = FIELDS[kind][name]
        if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
            raise ValueError(f"{place}: {name} is {value!r}; it must be of type {expected.__name__}")
    if missing := [name for name in REQUIRED.get(kind, ()) if name not in table]:
        raise ValueError(f"{place}: the field {missing[0]!r} is missing; add it")


def _check_name(name: Any, known: Sequence[str], place: str) -> None:
    if name not in known:
        raise ValueError(f"{place} is {name!r}{nearest(str(name), known)}; the names are: {', '.join(known)}")


def _reduced(content: dict[str, Any], form: str, path: Path) -> dict[str, Any]:
    """Return the tables of another form than the full one: some of the settings and tasks, with other fields."""
    chosen = content[form]
    content = _merged(content, chosen.get("replace", {}))
    for kind in ("settings", "tasks"):
        known = content.get(kind, {})
        for name in chosen.get(kind, ()):
            _check_name(name, [*known], f"{path}, [{form}]: {kind}")
        if kind in chosen:
            content[kind] = {name: table for name, table in known.items() if name in chosen[kind]}
    for setting in content["settings"].values():
        setting["seeds"] = chosen.get("seeds", setting["seeds"])
    for field in ("positions", "lines") if "plot" in content else ():
        places = content["plot"][field]
        content["plot"][field] = {name: place for name, place in places.items() if name in content["settings"]}
    columns = {column for scores in _scores(content).values() for column in scores}
    content["claims"] = [
        claim for claim in content.get("claims", ())
        if {claim["score"], claim.get("than", claim["score"])} <= columns
        and {claim["better"], claim["worse"]} <= set(content["settings"])
    ]  # fmt: skip
    _check(content, path)  # `replace` may have added fields
    return content


def _merged(table: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a table with the fields of another one; tables inside are merged too."""
    merged = copy.deepcopy(dict(table))
    for name, value in other.items():
        inside = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if inside else copy.deepcopy(value)
    return merged


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the fields of nested tables by dotted names."""
    fields = {}
    for name, value in table.items():
        fields |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return fields


def _override(flag: str) -> tuple[str, str]:
    """Return field and value of a flag --config.FIELD=VALUE."""
    found = re.fullmatch(r"--config\.([\w.]+)=(.*)", flag, re.DOTALL)
    if not found or found[1] in ("seed", "data.data_dir", "init.checkpoint"):
        raise ValueError(
            f"--flag={flag} is not usable; write --flag=--config.FIELD=VALUE. The study sets seed and init.checkpoint, "
            "and --data_dir the folder of the data."
        )
    return found[1], found[2]


# --- The runs --------------------------------------------------------------------------------------------


def _cells(content: dict[str, Any], common: Sequence[tuple[str, str]], path: Path) -> dict[tuple[str, str], list[Run]]:
    """Return (setting, column) -> one run per seed."""
    cells: dict[tuple[str, str], list[Run]] = {}
    pretrain = content["pretrain"]
    checked = functools.cache(functools.partial(_checked, path))
    for name, setting in content["settings"].items():

        def overrides(recipe: str, *tables: Mapping[str, Any], name: str = name) -> tuple[tuple[str, Any], ...]:
            fields = {field: value for table in tables for field, value in _flat(table).items()} | dict(common)
            texts = tuple((field, str(tuple(v) if isinstance(v, list) else v)) for field, v in sorted(fields.items()))
            return checked(name, recipe, texts)

        first, recipe = None, setting.get("recipe", pretrain["recipe"])
        if not setting.get("scratch"):
            first = overrides(recipe, pretrain.get("overrides", {}), setting.get("pretrain", {}))
        for seed in range(setting["seeds"]):
            root = None if first is None else Run(recipe, first, seed)
            for column in pretrain["scores"] if root else ():
                cells.setdefault((name, column), []).append(root)
            for column in _scores(content)["probe.scores"] if root else ():
                probe = Run(root.recipe, root.overrides, seed, root, "probe")
                cells.setdefault((name, column), []).append(probe)
            for column, task in content.get("tasks", {}).items():
                tuned = overrides(task["recipe"], task.get("overrides", {}), setting.get("tune", {}))
                cells.setdefault((name, column), []).append(Run(task["recipe"], tuned, seed, root))
    return cells


def _checked(path: Path, setting: str, recipe: str, fields: tuple[tuple[str, str], ...]) -> tuple[tuple[str, Any], ...]:
    """Return overrides with the values that the config has with them, so that 1e-3 and 0.001 are the same run."""
    from vlbert_jax.training.config import parse_command
    from vlbert_jax.weights.stored_config import flat_config

    try:
        command = parse_command(["run", f"--config={recipe}", *(f"--config.{name}={value}" for name, value in fields)])
    except ValueError as error:
        raise ValueError(f"{path}, [settings.{setting!r}], {recipe}: {error}") from error
    values = flat_config(command.config.to_dict())
    return tuple((name, list(v) if isinstance(v := values[name], tuple) else v) for name, _ in fields)
