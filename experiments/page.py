"""The page of a study in docs/science: its tables, made of the rows of the results alone, and its commands."""

from __future__ import annotations

import statistics
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence

from experiments.compare import paired, shown_difference, shown_mean, shown_spread, spread
from experiments.rows import Rows, check_metric, score_of
from experiments.study import Run, Study

HEADINGS = {"small": "The small form", "full": "The full form", "real": "The form for real data"}
WIDTH = 118


def scores_of_cell(study: Study, setting: str, column: str, rows: Rows) -> dict[tuple[int, int], float]:
    """Return (seed of the pre-training, seed) -> score of a cell of the table, for the runs that have a row."""
    cell = study.cells.get((setting, column), ())
    found = [(run, score_of(rows[run.key], study.columns[column])) for run in cell if run.key in rows]
    return {((run.after or run).seed, run.seed): score for run, score in found if score is not None}


def scores_by_seed(study: Study, setting: str, column: str, rows: Rows) -> dict[int, float]:
    """Return seed of the pre-training -> score of a cell; of several fine-tunings of a pre-training, their mean.

    Fine-tunings of one pre-training are not independent samples of the setting.
    """
    return {seed: statistics.fmean(scores) for seed, scores in scores_by_start(study, setting, column, rows).items()}


def scores_by_start(study: Study, setting: str, column: str, rows: Rows) -> dict[int, list[float]]:
    """Return seed of the pre-training -> scores of a cell, of all seeds of fine-tuning."""
    found: dict[int, list[float]] = {}
    for (start, _), score in scores_of_cell(study, setting, column, rows).items():
        found.setdefault(start, []).append(score)
    return found


def score_table(study: Study, rows: Rows) -> list[str]:
    """Return the lines of the table of means, standard deviations and numbers of seeds.

    Raises:
        ValueError: A metric of the study is in no row.
    """
    for column, metric in study.columns.items():
        check_metric(rows, [run for (_, name), cell in study.cells.items() if name == column for run in cell],
                     column, metric)  # fmt: skip
    cells = [
        [setting, *(shown_mean(scores_by_seed(study, setting, column, rows)) for column in study.columns)]
        for setting in study.settings
    ]
    return table(["setting", *study.columns], cells)


def claim_table(study: Study, rows: Rows) -> list[str]:
    """Return the lines of the table of claims, each with its paired difference and the verdict."""
    lines = []
    for claim in study.claims:
        worse = claim.than or claim.score
        better, other = (scores_by_seed(study, *cell, rows) for cell in
                         ((claim.better, claim.score), (claim.worse, worse)))  # fmt: skip
        difference = paired(better, other)
        compared = f"{claim.better} − {claim.worse}, {claim.score}"
        if claim.than:
            compared = f"{claim.better}, {claim.score} − {claim.worse}, {claim.than}"
        found = [*shown_difference(difference), str(difference.pairs), difference.verdict()]
        lines.append([claim.text, claim.paper or "–", compared, *found])
    return table(["claim", "paper", "compared", "difference", "p", "pairs", "verdict"], lines)


def spread_table(study: Study, rows: Rows) -> list[str]:
    """Return the lines of the table of spreads; empty where no pre-training is fine-tuned with several seeds."""
    lines = []
    for (setting, column), cell in study.cells.items():
        if len(cell) > len({(run.after or run).seed for run in cell}):
            found = scores_by_start(study, setting, column, rows)
            lines.append([setting, column, *shown_spread(spread(found))])
    head = ["setting", "score", "of fine-tunings", "of means of pre-trainings", "due to pre-training"]
    return table(head, lines) if lines else []


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; a line break in a cell becomes a space, and `|` is escaped."""

    def row(cells: Sequence[str]) -> str:
        return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"

    return [row(cells) for cells in (head, ["---"] * len(head), *lines)]


def page_text(forms: Sequence[Study], rows: Rows, command_of: Callable[[Run], str]) -> str:
    """Return the page of a study.

    Args:
        forms: The study in each of its forms.
        rows: The rows of its results.
        command_of: Returns the command of a run.
    """
    study = next(form for form in forms if form.form == "full")
    run = f"python -m experiments.run {study.name}"
    lines = [
        f"# {study.title}", "", study.about, "",
        *paragraph(
            f"This page is written by `{run}` from `experiments/results/{study.name}.jsonl`; do not edit it. The study "
            f"is declared in `experiments/studies/{study.name}.toml`. [The first page](index.md) says how to read the "
            "tables."
        ),
        "", "| setting | what it is |", "|---|---|",
        *table((), list(study.settings.items()))[2:], "",
        "```", f"{run} --small   # the small form", f"{run}           # the full form",
        *([f"{run} --real    # on real data"] if len(forms) > 2 else []), "```", "",
    ]  # fmt: skip
    for form in forms:
        changed = [[name, about] for name, about in form.settings.items() if about != study.settings[name]]
        about = [*table(["setting", "what it is in this form"], changed), ""] if changed else []
        lines += [f"## {HEADINGS[form.form]}", "", *about, *_form(form, rows), ""]
    declared = {run.key for form in forms for run in form.runs()}
    if others := len(set(rows) - declared):
        lines += [f"The file of results has {others} further rows of other settings, which no table above uses.", ""]
    lines += ["## Commands", ""]
    for form in forms:
        lines += [f"{HEADINGS[form.form]}, first seed; the others differ in `config.seed` and the workdirs:", "", "```"]
        labels: dict[str, str] = {}
        for (setting, column), (first, *_) in form.cells.items():
            if first.after:
                labels.setdefault(first.after.key, f"# {setting}: pre-training")
            what = "probes" if first.mode == "probe" else column if column in form.tasks else "pre-training"
            labels.setdefault(first.key, f"# {setting}: {what}")
        for one in (run for run in form.runs() if run.key in labels):
            lines += [labels[one.key], *wrapped(command_of(one))]
        lines += ["```", ""]
    return "\n".join(lines).rstrip() + "\n"


def _form(study: Study, rows: Rows) -> list[str]:
    runs = study.runs()
    found = [rows[run.key] for run in runs if run.key in rows]
    if not found:
        return [f"This form has not been run: none of its {len(runs)} {_kinds(study)} has a row."]
    incomplete = "" if len(found) == len(runs) else " The form is incomplete."
    hours = sum(row["seconds"] for row in found) / 3600
    lines = [
        f"{len(found)} of {len(runs)} {_kinds(study)} have a row.{incomplete} Cells are mean ± standard deviation over "
        "seeds (number of seeds), on the validation split at the end of the run.", "",
        *score_table(study, rows), "",
    ]  # fmt: skip
    if spreads := spread_table(study, rows):
        lines += [
            "Pre-trainings of the settings below are fine-tuned with several seeds. A cell above is over "
            "pre-trainings, each with the mean of its fine-tunings. The next table has three standard deviations: "
            "of the fine-tunings of one pre-training (pooled), of these means, and of the part of the means that "
            "fine-tuning does not explain.",
            "", *spreads, "",
        ]  # fmt: skip
    if plotted_scores(study, rows):
        lines += [f"![Scores of each setting and seed]({plot_name(study)})", ""]
    if study.claims:
        lines += [
            "Differences are paired by seed: mean ± standard error, with the p-value of the two-sided paired t-test, "
            "not corrected for the number of claims.", "", *claim_table(study, rows), "",
        ]  # fmt: skip
    commits, machines = Counter(shown_commit(row["commit"]) for row in found), Counter(row["machine"] for row in found)
    listed = "; ".join(", ".join(f"{name} ({n} rows)" for name, n in sorted(c.items())) for c in (machines, commits))
    continued = sum(row["continued"] for row in found)
    loads = [row["load"] for row in found]
    lines.append(
        f"Machines and commits: {listed}. The {_kinds(study)} took {hours:.2f} hours in all, at a load of "
        f"{min(loads)} to {max(loads)}."
        + (f" {continued} of them were continued; only their last start is counted." * bool(continued))
    )
    return [part for line in lines for part in (paragraph(line) if line[:1].isalnum() else [line])]


def _kinds(study: Study) -> str:
    return "trainings and probes" if study.probes else "trainings"


def paragraph(text: str) -> list[str]:
    """Return the lines of a paragraph; a hyphen ends no line, since Markdown would add a space to it."""
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)


def shown_commit(commit: str | None) -> str:
    """Return a commit with twelve digits; a checkout with changes keeps its mark."""
    name, mark, _ = (commit or "no checkout").partition("-dirty")
    return name[:12] + mark


def plotted_scores(study: Study, rows: Rows) -> dict[str, dict[str, dict[tuple[int, int], float]]]:
    """Return column -> setting -> seeds -> score of the panels of the plot that have a score.

    The seeds are those of the pre-training and of the run.
    """
    panels = {}
    if study.figure:
        return probed_scores(study, rows)
    for column in study.tasks if study.plot else study.columns:
        found = {setting: scores_of_cell(study, setting, column, rows) for setting in study.settings}
        if found := {setting: scores for setting, scores in found.items() if scores}:
            panels[column] = found
    return panels


def probed_scores(study: Study, rows: Rows) -> dict[str, dict[str, dict[tuple[int, int], float]]]:
    """Return number of the probes -> setting -> seeds -> value, for the settings and seeds that have a row."""
    found: dict[str, dict[str, dict[tuple[int, int], float]]] = {}
    for setting in study.settings:
        for run in study.cells.get((setting, study.probes[0]), ()):
            for name, value in rows[run.key]["scores"].items() if run.key in rows else ():
                if value is None:  # it was not finite
                    continue
                found.setdefault(name, {}).setdefault(setting, {})[run.seed, run.seed] = value
    return found


def plot_name(study: Study) -> str:
    """Return the file name of the plot of a form."""
    return f"{study.name}.svg" if study.form == "full" else f"{study.name}_{study.form}.svg"


def wrapped(command: str) -> list[str]:
    """Return a command on several lines that a shell joins."""
    lines = textwrap.wrap(command, WIDTH - 6, break_long_words=False, break_on_hyphens=False)
    return " \\\n    ".join(lines).splitlines()
