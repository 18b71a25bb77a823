"""Read the lines of user-supplied data: JSON lines, or CSV and TSV with the same names as columns.

In a table, lists are separated by `|`, the numbers of a box by spaces: `10 20 60 80|200 40 260 130`.
An empty cell counts as a missing field, except in the columns `labels` and `text`."""

from __future__ import annotations

import csv
import io
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from data_prep.json_lines import objects_of, text_of
from data_prep.manifest import SourceError

SUFFIXES = (".jsonl", ".csv", ".tsv")
LISTS = ("images", "labels", "answers", "choices", "texts", "targets")  # of texts


class Line(NamedTuple):
    """An example as the file states it."""

    place: str  # file and line, for messages
    number: int  # of the line in the file, from 1
    fields: dict[str, Any]
    nulls: tuple[str, ...] = ()  # fields of JSON that are null, which count as missing


def split_file(source: pathlib.Path, split: str) -> pathlib.Path | None:
    """Return the file of a split, None if there is none. Raises SourceError if there are several."""
    found = [path for suffix in SUFFIXES if (path := source / f"{split}{suffix}").is_file()]
    if len(found) > 1:
        raise SourceError(f"{found[0]} and {found[1].name} both exist; remove or rename one of them")
    return found[0] if found else None


def read_lines_of(path: pathlib.Path) -> Iterator[Line]:
    """Yield the examples of a file. Raises SourceError if it cannot be read."""
    text = text_of(path, "save it as UTF-8")
    yield from (_json_lines if path.suffix == ".jsonl" else _table)(path, text)


def _json_lines(path: pathlib.Path, text: str) -> Iterator[Line]:
    remedy = "each line must be one JSON object, such as {\"image\": \"a.jpg\", \"label\": \"red\"}"
    for place, number, fields in objects_of(path, text, remedy):
        nulls = tuple(name for name, value in fields.items() if value is None)
        yield Line(place, number, {name: value for name, value in fields.items() if value is not None}, nulls)


def _table(path: pathlib.Path, text: str) -> Iterator[Line]:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    heading: list[str] = []
    end = 0
    try:
        for row in reader:
            number, end = end + 1, reader.line_num
            if not any(cell.strip() for cell in row):
                continue
            if not heading:
                heading = [cell.strip() for cell in row]
                _check_heading(path, heading, delimiter)
                continue
            place = f"{path}, line {number}"
            if len(row) != len(heading):
                raise SourceError(
                    f"{place}: the row has {len(row)} cells, the heading {len(heading)}; put cells with "
                    f"{delimiter!r}, quotes or line breaks in double quotes"
                )
            yield Line(place, number, _typed(dict(zip(heading, row, strict=True)), place))
    except csv.Error as error:
        raise SourceError(f"{path}, line {end + 1}: the table cannot be read ({error}); save it again") from None


def _check_heading(path: pathlib.Path, heading: list[str], delimiter: str) -> None:
    twice = sorted({name for name in heading if heading.count(name) > 1})
    if twice:
        raise SourceError(f"{path}: there are two columns {twice[0]!r}; rename one of them")
    if len(heading) == 1 and any(mark in heading[0] for mark in ";\t,"):
        raise SourceError(f"{path}: the columns must be separated by {delimiter!r}; the heading is {heading[0]!r}")


def _typed(cells: dict[str, str], place: str) -> dict[str, Any]:
    """Return the cells as JSON would have them."""
    fields: dict[str, Any] = {}
    for name, cell in cells.items():
        if not cell.strip():
            if name in ("labels", "text"):
                fields[name] = [] if name == "labels" else ""
        elif name in LISTS:
            fields[name] = [part.strip() for part in cell.split("|")]
        elif name in ("box", "boxes", "value"):
            fields[name] = _numbers(name, cell, place)
        else:
            fields[name] = cell
    if "label" in fields and ("boxes" in fields or "choices" in fields):
        whole = _list_of(int, fields["label"], f"{place}: the label {fields['label']!r} is not an index")
        fields["label"] = whole if len(whole) > 1 else whole[0]
    return fields


def _numbers(name: str, cell: str, place: str) -> Any:
    wrong = f"{place}: the field {name!r} is {cell!r}, not numbers"
    if name == "boxes":
        return [_list_of(float, part, wrong, " ") for part in cell.split("|")]
    found = _list_of(float, cell.replace("|", " "), wrong, " ")
    return found[0] if name == "value" and len(found) == 1 else found


def _list_of(kind: Callable[[str], Any], text: str, wrong: str, separator: str = "|") -> list[Any]:
    try:
        return [kind(part) for part in text.split(separator) if part.strip()] or [kind("")]
    except ValueError:
        raise SourceError(wrong) from None
