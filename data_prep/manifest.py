"""The error that ends a build, and the manifest that lists what a build did not use as it was."""

from __future__ import annotations

import collections
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from vlbert_jax.files import json_object, with_addresses

TEXTS = ("caption", "text", "question", "expression")  # fields of records: a str, or a list of words


class SourceError(Exception):
    """A download cannot be built; the message names the problem, the file and the remedy."""


def read_object(path: pathlib.Path, remedy: str, *fields: str) -> dict[str, Any]:
    """Return the object in a JSON file of ours.

    Args:
      path: the file.
      remedy: what to do about a missing or damaged file, for the message.
      *fields: fields that the object must have.

    Raises:
      SourceError: the file cannot be read, or is not such an object.
    """
    try:
        return json_object(path.read_bytes(), str(path), remedy, *fields)
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}); {remedy}") from None
    except ValueError as error:
        raise SourceError(str(error)) from None


def described(value: Any) -> str:
    """Return what a value of a JSON file is, in a few words, for messages."""
    if isinstance(value, dict):
        names = ", ".join(map(str, list(value)[:5]))
        return f"an object with {names}{', ...' if len(value) > 5 else ''}" if value else "an empty object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, str | bytes):
        return f"the text {value[:40]!r}"
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int | float):
        digits = str(value)
        return f"the number {digits}" if len(digits) <= 40 else f"the number {digits[:40]}..."
    return f"of the type {type(value).__name__}"


def is_stored(number: int) -> bool:
    """Return whether a record can store an integer: with its sign it has at most 64 bits."""
    return -(2**63) <= number < 2**63


def is_text(text: str) -> bool:
    """Return whether a text has a letter, of any script, and at most half of it is undecodable (U+FFFD)."""
    return any(map(str.isalpha, text)) and 2 * text.count("\ufffd") <= len(text)


def mixed_extractors(first: str, extractor: str, second: str, other: str) -> str:
    """Return the error message for two files whose regions are of two extractors.

    Args:
      first: the first file.
      extractor: id of its extractor, "" = the file does not name one.
      second: the second file.
      other: id of its extractor, likewise.
    """

    def origin(name):
        return f"by extractor {name}" if name else "by an unnamed extractor"

    return (
        f"{first} was made {origin(extractor)}, {second} {origin(other)}: features of different detectors, weights or "
        "settings cannot be mixed; extract both with the same detector and settings"
    )


class Manifest:
    """The problems of a download; the manifest is stored as `manifest.json` next to the records."""

    def __init__(self, source: str, options: dict[str, Any]):
        self.source = with_addresses(source)
        self.options = options  # options of the builder that change the records
        self.inputs: dict[str, str] = {}  # path -> mark of what the table is built from
        self.records: dict[str, int] = {}  # number of records per split
        self.problems: list[dict[str, Any]] = []
        self.converted: collections.Counter[str] = collections.Counter()  # description -> number of images
        self.task: dict[str, Any] = {}  # what a run must know about user-supplied data
        self.needs_text = True  # empty texts count as texts without a letter
        # Id of the detector of all regions, "" = unknown; None = no regions so far.
        self.extractor: str | None = None
        self._summary: collections.Counter[str] = collections.Counter()
        self._first_file = ""  # the file that named the extractor
        self._least: int | None = None  # regions of the record that has the fewest
        self._no_text = ""  # the first text that is none

    def extracted(self, extractor: str, file: str) -> None:
        """Record the extractor of a region file.

        Raises SourceError if an earlier file has another one.
        """
        if self.extractor is None:
            self.extractor, self._first_file = extractor, file
        if extractor != self.extractor:
            raise SourceError(mixed_extractors(self._first_file, self.extractor, file, extractor))

    def for_part(self) -> Manifest:
        """Return the manifest of a part of the table, which starts empty but knows the extractor."""
        part = Manifest(self.source, self.options)
        part.needs_text, part.extractor, part._first_file = self.needs_text, self.extractor, self._first_file
        return part

    def to_json(self) -> dict[str, Any]:
        """Return what `merge` needs of a part."""
        return dict(
            records=self.records, problems=self.problems, summary=self._summary, least=self._least,
            no_text=self._no_text, extractor=self.extractor, first_file=self._first_file, converted=self.converted,
        )  # fmt: skip

    def merge(self, part: dict[str, Any]) -> None:
        """Add the result of `to_json` of the next part. Raises SourceError if its extractor is another one."""
        if part["extractor"] is not None:
            self.extracted(part["extractor"], part["first_file"])
        for split, number in part["records"].items():
            self.records[split] = self.records.get(split, 0) + number
        self.problems += part["problems"]
        self._summary.update(part["summary"])
        self.converted.update(part["converted"])
        known = [least for least in (self._least, part["least"]) if least is not None]
        self._least = min(known, default=None)
        self._no_text = self._no_text or part["no_text"]

    def note(self, action: str, file: str, line: int, reason: str) -> None:
        """List a problem, or count a conversion, which is none.

        Args:
          action: "skipped" (the item has no record), "repaired" (changed), "kept" (unchanged) or "converted" (an image
            that is stored in another format than that of its file).
          file: path of the file, relative to the source.
          line: number of the line or item in the file, from 0; -1 = none.
          reason: description of the problem or the conversion.
        """
        if action == "converted":
            self.converted[reason] += 1
            return
        self.problems.append(dict(action=action, file=file, line=line, reason=reason))

    def count(self, action: str) -> int:
        """Return the number of listed problems with this action."""
        return sum(problem["action"] == action for problem in self.problems)

    def tally(self, record: dict[str, Any]) -> None:
        """Count what the summary states about a record."""
        count = self._summary
        if "image" in record:
            count["images"] += 1
            count["without an image"] += not record["image"]
        if "boxes" in record:
            number = len(record["boxes"])
            self._least = number if self._least is None else min(number, self._least)
            count["boxed"] += 1
            count["regions"] += number
        for text in (record[name] for name in TEXTS if name in record and (record[name] or self.needs_text)):
            count["texts"] += 1
            if not is_text(text if isinstance(text, str) else " ".join(text)):
                self._no_text = self._no_text or str(text)[:80]
                count["no text"] += 1

    def count_targets(self, usable: Iterable[bool]) -> None:
        """Count the targets of a record; each is usable or not."""
        for is_usable in usable:
            self._summary["targets"] += 1
            self._summary["usable"] += is_usable

    def check_texts(self) -> None:
        """Raise SourceError where most texts of the table are no text."""
        texts, wrong = self._summary["texts"], self._summary["no text"]
        if 2 * wrong > texts:
            raise SourceError(
                f"{self.source}: {wrong:,} of {texts:,} texts have no letter, or are mostly undecodable; "
                f"the first is {self._no_text!r}. Give the column or file that has the texts, in UTF-8"
            )

    def summary(self) -> str:
        """Return the numbers of images, regions, texts and targets of the table in words."""
        count, parts = self._summary, []
        if count["images"]:
            share = count["without an image"] / count["images"]
            parts.append(f"{share:.1%} of {count['images']:,} records without an image")
        if count["boxed"]:
            parts.append(f"{count['regions'] / count['boxed']:.1f} regions per record, {self._least} at least")
        if count["texts"]:
            parts.append(f"{count['no text'] / count['texts']:.1%} of {count['texts']:,} texts without a letter")
        if count["targets"]:
            parts.append(f"{count['usable'] / count['targets']:.1%} of {count['targets']:,} targets usable")
        return "; ".join(parts)

    def write(self, path: pathlib.Path) -> None:
        """Write the manifest as JSON."""
        counts = {action: self.count(action) for action in ("skipped", "repaired", "kept")}
        content = dict(source=self.source, options=self.options, inputs=self.inputs, records=self.records, **counts)
        content |= dict(extractor=self.extractor) if self.extractor is not None else {}
        content |= dict(task=self.task) if self.task else {}
        content |= dict(converted=dict(self.converted)) if self.converted else {}
        content |= dict(problems=self.problems)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
