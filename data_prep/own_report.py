"""What a build of user-supplied data prints: kind, labels, lengths, warnings and the next command."""

from __future__ import annotations

import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.own_files import OwnFolder
from data_prep.own_targets import count_labels, covered_share, longest_text

SHOWN = 20  # labels
KINDS = {
    "label": "classify, one of {num_labels:,} labels",
    "labels": "classify, any of {num_labels:,} labels",
    "value": "classify, {num_labels} number(s)",
    "question": "answer, {num_answers:,} answers with <unk>",
    "choices": "choice, one of {num_choices} texts",
    "texts": "match, texts and images (or caption: --config=configs/own.py:caption)",
    "targets": "match, an image and a text to images of a gallery",
    "boxes": "region, one of the given boxes",
    "box": "region, the detected region that overlaps the box",
}


def report(folder: OwnFolder, task: Mapping[str, Any], listed: Sequence[str], corpus: str, regions: str) -> None:
    """Print a summary of the data.

    Args:
      folder: the examples.
      task: the task, as the manifest has it.
      listed: labels or answers.
      corpus: name of the corpus.
      regions: description of the regions.
    """
    print(f"{corpus}: the kind is {KINDS[folder.form.name].format(**task)}")
    for split, examples in folder.examples.items():
        unknown = sum(folder.form.target not in example.fields for example in examples) if folder.form.target else 0
        known = f", {unknown:,} of them without {folder.form.target}" if unknown else ""
        print(f"  {split}: {len(examples):,} examples{known}")
    if folder.form.name in ("label", "labels"):
        for split in folder.examples:
            counts = count_labels(folder, split)
            shown = sorted(listed, key=lambda label: -counts[label])[:SHOWN] if counts else []
            more = f", and {len(listed) - len(shown):,} more" if len(listed) > len(shown) else ""
            if shown:
                print(f"  labels of {split}: {', '.join(f'{label} {counts[label]:,}' for label in shown)}{more}")
    elif folder.form.name == "value":
        for mean, deviation in zip(task["value_means"], task["value_deviations"], strict=True):
            print(f"  value of train: mean {mean:.4g}, standard deviation {deviation:.4g}")
    elif folder.form.name == "question":
        shares = ", ".join(f"{covered_share(folder, split, listed):.1%} of {split}" for split in folder.examples)
        print(f"  answers: {', '.join(listed[1 : SHOWN + 1])}{', ...' if len(listed) > SHOWN + 1 else ''}")
        print(f"  examples with an answer of the vocabulary: {shares}")
    fewest, most = longest_text(folder)
    print(f"  words of the texts of an example: {fewest} to {most}; images: {len(folder.images):,}; regions: {regions}")
    if regions.startswith("grid"):
        print("  objects are found better by a detector: --detector=WEIGHTS, or --regions=FOLDER of extract_regions")
    if extra := dict.fromkeys(name for examples in folder.examples.values() for one in examples for name in one.extra):
        print(f"  other fields, which are not read and come back in the predictions: {', '.join(extra)}")
    for warning in folder.warnings:
        print(f"warning: {warning}")


def next_command(corpus: str, data_dir: pathlib.Path) -> str:
    """Return the line with the command that trains on a corpus."""
    place = [] if data_dir == pathlib.Path("data") else [f"--config.data.data_dir={data_dir}"]
    flags = [f"--config.data.texts=own/{corpus}", *place, f"--workdir=workdirs/{corpus}"]
    command = "python -m vlbert_jax.main --config=configs/own.py"
    return f"next: {command} {shlex.join(flags)} --config.init.checkpoint=PRETRAINED"
