"""Run a study: train what has no row yet, and write its page, docs/science/STUDY.md.

    python -m experiments.run STUDY [--small | --real] [--jobs=N] [--slurm] [--table] [--flag=--config.FIELD=VALUE ...]

STUDY is a file of experiments/studies without its suffix, or the path of such a file; experiments/declaration.py
describes the fields. Each training is a documented command in a workdir below --workdirs. Its row is added to
experiments/results/STUDY.jsonl as soon as it ends, with its scores, commit, machine, duration and command. A run that
has a row is not repeated, and one that was interrupted continues from its workdir. Several trainings at a time
(--jobs) share the machine.

--slurm submits the same runs to SLURM as an array; each task has a share of the pre-trainings with their fine-tunings.
A last job, or this command, collects the rows. --table trains nothing and writes the page from the rows that exist.
--real runs the form for real data, which has other recipes and sizes; its tables (data_prep/README.md) are in
--data_dir, and BERT and the detector's ResNet where its fields init.bert and init.resnet say. --flag adds an override
to every command, such as another name of a table. Its rows are different runs, so the tables are printed and the page
stays as it is.

Exit status: 0; 2 after an error, which one line explains; 130 after Ctrl-C and 143 after SIGTERM, with all progress
saved. The same command then continues.

Examples:
  python -m experiments.run ablation --small
  python -m experiments.run ablation --jobs=4
  python -m experiments.run ablation --slurm --sbatch=--gpus=1 --tasks=16
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.runs import ROOT
from experiments import jobs, page, plots, rows
from experiments.declaration import STUDIES, declared_forms, study_path
from experiments.study import Study, read_study
from vlbert_jax.command import run_command
from vlbert_jax.files import atomic_write, user_file

WORKDIRS, DATA_DIR = ROOT / "workdirs/experiments", ROOT / "data"
RESULTS, PAGES = ROOT / "experiments/results", ROOT / "docs/science"


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        "python -m experiments.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", metavar="STUDY")
    forms = parser.add_mutually_exclusive_group()
    for form, what in dict(small="run the small form of the study", real="run the form for real data").items():
        forms.add_argument(f"--{form}", action="store_const", dest="form", const=form, default="full", help=what)
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="trainings at a time (%(default)s)")
    parser.add_argument("--table", action="store_true", help="write the page from the rows that exist; train nothing")
    parser.add_argument("--flag", action="append", default=[], metavar="--config.FIELD=VALUE", help="for every command")
    parser.add_argument("--slurm", action="store_true", help="submit the runs to SLURM")
    parser.add_argument("--tasks", type=positive, default=8, metavar="N", help="with --slurm, shares (%(default)s)")
    parser.add_argument("--sbatch", action="append", default=[], metavar="OPTION", help="with --slurm, for sbatch")
    parser.add_argument("--shard", type=shard, default=(0, 1), metavar="I/N", help="train this share; add no rows")
    parser.add_argument("--workdirs", type=user_file, default=WORKDIRS, metavar="DIR")
    parser.add_argument("--data_dir", type=user_file, default=DATA_DIR, metavar="DIR")
    parser.add_argument("--results", type=user_file, default=RESULTS, metavar="DIR")
    parser.add_argument("--pages", type=user_file, default=PAGES, metavar="DIR")
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """Return a whole number from 1 on; raise ArgumentTypeError for another value."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def shard(text: str) -> tuple[int, int]:
    """Return I and N of I/N; raise ArgumentTypeError for another value."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I below N")
    return int(index), int(count)


def run(args: argparse.Namespace) -> None:
    """Do what the command line asks for; see the docstring of the module."""
    path = study_path(args.study)
    shipped = STUDIES / path.name
    if shipped.exists() and not shipped.samefile(path) and (args.results == RESULTS or args.pages == PAGES):
        raise ValueError(f"{path} has the name of the study {shipped}, whose results and page it would overwrite; "
                         "rename it, or give --results=DIR and --pages=DIR")  # fmt: skip
    study = read_study(path, args.form, args.flag)
    results = args.results / f"{study.name}.jsonl"
    done = rows.read_rows(results)
    writes_page = not args.flag and args.shard[1] == 1
    if writes_page:
        plots.require_matplotlib()  # before hours of training
    trainer = jobs.Trainer(args.workdirs, args.data_dir)
    if not args.table:
        for folder in (args.workdirs, args.results, *([args.pages] if writes_page else [])):
            folder.mkdir(parents=True, exist_ok=True)  # an error comes before hours of training
        build_corpora(study, args.flag, args.data_dir)
    if args.slurm:
        submit(args)
        return
    collect(study, trainer, results if args.shard[1] == 1 else None, done)
    if not args.table:
        train_missing(study, args, trainer, results, done)
    if writes_page:
        write_page(path, done, args.pages)
    if args.shard[1] == 1:
        print(*page.score_table(study, done), "", *page.claim_table(study, done), sep="\n")


def build_corpora(study: Study, flags: Sequence[str], data_dir: Path) -> None:
    """Make the synthetic corpora that the runs read; two trainings at a time would both make them."""
    from data_prep.build import draw_missing
    from vlbert_jax.training.config import parse_command

    recipes = {str(recipe): recipe for run in study.runs() for recipe in [(run.recipe, run.overrides)]}
    for _, (recipe, overrides) in sorted(recipes.items()):
        fields = [f"--config.{name}={tuple(v) if isinstance(v, list) else v}" for name, v in overrides]
        data = parse_command(["run", f"--config={recipe}", *fields]).config.data
        if data.embedded:
            draw_missing(data.embedded, dict(data) | dict(data_dir=str(data_dir)))


def collect(study: Study, trainer: jobs.Trainer, results: Path | None, done: rows.Rows) -> None:
    """Add the rows of runs that have ended without a row: those of shares, of other studies, of a killed runner.

    A share adds them to `done` alone (`results` is None), so that it does not repeat such runs.
    """
    for run in study.runs():
        if run.key not in done and (row := rows.row_in_workdir(trainer.workdir(run), run)):
            if results:
                rows.add_row(results, row)
            done[run.key] = row


def train_missing(
    study: Study, args: argparse.Namespace, trainer: jobs.Trainer, results: Path, done: rows.Rows
) -> None:
    """Train the runs without a row; raise ValueError if some failed, after all others have ended."""
    index, count = args.shard
    mine = [run for number, unit in enumerate(jobs.units(study.runs())) if number % count == index for run in unit]
    chosen = [run for run in study.runs() if run in mine]
    todo = jobs.missing(chosen, done, trainer)
    print(f"{study.name}: {len(todo)} of {len(chosen)} trainings to run", file=sys.stderr, flush=True)

    def store(run, row):
        if count == 1 and run.key not in done:
            rows.add_row(results, row)
        done.setdefault(run.key, row)

    if errors := jobs.train_all(todo, trainer, args.jobs, store):
        remedy = "correct the cause, and the same command trains them"
        raise ValueError(f"{len(errors)} of {len(todo)} trainings failed; {remedy}. The first: {errors[0]}")


def write_page(path: Path, done: rows.Rows, pages: Path) -> None:
    """Write the page of a study and the plots of its forms."""
    forms = [read_study(path, form) for form in declared_forms(path)]
    text = page.page_text(forms, done, jobs.Trainer(WORKDIRS, DATA_DIR).shown_command)
    with atomic_write(pages / f"{forms[0].name}.md") as file:
        file.write_text(text, encoding="utf-8")
    for form in forms:
        if page.plotted_scores(form, done):
            plots.write_plot(form, done, pages / page.plot_name(form))
    print(pages / f"{forms[0].name}.md", end="\n\n")


def submit(args: argparse.Namespace) -> None:
    """Submit the runs to SLURM; raise ValueError if that fails."""
    study = os.path.abspath(args.study) if args.study.endswith(".toml") else args.study
    form = [f"--{args.form}"] if args.form != "full" else []
    again = [study, *form, f"--jobs={args.jobs}", *(f"--flag={flag}" for flag in args.flag)]
    folders = [f"--{name}={getattr(args, name).absolute()}" for name in ("workdirs", "data_dir", "results", "pages")]
    options = [f"--tasks={args.tasks}", *(f"--sbatch={option}" for option in args.sbatch), f"--python={sys.executable}"]
    script = [str(ROOT / "launch/slurm_array.sbatch"), *options, "--", "experiments", *again, *folders]
    if status := subprocess.run(script, cwd=ROOT).returncode:
        raise ValueError(f"launch/slurm_array.sbatch ended with status {status}; its message is above")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
