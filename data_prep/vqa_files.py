"""The files of VQA v2: questions with their annotations, and the answer vocabulary.

All are checked while they are read. Data that is inconsistent raises SourceError with file,
question and remedy. The docstring of `vqa.py` describes the layout of a download and how the answer
vocabulary is made."""

from __future__ import annotations

import collections
import pathlib
import re
import sys
from collections.abc import Iterable
from typing import NamedTuple

from tqdm import tqdm

from data_prep.manifest import SourceError, described, is_stored
from vlbert_jax.files import atomic_write, parse_json
from vlbert_jax.storage.mirror import fetch_file, store_file

# split: (part of the name of the question file, image set)
SPLITS = dict(
    train=("train2014", "train2014"),
    val=("val2014", "val2014"),
    test_dev=("test-dev2015", "test2015"),
    test=("test2015", "test2015"),
)
ANNOTATED = ("train", "val")
UNKNOWN = "<unk>"
FORMAT = "data_prep/README.md describes the format"
FEWEST_ANNOTATORS = 4  # the official score compares each annotator with the others: with fewer, none scores 1
# The official code changes these marks in the vocabulary, and full stops not before a digit.
CHANGED = re.compile(r"[;/\[\]\"{}()=+\\_\-><@`,?!\r\n]|\.(?!\d)")


# --- Questions --------------------------------------------------------------------------------


class Question(NamedTuple):
    """A question with its annotation; `answers` and `answer_type` are empty if there is none."""

    question_id: int
    image_id: int
    text: str
    answers: tuple[str, ...] = ()
    answer_type: str = ""


def _slim(entry: dict):
    """Reduce an annotator's answer to its text, stored once: 6.6 million dicts are too many.

    An annotation may also have a field `answer`, and stays as it is.
    """
    answer = entry.get("answer")
    return sys.intern(answer) if type(answer) is str and "question_id" not in entry else entry


def _read_items(path: pathlib.Path, field: str) -> dict[int, dict]:
    """Return the items of the list `field` of a JSON file by question_id. Raises SourceError."""
    try:
        content = parse_json(path.read_bytes(), _slim)
    except ValueError as error:
        raise SourceError(f"{path}: the file is not JSON ({error}); download it again") from None
    if not isinstance(content, dict) or field not in content:
        raise SourceError(f"{path}: the file is {described(content)}, not an object with {field!r}; {FORMAT}")
    if not isinstance(content[field], list):
        raise SourceError(f"{path}: {field!r} is {described(content[field])}, not a list; {FORMAT}")
    found: dict[int, dict] = {}
    for place, item in enumerate(content[field]):
        about = f"{path}: item {place} (from 0) of {field!r}"
        if not isinstance(item, dict):
            raise SourceError(f"{about} is {described(item)}, not an object; {FORMAT}")
        for key in ("question_id", "image_id"):
            if key not in item:
                raise SourceError(f"{about} is {described(item)}, without {key}; {FORMAT}")
            if type(item[key]) is int and not is_stored(item[key]):
                raise SourceError(f"{about}: {key} is {described(item[key])}, which has more than 64 bits; {FORMAT}")
            if type(item[key]) is not int or item[key] < 0:
                raise SourceError(f"{about}: {key} is {described(item[key])}, not an integer from 0; {FORMAT}")
        number = item["question_id"]
        if number in found:
            raise SourceError(f"{path}: question_id {number} occurs twice; keep one of them")
        found[number] = item
    return found


def read_questions(root: pathlib.Path, split: str) -> list[Question]:
    """Return a split in the order of its question file, with annotations. Raises SourceError.

    Args:
      root: folder that contains `vqa/`.
      split: a key of `SPLITS`.
    """
    notes_path = annotation_file(root, split) if split in ANNOTATED else None
    if notes_path is not None and not notes_path.is_file():
        raise SourceError(f"{notes_path}: the file does not exist; download it, or omit {split} from --splits")
    return read_question_files(question_file(root, split), notes_path)


def read_question_files(path: pathlib.Path, notes_path: pathlib.Path | None) -> list[Question]:
    """Return the questions of a file in its order, with annotations. Raises SourceError.

    Args:
      path: the questions.
      notes_path: the annotations; None = none.
    """
    items = _read_items(path, "questions")
    for number, item in items.items():
        if type(item.get("question")) is not str:
            question = described(item["question"]) if "question" in item else "missing"
            raise SourceError(f"{path}: the question of question_id {number} is {question}, not a text; {FORMAT}")
    if notes_path is None:
        return [Question(number, item["image_id"], item["question"]) for number, item in items.items()]
    notes = _read_items(notes_path, "annotations")
    _check_same_numbers(path, items, notes_path, notes)
    return [_join(path, number, item, notes_path, notes[number]) for number, item in items.items()]


def question_file(root: pathlib.Path, split: str) -> pathlib.Path:
    """Return the path of the question file of a split."""
    return root / f"vqa/v2_OpenEnded_mscoco_{SPLITS[split][0]}_questions.json"


def annotation_file(root: pathlib.Path, split: str) -> pathlib.Path:
    """Return the path of the annotations of a split of `ANNOTATED`."""
    return root / f"vqa/v2_mscoco_{SPLITS[split][0]}_annotations.json"


def _check_same_numbers(path: pathlib.Path, items: dict, notes_path: pathlib.Path, notes: dict) -> None:
    for missing, lacking, other in (
        (items.keys() - notes.keys(), notes_path, path),
        (notes.keys() - items.keys(), path, notes_path),
    ):
        if missing:
            raise SourceError(
                f"{lacking}: the file lacks question_id {min(missing)} of {other.name} ({len(missing)} in total); "
                "download both files again, of the same version"
            )


def _join(path: pathlib.Path, number: int, item: dict, notes_path: pathlib.Path, note: dict) -> Question:
    if note["image_id"] != item["image_id"]:
        raise SourceError(
            f"{notes_path}: question_id {number} is about image {note['image_id']}, in {path.name} about "
            f"{item['image_id']}; download both files again"
        )
    answers, answer_type = note.get("answers"), note.get("answer_type")
    about = f"{notes_path}: question_id {number}"
    if not isinstance(answers, list) or not answers:
        found = described(answers) if "answers" in note else f"missing ({', '.join(note)} are there)"
        raise SourceError(f"{about}: answers is {found}, not a list with the answer of each annotator; {FORMAT}")
    if wrong := [answer for answer in answers if type(answer) is not str]:
        raise SourceError(f"{about}: an item of answers is {described(wrong[0])}, without a text as answer; {FORMAT}")
    if type(answer_type) is not str:
        found = described(answer_type) if "answer_type" in note else "missing"
        raise SourceError(f"{about}: answer_type is {found}, not a text such as 'yes/no'; {FORMAT}")
    if len(answers) < FEWEST_ANNOTATORS:
        raise SourceError(
            f"{about} has {len(answers)} of at least {FEWEST_ANNOTATORS} answers: the score "
            "compares each annotator with the others, so no answer could be right; repeat the answers of each question "
            "until there are ten"
        )
    return Question(number, item["image_id"], item["question"], tuple(answers), sys.intern(answer_type))


class VQADownload:
    """All questions of a download, `questions` by split in official order."""

    def __init__(self, source: str | pathlib.Path, splits: Iterable[str] = ()):
        """Read and check the questions.

        Args:
          source: folder that contains `vqa/`.
          splits: keys of `SPLITS`; empty = all whose questions exist.

        Raises:
          SourceError: a split is unknown or a file is missing or wrong.
        """
        self.root = pathlib.Path(source)
        if unknown := [split for split in splits if split not in SPLITS]:
            raise SourceError(f"--splits: there is no split {unknown[0]!r}; choose from {', '.join(SPLITS)}")
        paths = {split: question_file(self.root, split) for split in SPLITS}
        chosen = [split for split in SPLITS if split in splits] or [s for s in SPLITS if paths[s].is_file()]
        for split in chosen or ["train"]:
            if not paths[split].is_file():
                raise SourceError(
                    f"{paths[split]}: the file does not exist; --source must be the folder that contains vqa/"
                )
        with tqdm(chosen, "questions", unit=" splits") as progress:
            self.questions = {split: read_questions(self.root, split) for split in progress}
        if empty := [split for split, questions in self.questions.items() if not questions]:
            path = question_file(self.root, empty[0])
            raise SourceError(f"{path}: there is no question; download it again, or omit {empty[0]} from --splits")

    def files(self) -> list[pathlib.Path]:
        """Return the files of the questions and annotations."""
        annotated = [split for split in self.questions if split in ANNOTATED]
        files = [question_file(self.root, split) for split in self.questions]
        return files + [annotation_file(self.root, split) for split in annotated]

    def images(self) -> dict[int, str]:
        """Return the image set of each image of a question, in order of first appearance.

        Raises SourceError.
        """
        found: dict[int, str] = {}
        for split, questions in self.questions.items():
            image_set = SPLITS[split][1]
            for question in questions:
                if found.setdefault(question.image_id, image_set) != image_set:
                    raise SourceError(
                        f"{split}: image {question.image_id} of question_id {question.question_id} is in both "
                        f"{found[question.image_id]} and {image_set}; use the image numbers of COCO"
                    )
        return found


# --- Answer vocabulary ------------------------------------------------------------------------


def frequent_answers(questions: Iterable[Question], size: int) -> list[str]:
    """Return `<unk>` with the most frequent raw answers that the conversion does not change.

    Args:
      questions: questions with answers.
      size: maximum number of entries, with `<unk>`.
    """
    counts = collections.Counter(answer for question in questions for answer in question.answers)
    usable = [a for a in counts if a and a != UNKNOWN and a == a.lower().strip() and not CHANGED.search(a)]
    return [UNKNOWN, *sorted(usable, key=lambda answer: (-counts[answer], answer))[: size - 1]]


def covered_answers(questions: Iterable[Question], entries: Iterable[str]) -> tuple[float, float]:
    """Return the fraction of the annotators' raw answers that are entries, and of questions with one.

    Entries are in lower case, and those that the punctuation rule changes do not count.
    """
    found, answers, usable, number = set(entries) - {UNKNOWN}, 0, 0, 0
    hits = 0
    for question in questions:
        matches = sum(answer in found for answer in question.answers)
        hits, answers = hits + matches, answers + len(question.answers)
        usable, number = usable + bool(matches), number + 1
    return hits / max(1, answers), usable / max(1, number)


def write_answers(download: VQADownload, path: pathlib.Path, size: int = 0) -> bool:
    """Write the answer vocabulary, and print which share of the annotators' answers it covers.

    Args:
      download: the questions.
      path: the file to write.
      size: number of entries; 0 = copy the official file.

    Returns:
      False if there is neither `size` nor an official file.

    Raises:
      SourceError: the official file cannot be used, `path` has another vocabulary, or no question of
        a split has an answer in the vocabulary.
    """
    official = download.root / "vqa/answers_vqa.txt"
    if size:
        if "train" not in download.questions:
            raise SourceError("--answers counts the answers of the train split, which is not built; add it to --splits")
        answers = frequent_answers(download.questions["train"], size)
        content, origin = "".join(f"{answer}\n" for answer in answers).encode(), f"{len(answers):,} answers"
    elif official.is_file():
        content, origin = official.read_bytes(), f"copied from {official}"
        try:
            answers = [line.strip().lower() for line in content.decode("utf-8").split("\n")]
        except UnicodeDecodeError as error:
            raise SourceError(f"{official}: the text is not UTF-8 ({error}); download it again") from None
        if UNKNOWN not in answers:
            raise SourceError(
                f"{official}: the file lacks the line {UNKNOWN}; download it again, or pass --answers=3129"
            )
        answers = [answer for answer in answers if not CHANGED.search(answer)]
    else:
        return False
    shares = []
    for split in (split for split in ANNOTATED if download.questions.get(split)):
        share, usable = covered_answers(download.questions[split], answers)
        if not usable:
            example = next(answer for question in download.questions[split] for answer in question.answers)
            raise SourceError(
                f"{path.name if size else official}: no question of {split} has an answer in the vocabulary, so "
                "nothing could be learned; answers are looked up as annotators wrote them, such as "
                f"{example!r}, among entries in lower case without punctuation: write the annotators' answers so"
            )
        shares.append(f"{share:.1%} of the annotators' answers of {split} ({usable:.1%} of the questions have one)")
    fetch_file(path)
    if path.exists() and path.read_bytes() != content:
        raise SourceError(f"{path} has other answers than this command would write: remove it, or change --corpus")
    with atomic_write(path) as partial:
        partial.write_bytes(content)
    store_file(path)
    print(f"{path}: {origin}" + (f", which cover {', '.join(shares)}" if shares else ""))
    return True
