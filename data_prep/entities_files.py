"""The files of Flickr30k Entities: sentences with marked phrases, and their boxes."""

from __future__ import annotations

import dataclasses
import pathlib
import xml.etree.ElementTree as ElementTree

from data_prep.manifest import SourceError, is_stored
from vlbert_jax.files import read_lines

CORNERS = ("xmin", "ymin", "xmax", "ymax")
FORMAT = "download annotations.zip of Flickr30k Entities again"


@dataclasses.dataclass(frozen=True)
class MarkedPhrase:
    """A phrase of a sentence."""

    first_word: int  # number of its first word in the sentence, from 0
    text: str
    chain: str  # number of what it means; "0" = nothing visible
    types: tuple[str, ...]  # people, clothing, bodyparts, animals, vehicles, instruments, scene, other, notvisual


@dataclasses.dataclass(frozen=True)
class MarkedSentence:
    """A sentence without its marks, and its phrases."""

    text: str
    phrases: tuple[MarkedPhrase, ...]


@dataclasses.dataclass(frozen=True)
class ImageBoxes:
    """The annotation of an image."""

    width: int  # pixels
    height: int  # pixels
    boxes: dict[str, list[list[int]]]  # chain -> x1 y1 x2 y2 of each of its things, from 0, as the official reader
    scene: list[str]  # chains that are the whole scene
    nobox: list[str]  # chains without a box


def parse_sentence(line: str, place: str) -> MarkedSentence:
    """Return a line of `Sentences/ID.txt`, such as `[/EN#1/people Two men] in [/EN#2/clothing green shirts] .`.

    Args:
      line: the line.
      place: file and line, for messages.

    Raises:
      SourceError: a mark is damaged.
    """
    words: list[str] = []
    phrases: list[MarkedPhrase] = []
    start, mark = -1, ""  # of the phrase that is not complete
    for token in line.split():
        if token.startswith("[") and start < 0:
            start, mark = len(words), token
            continue
        is_end = start >= 0 and token.endswith("]")
        words.append(token[:-1] if is_end else token)
        if is_end:
            _, chain, *types = mark.split("/") if mark.count("/") > 1 else ("", "")
            if not chain.startswith("EN#") or not types:
                raise SourceError(f"{place}: the mark {mark!r} is not of the form [/EN#CHAIN/TYPE; {FORMAT}")
            text = " ".join(words[start:])
            phrases.append(MarkedPhrase(start, text, chain.removeprefix("EN#"), tuple(types)))
            start = -1
    if start >= 0:
        raise SourceError(f"{place}: the phrase that starts with {mark!r} has no end; {FORMAT}")
    return MarkedSentence(" ".join(words), tuple(phrases))


def read_sentences(path: pathlib.Path) -> list[MarkedSentence]:
    """Return the sentences of a file. Raises SourceError."""
    try:
        lines = read_lines(path)
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: the file cannot be read ({error}); {FORMAT}") from None
    found = [parse_sentence(line, f"{path}, line {i}") for i, line in enumerate(lines, 1) if line.strip()]
    if not any(sentence.phrases for sentence in found):
        raise SourceError(f"{path}: no phrase is marked, such as [/EN#1/people Two men]; {FORMAT}")
    return found


def read_boxes(path: pathlib.Path) -> ImageBoxes:
    """Return a file `Annotations/ID.xml`. Raises SourceError.

    Corners in the file count pixels from 1; as in the official reader, 1 is subtracted from each.
    """
    boxes: dict[str, list[list[int]]] = {}
    others: dict[str, list[str]] = dict(scene=[], nobndbox=[])
    try:
        root = ElementTree.parse(path).getroot()
        width, height = (int(root.findtext(f"size/{side}", "")) for side in ("width", "height"))
        for item in root.findall("object"):
            names = [name.text or "" for name in item.findall("name")]
            box = item.find("bndbox")
            if box is not None:
                corners = [int(box.findtext(corner, "")) - 1 for corner in CORNERS]
                if not all(map(is_stored, corners)):
                    raise ValueError(f"a corner has more than 64 bits: {str(max(corners, key=abs))[:40]}")
                for name in names:
                    boxes.setdefault(name, []).append(corners)
                continue
            for flag, chains in others.items():
                if int(item.findtext(flag, "0")):
                    chains += names
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise SourceError(f"{path}: the annotation cannot be read ({error}); {FORMAT}") from None
    return ImageBoxes(width, height, boxes, others["scene"], others["nobndbox"])


def read_unrelated(path: pathlib.Path) -> set[tuple[str, int]]:
    """Return (image, number of the sentence from 0) of the sentences that do not describe their image.

    The file, UNRELATED_CAPTIONS, counts sentences from 1 and has a heading; it may be missing. Raises SourceError.
    """
    if not path.is_file():
        return set()
    found = set()
    for number, line in enumerate(read_lines(path), 1):
        parts = line.split()
        if not parts or line.startswith("#"):
            continue
        if len(parts) != 2 or not parts[1].isdigit():
            raise SourceError(f"{path}, line {number}: it must have an image and the number of a sentence; {FORMAT}")
        found.add((parts[0], int(parts[1]) - 1))
    return found
