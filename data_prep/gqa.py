"""The files of GQA: compositional questions with one answer, about images of Visual Genome and COCO.

Source: https://cs.stanford.edu/people/dorarad/gqa (CC BY 4.0): questions1.2.zip, images.zip and, for validity and
plausibility, val_choices.json of eval.zip. The folder `--source`:

    {train,val,testdev,test,challenge}_balanced_questions.json     the splits train, val, ...
    {train,val,testdev,test,challenge}_all_questions.json          the splits train_all, val_all, ...
    submission_all_questions.json                                  the split submission: all questions to submit
    val_choices.json                                               or eval/val_choices.json; optional
    images/2375429.jpg                                             or images.zip

    python -m data_prep.build gqa --source=gqa --regions=gqa/regions --features --data_dir=data

A file may be a folder with parts, such as train_all_questions/train_all_questions_0.json. Without --splits the balanced
splits are built whose file exists: train has about 943,000 questions, val 132,062, testdev 12,578. train_all has 14.3
million. Consistency requires answers to all questions, that is the split val_all. A file is read three times, in 0.3 GB
of memory for 100,000 questions (a folder: of its largest part); 100,000 questions take half a minute.

The one answer of a question is stored ten times, as if annotators agreed, so that the score of a right answer is 1.
`extra` has, for val and testdev, the fields of the question that the official scores read, and its choices.

`CORPUS_answers.json`, next to the records, lists the answers of train and val by frequency, or the first N of
`--answers=N`. The list of LXMERT with 1,842 answers of both comes with the package (`lxmert_gqa.json`)."""

from __future__ import annotations

import collections
import json
import pathlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from data_prep.json_lines import chosen_splits, field, read_json
from data_prep.manifest import SourceError, described
from data_prep.public_texts import Corpus, PublicExample, image_prefix, write_once

PARTS = ("train", "val", "testdev", "test", "challenge")
# split -> name of the file or folder without suffix
FILES = {part: f"{part}_balanced_questions" for part in PARTS}
FILES |= {f"{part}_all": f"{part}_all_questions" for part in PARTS} | dict(submission="submission_all_questions")
SCORED = ("val", "testdev", "val_all", "testdev_all")
LISTS = ("semantic", "entailed")  # fields that the scores read: steps, and identifiers of questions
ANNOTATORS = 10  # copies of the one answer


def _slim(entry: dict[str, Any]) -> dict[str, Any]:
    """Drop what is neither shown to the model nor scored; a step of a program keeps what is counted."""
    if "imageId" in entry:
        for name in ("annotations", "fullAnswer", "semanticStr", "equivalent"):
            entry.pop(name, None)
        if type(entry.get("answer")) is str:
            entry["answer"] = sys.intern(entry["answer"])
    elif "dependencies" in entry:
        del entry["dependencies"]
    return entry


class _Lists(dict[tuple[str, ...], tuple[str, ...]]):
    """Lists of choices, each stored once: millions of questions share some thousands."""

    def hook(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Replace the two lists of a question."""
        for name in ("valid", "plausible"):
            if isinstance(entry.get(name), list):
                choices = tuple(map(sys.intern, map(str, entry[name])))
                entry[name] = self.setdefault(choices, choices)
        return entry


class GQA(Corpus):
    """The reader of GQA."""

    name, kind = "gqa", "answer"

    def __init__(self, source: str | pathlib.Path, splits: Iterable[str] = ()):
        self.root = pathlib.Path(source)
        usual = list(splits) or [split for split in PARTS if self._file(split).exists()]
        super().__init__(source, chosen_splits(usual, FILES, self._file))

    def _file(self, split: str) -> pathlib.Path:
        file = self.root / f"{FILES[split]}.json"
        folder = file.with_suffix("")
        return folder if folder.is_dir() and not file.exists() else file

    def _choices(self, split: str) -> pathlib.Path:
        name = f"{split.removesuffix('_all')}_choices.json"
        return next((path for path in (self.root / name, self.root / "eval" / name) if path.exists()), self.root / name)

    def files(self) -> list[pathlib.Path]:
        """Return the files or folders of the splits, and those of choices that exist."""
        choices = dict.fromkeys(self._choices(split) for split in self.splits if split in SCORED)
        return [*(self._file(split) for split in self.splits), *(path for path in choices if path.exists())]

    def _questions(self, split: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yield identifier, place and question. Raises SourceError."""
        file = self._file(split)
        parts = sorted(file.glob("*.json"), key=lambda part: (len(part.name), part.name)) if file.is_dir() else [file]
        if not parts:
            raise SourceError(f"{file}: the folder has no .json; download questions1.2.zip again")
        for part in parts:
            for name, question in read_json(part, dict, _slim).items():
                place = f"{part}, question {name}"
                if not isinstance(question, dict):
                    raise SourceError(f"{place} is {described(question)}, not an object; download the file again")
                yield name, place, question

    def places(self, split: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """Yield name, place and image of each question; the choices are not read. Raises SourceError."""
        prefix = image_prefix(self.root, "images")
        for name, place, question in self._questions(split):
            yield name, place, (f"{prefix}{field(question, 'imageId', str, place)}.jpg",)

    def examples(self, split: str) -> Iterator[PublicExample]:
        """Yield the questions of a split. Raises SourceError."""
        path, prefix = self._choices(split), image_prefix(self.root, "images")
        choices = read_json(path, dict, _Lists().hook) if split in SCORED and path.exists() else {}
        for index, (name, place, question) in enumerate(self._questions(split)):
            answer = field(question, "answer", str, place) if "answer" in question else None
            is_scored = split in SCORED and answer is not None
            listed = self._listed(choices[name], f"{path}, question {name}") if is_scored and name in choices else {}
            extra = json.dumps(self._extra(question, place) | listed) if is_scored else ""
            fields = dict(
                question_id=int(name) if name.isdecimal() and len(name) < 19 else index,  # of 64 bits
                question=field(question, "question", str, place), answer_type=self._answer_type(question, place),
                answers=[answer] * ANNOTATORS if answer is not None else [], extra=extra,
            )  # fmt: skip
            image = f"{prefix}{field(question, 'imageId', str, place)}.jpg"
            yield PublicExample(name, place, (image,), fields)

    def _answer_type(self, question: dict[str, Any], place: str) -> str:
        types = field(question, "types", dict, place) if "types" in question else {}
        return field(types, "structural", str, place) if "structural" in types else ""

    def _listed(self, choices: Any, place: str) -> dict[str, Any]:
        """Return the choices of a question. Raises SourceError."""
        return dict(choices={name: field(choices, name, tuple, place) for name in ("valid", "plausible")})

    def _extra(self, question: dict[str, Any], place: str) -> dict[str, Any]:
        """Return what the official scores read other than question, answer and choices. Raises SourceError."""
        types, groups = (field(question, name, dict, place) for name in ("types", "groups"))
        semantic, entailed, group = *(field(question, name, list, place) for name in LISTS), groups.get("global")
        for step in semantic:
            for name in ("operation", "argument"):
                field(step, name, str, f"{place}, semantic")
        if not all(isinstance(name, str) for name in entailed) or not isinstance(group, str | None):
            raise SourceError(f"{place}: groups or entailed have an entry that is not a text; download the file again")
        return dict(
            isBalanced=field(question, "isBalanced", bool, place),
            types={name: field(types, name, str, place) for name in ("detailed", "semantic", "structural")},
            groups={"global": group},
            entailed=entailed,
            semantic=semantic,
        )


def write_answers(corpus: GQA, path: pathlib.Path, size: int = 0) -> None:
    """Write the answers of train and val by frequency, ties in alphabetical order, and print their number.

    Args:
      corpus: the questions; without a split of train or val nothing is written.
      path: the file to write, a JSON list.
      size: largest number of answers; 0 = all.

    Raises:
      SourceError: the file exists with other answers.
    """
    splits = [split for split in corpus.splits if split.removesuffix("_all") in ("train", "val")]
    counts = collections.Counter(
        field(question, "answer", str, place)
        for split in splits for _, place, question in corpus._questions(split) if "answer" in question
    )
    if not counts:
        print(f"{path}: not written, because no split of train or val is built")
        return
    answers = sorted(counts, key=lambda answer: (-counts[answer], answer))[: size or None]
    share = sum(counts[answer] for answer in answers) / counts.total()
    write_once(path, json.dumps(answers, ensure_ascii=False, indent=0) + "\n")
    print(f"{path}: {len(answers):,} answers, which cover {share:.1%} of the questions of {', '.join(splits)}")
