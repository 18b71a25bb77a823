"""Tables of captions, SPLIT.tsv, and the indices that builders read: SPLIT_frcnn.json and others."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Container, Sequence

from data_prep.manifest import SourceError
from data_prep.sources import Source, open_source
from vlbert_jax.files import atomic_write


def open_tables(source: pathlib.Path, splits: Sequence[str], answers: bool) -> dict[str, Source]:
    """Return split -> the table `source`/SPLIT.tsv with the images of SPLIT_image.

    Args:
      source: folder of the tables.
      splits: names of the tables.
      answers: whether the answers of questions are to be stored.

    Raises:
      SourceError: a table is missing or damaged, or answers are in a table and not to be stored, or the reverse.
    """
    tables = {split: open_source(source / f"{split}.tsv", f"{split}_image") for split in splits}
    with_answers = {split: [i for i, given in enumerate(table.answers, 1) if given] for split, table in tables.items()}
    for split, lines in with_answers.items():
        if lines and not answers:
            raise SourceError(f"{source / split}.tsv: line {lines[0]} has a third column, answers; add --answers")
    if answers and not any(with_answers.values()):
        names = ", ".join(f"{source / split}.tsv" for split in tables)
        raise SourceError(f"{names}: no line has a third column, the answers of a question; leave out --answers")
    return tables


def write_index(source: Source, path: pathlib.Path, regions: str, broken: Container[str] = ()) -> None:
    """Write the index of a table of captions, as `region_captions` reads it.

    Args:
      source: the table.
      path: the index.
      regions: start of the paths of the regions, such as "train_frcnn.zip@/"; "" = there are none.
      broken: names of images without regions, which are left out.
    """
    names, captions = source.names, source.captions or ()
    lines = [
        dict(image=source.paths[i], caption=caption.split(" "))
        | (dict(frcnn=f"{regions}{names[i]}.json") if regions else {})
        | (dict(answers=answers) if answers else {})
        for caption, i, answers in zip(captions, source.images_of_captions, source.answers, strict=True)
        if names[i] not in broken
    ]
    with atomic_write(path) as partial:
        partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def write_indices(source: pathlib.Path, splits: Sequence[str], index: str, regions: str, answers: bool) -> None:
    """Write SPLIT_INDEX.json for each table of captions, with the regions of a folder or without any.

    Raises SourceError if `regions` is not a folder, and as `open_tables` does.
    """
    folder = pathlib.Path(regions)
    if regions and not folder.is_dir():
        raise SourceError(f"--regions={regions}: there is no such folder; data_prep.extract_regions writes one")
    for split, table in open_tables(source, splits, answers).items():
        # An absolute path, which the index can have: a folder is named as the archive that it replaces.
        write_index(table, source / f"{split}_{index}.json", f"{folder.absolute()}.zip@/" if regions else "")
