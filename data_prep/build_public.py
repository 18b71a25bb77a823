"""The commands of `data_prep.build` for public tasks whose images have a table of the common form.

They import the builders when they are called, as build.py does."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING, Any

from data_prep.build_options import listed, workers_of
from data_prep.manifest import SourceError
from data_prep.tables import only_builder

if TYPE_CHECKING:
    from data_prep.public_texts import Corpus


def _build(args: argparse.Namespace, source: Corpus) -> pathlib.Path:
    """Build the tables of a task and return the path of its answers or labels, without suffix."""
    from data_prep.public_texts import run_public

    run_public(
        source, args.corpus, args.data_dir, args.regions, args.detector, args.features, not args.no_images,
        args.num_threads, args.drop_missing, workers_of(args), args.classes,
    )  # fmt: skip
    return pathlib.Path(args.data_dir) / source.name / args.corpus


def _nlvr2(args: argparse.Namespace) -> None:
    from data_prep.nlvr2 import NLVR2

    _build(args, NLVR2(args.source, listed(args.splits)))


def _snli_ve(args: argparse.Namespace) -> None:
    from data_prep.snli_ve import SNLIVE

    _build(args, SNLIVE(args.source, listed(args.splits)))


def _hateful_memes(args: argparse.Namespace) -> None:
    from data_prep.hateful_memes import HatefulMemes

    _build(args, HatefulMemes(args.source, listed(args.splits)))


def _retrieval(args: argparse.Namespace) -> None:
    from data_prep.retrieval import Retrieval

    args.corpus = args.corpus or args.dataset
    _build(args, Retrieval(args.source, args.dataset, listed(args.splits)))


def _entities(args: argparse.Namespace) -> None:
    from data_prep.entities import Entities

    _build(args, Entities(args.source, listed(args.splits)))


def _visual7w(args: argparse.Namespace) -> None:
    from data_prep.visual7w import Visual7W

    _build(args, Visual7W(args.source, listed(args.splits)))


def _gqa(args: argparse.Namespace) -> None:
    from data_prep.gqa import GQA, write_answers

    source = GQA(args.source, listed(args.splits))
    path = _build(args, source)
    write_answers(source, path.with_name(f"{path.name}_answers.json"), args.answers)


def _with_vocabulary(args: argparse.Namespace, source: Corpus) -> None:
    """Build a task in the form of VQA and the vocabulary of `--answers` entries."""
    from data_prep.public_texts import write_once
    from data_prep.vqa_files import Question, covered_answers, frequent_answers

    if args.answers and args.answers < 2:
        raise SourceError(f"--answers={args.answers} leaves no answer except <unk>")
    if args.answers and "train" not in source.splits:
        raise SourceError("--answers counts the answers of the train split, which is not built; add it to --splits")
    path = _build(args, source)
    path = path.with_name(f"{path.name}_answers.txt")
    if not args.answers:
        print(f"{path}: not written, because --answers is not given")
        return

    def asked(split: str) -> list[Question]:
        fields: list[dict[str, Any]] = [example.fields for example in source.examples(split)]
        return [Question(0, 0, "", tuple(one["answers"])) for one in fields if one["answers"]]

    answers = frequent_answers(asked("train"), args.answers)
    write_once(path, "".join(f"{answer}\n" for answer in answers))
    for split in source.splits:
        if questions := asked(split):
            share, usable = covered_answers(questions, answers)
            print(f"{path}: {share:.1%} of the answers of {split}; {usable:.1%} of its questions have one")


def _vizwiz(args: argparse.Namespace) -> None:
    from data_prep.vizwiz import VizWiz

    _with_vocabulary(args, VizWiz(args.source, listed(args.splits)))


def _ok_vqa(args: argparse.Namespace) -> None:
    from data_prep.ok_vqa import OKVQA

    _with_vocabulary(args, OKVQA(args.source, listed(args.splits)))


_COMMANDS = dict(
    nlvr2=_nlvr2, snli_ve=_snli_ve, hateful_memes=_hateful_memes, retrieval=_retrieval, gqa=_gqa, vizwiz=_vizwiz,
    ok_vqa=_ok_vqa, entities=_entities, visual7w=_visual7w,
)  # fmt: skip


def run_command(args: argparse.Namespace) -> None:
    """Run the command `args.name`. Raises SourceError."""
    with only_builder(pathlib.Path(args.data_dir), workers_of(args)):
        _COMMANDS[args.name](args)


COMMANDS = dict.fromkeys(_COMMANDS, run_command)
