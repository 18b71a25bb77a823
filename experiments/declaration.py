"""Read and check the files of experiments/studies, in each of their forms.

A file STUDY.toml has these tables:

    title, about           heading and introduction of the page
    [pretrain]             recipe (a name, or the path of a file); overrides (fields of its config, but for those that
                           the study sets: `study.OF_STUDY`); scores (column of the table -> metric)
    [probe]                every pre-training is probed (--mode=probe): scores (column -> number in probes.json, as
                           visual_words.aligned.accuracy)
    [tasks.NAME]           fine-tuned after every pre-training: recipe, score (a metric), overrides
    [settings.NAME]        a row of the table: about, seeds (their number), pretrain and tune (overrides of
                           the pre-training and of each fine-tuning), recipe (of its pre-training, if it is another),
                           scratch (true = no pre-training), tune_seeds (number of seeds with which every pre-training
                           is fine-tuned; without it, a fine-tuning has the seed of its pre-training)
    [[claims]]             what the study tests: text, paper (its figures), score (a column), better, worse (settings),
                           than (the column of the worse one, if it is another)
    [plot]                 x (what the horizontal axis shows), positions and lines: setting -> its place, above 0, and
                           its line
    [curves]               instead, of probes: x, and panels: title -> level on the axis -> number in probes.json;
                           a line joins the levels up to "all"
    [heat]                 instead, of probes: values and chance, numbers in probes.json; one map for each setting
    [small]                a form that ends soon: settings and tasks (names that it keeps), seeds, and `replace`, whose
                           tables replace fields of the study
    [real]                 the same for real data, where `replace` has other recipes and sizes; optional
"""

from __future__ import annotations

import copy
import difflib
import math
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
    "settings": dict(about=str, seeds=int, tune_seeds=int, recipe=str, pretrain=dict, tune=dict, scratch=bool),
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


def read_declaration(path: Path, form: str) -> dict[str, Any]:
    """Return the tables of a study in one of its `FORMS`.

    Raises:
        ValueError: The file is wrong; the message names the file and the field.
    """
    content = _read(path)
    _check(content, path)
    if form != "full":
        if form not in content:
            raise ValueError(f"{path} has no table [{form}], which declares this form; add it, or run another form")
        content = _reduced(content, form, path)
    groups = declared_scores(content)
    columns: set[str] = set()
    for group, scores in groups.items():
        if both := columns & set(scores):
            earlier = next(name for name, others in groups.items() if min(both) in others)
            raise ValueError(f"{path}: {min(both)!r} is in {earlier} and in {group}; rename one of them")
        columns |= set(scores)
    if not columns:
        raise ValueError(f"{path}: {', '.join(groups)} are empty; name at least one score")
    return content


def declared_scores(content: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return column -> metric of the pre-training, of its probes and of the tasks, by where they are declared."""
    tasks = {name: task["score"] for name, task in content.get("tasks", {}).items()}
    probes = content.get("probe", {}).get("scores", {})
    return {"pretrain.scores": content["pretrain"]["scores"], "probe.scores": probes, "tasks": tasks}


def _check(content: dict[str, Any], path: Path | str) -> None:
    """Raise ValueError for a field that is unknown, missing or of another type, and for a name that does not exist.

    Messages begin with `path`, which may say of which table some of the content is.
    """
    _check_fields(content, "", str(path))
    _check_fields(content["pretrain"], "pretrain", f"{path}, [pretrain]")
    for kind in {"small", "real", "probe", "curves", "heat"} & set(content):
        _check_fields(content[kind], kind, f"{path}, [{kind}]")
    figures = [name for name in ("plot", "curves", "heat") if name in content]
    if len(figures) > 1:
        raise ValueError(f"{path}: [{figures[0]}] and [{figures[1]}] are figures, of which a study has one; remove one")
    if figures and figures != ["plot"] and "probe" not in content:
        raise ValueError(f"{path}: [{figures[0]}] draws numbers of probes; add [probe]")
    _check_texts(content["pretrain"]["scores"], f"{path}, [pretrain.scores]")
    if "probe" in content:
        _check_texts(content["probe"]["scores"], f"{path}, [probe.scores]", may_be_empty=False)
    if "curves" in content:
        panels = content["curves"]["panels"]
        for title, levels in panels.items():
            _check_texts(levels, f"{path}, [curves.panels.{title!r}]", may_be_empty=False)
        if not panels:
            raise ValueError(f"{path}, [curves.panels] is empty; add a panel")
    for kind in ("tasks", "settings"):
        for name, table in content.get(kind, {}).items():
            _check_fields(table, kind, f"{path}, [{kind}.{name!r}]")
    for name in [*content["settings"], *(name for scores in declared_scores(content).values() for name in scores)]:
        if not name.strip() or not name.isprintable():
            raise ValueError(f"{path}: the name {name!r} is empty or has a line break; choose another one")
    for name, setting in content["settings"].items():
        for field in {"seeds", "tune_seeds"} & set(setting):
            if setting[field] < 1:
                raise ValueError(f"{path}, [settings.{name!r}]: {field} is {setting[field]}; it must be 1 or more")
        if setting.get("scratch") and setting.get("pretrain"):
            raise ValueError(f"{path}, [settings.{name!r}] has no pre-training; remove scratch or pretrain")
        if setting.get("scratch") and "tune_seeds" in setting:
            raise ValueError(f"{path}, [settings.{name!r}] has no pre-training; use seeds in place of tune_seeds")
    columns = [column for scores in declared_scores(content).values() for column in scores]
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
        _check_texts(content["plot"]["lines"], f"{path}, [plot.lines]")
        for name, place in content["plot"]["positions"].items():  # the axis is logarithmic
            if isinstance(place, bool) or not isinstance(place, int | float) or not 0 < place < math.inf:
                raise ValueError(f"{path}, [plot.positions]: {name} is {place!r}; it must be a number above 0")


def _check_texts(table: Any, place: str, may_be_empty: bool = True) -> None:
    if not isinstance(table, dict) or not (table or may_be_empty):
        raise ValueError(f"{place} is {table!r}; it must be a table with texts")
    for name, value in table.items():
        if not isinstance(value, str):
            raise ValueError(f"{place}: {name} is {value!r}; it must be a text")


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
    for kind in ("settings", "tasks"):
        replaced = chosen.get("replace", {}).get(kind, {})
        for name in replaced if isinstance(replaced, dict) else ():
            _check_name(name, [*content.get(kind, {})], f"{path}, [{form}.replace.{kind}]")
    content = _merged(content, chosen.get("replace", {}))
    _check(content, f"{path} with [{form}.replace]")
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
    columns = {column for scores in declared_scores(content).values() for column in scores}
    content["claims"] = [
        claim for claim in content.get("claims", ())
        if {claim["score"], claim.get("than", claim["score"])} <= columns
        and {claim["better"], claim["worse"]} <= set(content["settings"])
    ]  # fmt: skip
    _check(content, f"{path}, [{form}]")
    return content


def _merged(table: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a table with the fields of another one; tables inside are merged too."""
    merged = copy.deepcopy(dict(table))
    for name, value in other.items():
        inside = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if inside else copy.deepcopy(value)
    return merged
