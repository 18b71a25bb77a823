"""The format of user-supplied data: which fields make which kind of task, and what may be wrong.

docs/own_data.md describes the format. The kind follows from the fields of the first line; all lines
must be alike. The first error ends the build with the file, the line and the remedy."""

from __future__ import annotations

import dataclasses
import difflib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_prep.manifest import SourceError, described
from data_prep.own_lines import SUFFIXES, Line, read_lines_of, split_file

SPLITS = ("train", "val", "test")
TABLES = (*SUFFIXES, ".json", ".xlsx", ".xls", ".parquet")  # suffixes of files that may be intended
DOCS = "docs/own_data.md lists the fields of each kind"


@dataclasses.dataclass(frozen=True)
class Form:
    """The fields of an example."""

    name: str  # the field that decides
    kind: str
    target: str  # field that only test may lack; "" = there is none
    required: tuple[str, ...]  # besides the target
    optional: tuple[str, ...] = ()
    loss: str = ""  # of classify

    @property
    def known(self) -> set[str]:
        """Return all fields of the form."""
        return {"id", self.target, *self.required, *self.optional} - {""}


TEXTS = ("text", "text2")
# The first form whose deciding field is there counts.
FORMS = (
    Form("choices", "choice", "label", ("image", "text", "choices")),
    Form("boxes", "region", "label", ("image", "text", "boxes")),
    Form("box", "region", "box", ("image", "text")),
    Form("targets", "match", "targets", ("image", "text")),
    Form("texts", "match", "", ("image", "texts")),
    Form("question", "answer", "answers", ("image", "question"), ("answer",)),
    Form("labels", "classify", "labels", ("image",), TEXTS, "sigmoid"),
    Form("label", "classify", "label", ("image",), TEXTS, "softmax"),
    Form("value", "classify", "value", ("image",), TEXTS, "squared"),
)
FIELDS = set().union(*(form.known for form in FORMS), {"images", "answer"})
LARGEST = float(np.finfo(np.float32).max)  # number that a record can store


@dataclasses.dataclass
class Example:
    """A checked example."""

    place: str
    name: str  # identifier
    images: tuple[str, ...]  # paths
    fields: dict[str, Any]  # the known fields, converted; without the target where it is unknown
    extra: dict[str, Any]  # all other fields


class OwnFolder:
    """The examples of a folder, checked without looking at the images.

    Attributes:
      form: their form.
      examples: split -> examples, in the order of the file.
      galleries: split -> path of each candidate, of the form `targets`.
      images: path of each image, in the order of their numbers -> where it is asked for first.
      warnings: lines that the build prints.
    """

    def __init__(self, source: str | pathlib.Path):
        """Read the files. Raises SourceError."""
        self.root = pathlib.Path(source)
        self.warnings: list[str] = []
        self.paths = _split_files(self.root)
        lines = {split: list(read_lines_of(path)) for split, path in self.paths.items()}
        for split, found in lines.items():
            if not found:
                raise SourceError(f"{self.paths[split]}: there is no example; write one on each line")
        first = lines["train"][0]
        self.form = _form_of(first)
        self.images_per_example = 2 if "images" in first.fields else 1
        self.images: dict[str, str] = {}
        self._checks = _Checks(self, first)
        self.examples = {split: self._checked(split, found) for split, found in lines.items()}
        self.galleries = self._galleries() if self.form.name == "targets" else {}
        self._warn_of_shared()
        self._warn_of_replaced()

    def files(self) -> list[pathlib.Path]:
        """Return the files that decide the examples."""
        return [*self.paths.values(), *(path for split in self.galleries if (path := self._gallery_file(split)))]

    def _checked(self, split: str, lines: list[Line]) -> list[Example]:
        self._checks.labels = None  # a table has texts where JSON has integers
        places, examples = {}, []
        for line in lines:
            example = self._checks.example(line, split)
            if (before := places.setdefault(example.name, line.place)) != line.place:
                raise SourceError(f"{line.place}: the id {example.name!r} is that of {before}, too; give each its own")
            for path in example.images:
                self.images.setdefault(path, line.place)
            examples.append(example)
        return examples

    # --- Galleries ----------------------------------------------------------------------------

    def _gallery_file(self, split: str) -> pathlib.Path | None:
        return split_file(self.root, f"{split}_gallery")

    def _galleries(self) -> dict[str, list[str]]:
        galleries = {}
        for split, examples in self.examples.items():
            path = self._gallery_file(split)
            if path is None:
                raise SourceError(
                    f"{self.root / split}_gallery.jsonl is missing: list the images among which the targets are "
                    'sought, one {"image": "a.jpg"} on each line'
                )
            found: dict[str, str] = {}
            for line in read_lines_of(path):
                image = line.fields.get("image")
                if not isinstance(image, str) or not image:
                    raise SourceError(f"{line.place}: the field 'image' is missing; each line of a gallery has one")
                if image in found:
                    raise SourceError(f"{line.place}: the image {image} is on {found[image]}, too; list it once")
                found[image] = line.place
            if not found:
                raise SourceError(f"{path}: the gallery has no image; list one on each line")
            for example in examples:
                if lost := [image for image in example.fields.get("targets", ()) if image not in found]:
                    raise SourceError(f"{example.place}: the target {lost[0]} is not in {path}; add it there")
            self.images |= {image: place for image, place in found.items() if image not in self.images}
            galleries[split] = list(found)
        return galleries

    def _warn_of_shared(self) -> None:
        """Warn of examples of train that other splits repeat."""
        train = {_content(example) for example in self.examples["train"]}
        for split, examples in self.examples.items():
            same = sum(_content(example) in train for example in examples) if split != "train" else 0
            if same:
                self.warnings.append(
                    f"{same:,} of {len(examples):,} examples of {split} have the image and text of one in train, so "
                    "its score is too high"
                )

    def _warn_of_replaced(self) -> None:
        """Warn of further fields that the predictions have under the same name."""
        replaced_of = {"value": (), "texts": ("caption", "probabilities"), "choices": ("choice", "probabilities")}
        names = {*replaced_of.get(self.form.name, ("probabilities",))}
        for example in (example for examples in self.examples.values() for example in examples):
            if replaced := sorted(names & example.extra.keys()):
                self.warnings.append(f"{example.place}: the field {replaced[0]!r} does not come back: predictions have "
                                     "one of this name; rename it")  # fmt: skip
                return


def _content(example: Example) -> tuple:
    texts = (example.fields.get(name) for name in ("text", "text2", "question", "texts"))
    return example.images, *(tuple(text) if isinstance(text, list) else text for text in texts)


def _split_files(root: pathlib.Path) -> dict[str, pathlib.Path]:
    if not root.is_dir():
        raise SourceError(f"{root}: there is no such folder; --source must have train.jsonl and val.jsonl")
    paths = {split: path for split in SPLITS if (path := split_file(root, split))}
    for split in ("train", "val"):
        if split not in paths:
            there = ", ".join(sorted(path.name for path in root.iterdir() if set(path.suffixes) & set(TABLES)))
            remedy = "move a tenth of the lines of train into it, about other images" if paths else "write it"
            raise SourceError(
                f"{root / split}.jsonl (or .csv, .tsv) is missing; {remedy}" + (f" (there: {there})" if there else "")
            )
    return paths


def _form_of(line: Line) -> Form:
    found = next((form for form in FORMS if form.name in line.fields), None)
    if found is None:
        close = _nearest(line.fields, FIELDS)
        if close:
            raise SourceError(f"{line.place}: the field {close[0]!r} is not known; rename it {close[1]!r}")
        raise SourceError(
            f"{line.place}: the fields are {', '.join(line.fields) or 'none'}; to say what is to be learned, one of "
            f"{', '.join(form.name for form in FORMS)} is needed. {DOCS}"
        )
    return found


def _nearest(fields: Mapping[str, Any], missing: set[str]) -> tuple[str, str] | None:
    """Return an unknown field and the missing one that it resembles."""
    for name in fields:
        if name not in FIELDS:
            simple, free = name.strip().lower(), sorted(missing - fields.keys())
            if close := [simple] if simple in free else difflib.get_close_matches(simple, free, 1, 0.75):
                return name, close[0]
    return None


# --- The fields of an example ---------------------------------------------------------------------


class _Checks:
    """The checks of an example against the form and what earlier lines had."""

    def __init__(self, folder: OwnFolder, first: Line):
        self.form, self.first = folder.form, first
        self.pair = folder.images_per_example == 2
        self.labels: tuple[type, str] | None = None  # type of the labels, and the place of the first
        self.width: tuple[int, str] | None = None  # number of values or choices, and the place of the first

    def example(self, line: Line, split: str) -> Example:
        """Return the checked example of a line. Raises SourceError."""
        form, fields = self.form, line.fields
        known = form.known | ({"images"} if self.pair else set())
        required = {name if name != "image" or not self.pair else "images" for name in form.required}
        has_target = form.target in fields or (form.name == "question" and "answer" in fields)
        if form.target and split != "test" and not has_target:
            required.add(form.target)
        if missing := sorted(required - fields.keys()):
            if close := _nearest(fields, set(missing) | form.known):
                raise SourceError(f"{line.place}: the field {close[0]!r} is not known; rename it {close[1]!r}")
            if missing == ["images"] and "image" in fields:
                raise SourceError(f"{line.place}: there is one image, but {self.first.place} has a pair in 'images'")
            raise SourceError(
                f"{line.place}: the field {'answer' if missing == ['answers'] else missing[0]!r} is missing; the "
                f"fields are {', '.join(fields) or 'none'}. {DOCS}"
            )
        for one, several in (("answer", "answers"), ("image", "images")):
            if {one, several} <= fields.keys():
                raise SourceError(f"{line.place}: there are both {one!r} and {several!r}; give one of them")
        if strange := sorted(fields.keys() & FIELDS - known):
            raise SourceError(
                f"{line.place}: the field {strange[0]!r} does not go with {form.name!r}, which {self.first.place} has; "
                f"all lines must be of one kind. {DOCS}"
            )
        if (close := _nearest(fields, form.known)) and close[1] not in ("id", "text2"):
            raise SourceError(f"{line.place}: the field {close[0]!r} is not known; rename it {close[1]!r}")
        found: dict[str, Any] = {}
        for name in ("text", "text2", "question"):
            if name in known:
                found[name] = self._text(line, name, name in required)
        images = self._images(line)
        if has_target or form.name == "texts":
            found |= self._target(line)
        if form.name in ("choices", "boxes"):
            found[form.name] = getattr(self, f"_{form.name}")(line)
            if has_target:
                found["label"] = self._index(line, len(found[form.name]))
        extra = {name: value for name, value in fields.items() if name not in known}
        extra |= {name: None for name in line.nulls if name not in FIELDS}
        try:
            json.dumps(extra, allow_nan=False)
        except ValueError:
            raise SourceError(f"{line.place}: a field is NaN or infinite, which JSON lacks; write null") from None
        return Example(line.place, self._name(line), images, found, extra)

    def _wrong(self, line: Line, name: str, wanted: str) -> SourceError:
        return SourceError(f"{line.place}: the field {name!r} is {described(line.fields[name])}, not {wanted}")

    def _name(self, line: Line) -> str:
        name = line.fields.get("id", line.number)
        if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
            raise self._wrong(line, "id", "a text or an integer")
        return str(name)

    def _text(self, line: Line, name: str, needed: bool) -> str:
        text = line.fields.get(name, "")
        if not isinstance(text, str) or (needed and not text.strip()):
            raise self._wrong(line, name, "a text")
        return text

    def _texts(self, line: Line, name: str, wanted: str = "a list of texts", least: int = 1) -> list[str]:
        texts = line.fields[name]
        is_list = isinstance(texts, list) and len(texts) >= least
        if not is_list or not all(isinstance(text, str) and text.strip() for text in texts):
            raise self._wrong(line, name, wanted)
        return texts

    def _images(self, line: Line) -> tuple[str, ...]:
        if not self.pair:
            return (self._text(line, "image", True),)
        images = self._texts(line, "images")
        if len(images) != 2:
            raise SourceError(f"{line.place}: there are {len(images)} in 'images', but a pair has 2")
        return tuple(images)

    def _target(self, line: Line) -> dict[str, Any]:
        """Return the converted target of a line that has one; indices are checked elsewhere."""
        name = self.form.name
        if name == "label":
            return dict(label=self._label(line, line.fields["label"]))
        if name == "labels":
            labels = line.fields["labels"]
            if not isinstance(labels, list):
                raise self._wrong(line, "labels", "a list of labels")
            return dict(labels=list(dict.fromkeys(self._label(line, label) for label in labels)))
        if name == "value":
            return dict(value=self._values(line))
        if name == "question":
            given = "answers" if "answers" in line.fields else "answer"
            answers = self._texts(line, given) if given == "answers" else [self._text(line, "answer", True)]
            return dict(answers=answers)
        if name in ("texts", "targets"):
            return {name: self._texts(line, name)}
        return dict(box=self._box(line, "box", line.fields["box"])) if name == "box" else {}

    def _label(self, line: Line, label: Any) -> str:
        if isinstance(label, float):
            raise SourceError(f"{line.place}: the label is the number {label}; name numbers to predict 'value'")
        if not isinstance(label, str | int):
            raise SourceError(f"{line.place}: the label is {described(label)}, not a text or an integer")
        first, place = self.labels = self.labels or (type(label), line.place)
        if type(label) is not first:
            raise SourceError(
                f"{line.place}: the label is {described(label)}, but {place} has {_type_name(first)}; write all alike"
            )
        text = " ".join(str(label).lower().split() if isinstance(label, bool) else str(label).split())
        if not text:
            raise SourceError(f"{line.place}: the label is empty; name it, or remove the line")
        return text

    def _values(self, line: Line) -> list[float]:
        value = line.fields["value"]
        values = value if isinstance(value, list) else [value]
        if not values or not all(_is_number(value) for value in values):
            raise self._wrong(line, "value", f"a number or a list of numbers, of at most {LARGEST:.0e}")
        self._same_width(line, "value", len(values))
        return [float(value) for value in values]

    def _same_width(self, line: Line, name: str, number: int) -> None:
        first, place = self.width = self.width or (number, line.place)
        if number != first:
            raise SourceError(f"{line.place}: {name!r} has {number}, but {place} has {first}; all must have the same")

    def _choices(self, line: Line) -> list[str]:
        choices = self._texts(line, "choices", "a list of two or more texts", 2)
        self._same_width(line, "choices", len(choices))
        return choices

    def _boxes(self, line: Line) -> list[list[float]]:
        boxes = line.fields["boxes"]
        if not isinstance(boxes, list) or not boxes:
            raise self._wrong(line, "boxes", "a list of boxes")
        return [self._box(line, "boxes", box) for box in boxes]

    def _box(self, line: Line, name: str, box: Any) -> list[float]:
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
            raise SourceError(f"{line.place}: {name!r} has {str(box)[:60]}, not four numbers x1 y1 x2 y2")
        return [float(value) for value in box]

    def _index(self, line: Line, number: int) -> Any:
        label = line.fields["label"]
        several = isinstance(label, list) and self.form.name == "boxes"
        labels = label if several else [label]
        if not labels or not all(type(i) is int and 0 <= i < number for i in labels):
            raise SourceError(
                f"{line.place}: the label {label!r} is not an index among {number} {self.form.name}, 0 to {number - 1}"
            )
        return labels if self.form.name == "boxes" else label


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _type_name(kind: type) -> str:
    return {str: "a text", int: "an integer", bool: "true or false"}[kind]
