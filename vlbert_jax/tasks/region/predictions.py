"""The files of predictions of the regions that texts mean, and the scores that need all examples."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vlbert_jax.data.tables import Split
from vlbert_jax.files import atomic_write
from vlbert_jax.tasks.layouts import region_layout
from vlbert_jax.tasks.own_predictions import own_row, write_own
from vlbert_jax.tasks.region.entities import AMONG, Phrase, phrase_recall
from vlbert_jax.tasks.region.examples import meant_row, original_boxes
from vlbert_jax.tasks.region.listed import choosable_rows
from vlbert_jax.tasks.region.visual7w import pointing_score
from vlbert_jax.tasks.scorers import scorer_of

TOP = 5  # regions of a prediction


def num_predicted(config) -> int:
    """Return the number of regions of a prediction."""
    return max(AMONG) if scorer_of(config, SCORERS) == "entities" else TOP


def _write(path: Path, content: Any) -> None:
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content))


def write_referring(directory: Path, rows: dict, config) -> dict[str, float]:
    """Write SPLIT.json in the official format and order, with `sent_id` added; `testA+testB` are mixed.

    With annotations among the regions, return the share of expressions whose annotation was chosen:
    the rule of MAttNet, which is stricter than that of the official code.
    """
    d = config.data
    split, found, exact = Split(config, d.eval_split), [], []
    for number, (region, *_) in zip(rows["index"], rows["region"], strict=True):
        record = split[int(number)]
        box = original_boxes(record, d.eval_boxes, tuple(d.image_scale), d.get("caffe_resize", False))[region]
        found.append((int(record["index"]), int(record["ref_id"]), int(record["sent_id"]), box.tolist()))
        exact.append(int(region) == meant_row(record, d.eval_boxes))
    official = [dict(ref_id=ref_id, sent_id=sent_id, box=box) for _, ref_id, sent_id, box in sorted(found)]
    _write(directory / f"{d.eval_split}.json", official)
    return {} if d.eval_boxes == "detected" or not exact else dict(grounding_identity_accuracy=float(np.mean(exact)))


# --- Tables that list the right regions ---------------------------------------------------------------


def write_listed(directory: Path, rows: dict, config) -> dict[str, float]:
    """Write SPLIT.jsonl, SPLIT.csv, and the file and scores of the public task that config.data.scorer names.

    A line of SPLIT.jsonl has `id`, the numbers of the best boxes (`boxes`, -1 = the whole image), their
    probabilities, and the fields that user-supplied data has besides.
    """
    d = config.data
    examples = sorted(_examples(rows, config), key=lambda example: int(example[0]["index"]))
    scorer = scorer_of(config, SCORERS)
    lines = [
        own_row(
            {"example_id": record["example_id"]} if scorer else record,
            dict(boxes=[row - 1 for row in best], probabilities=probabilities),
        )
        for record, best, probabilities in examples
    ]
    write_own(directory, d.eval_split, lines, {"the first box": 0})
    return SCORERS[scorer](directory / f"{d.eval_split}.json", examples) if scorer else {}


def _examples(rows: dict, config) -> Iterator[tuple[dict, list[int], list[float]]]:
    """Yield the record of each example, its best rows that may be chosen, and their probabilities."""
    split, most = Split(config, config.data.eval_split), config.data.max_regions + 1
    first = region_layout(config).first_row
    for number, best, probability in zip(rows["index"], rows["region"], rows["probability"], strict=True):
        record = split[int(number)]
        allowed = np.flatnonzero(choosable_rows(record, first)[:most])
        kept = [i for i, row in enumerate(best) if row in allowed]
        yield record, [int(best[i]) for i in kept], [round(float(probability[i]), 6) for i in kept]


def write_entities(path: Path, examples: list[tuple[dict, list[int], list[float]]]) -> dict[str, float]:
    """Write ten boxes for each phrase as MDETR's evaluator reads them, and return the recall of both protocols.

    Corners of the files of Flickr30k Entities count pixels from 1, those of the records from 0.
    """
    phrases: dict[tuple[str, int], list[Phrase]] = defaultdict(list)
    found: dict[tuple[str, int], list[list]] = defaultdict(list)
    for record, best, _ in examples:
        about = json.loads(record["extra"])
        width, height = record["image_size"]
        boxes = np.concatenate([[[0, 0, width - 1, height - 1]], record["boxes"]]).astype(np.float64) + 1
        key = str(about["image_id"]), int(about["sentence_id"])
        phrases[key].append(Phrase(tuple(about["types"]), np.asarray(record["gold"], np.float64) + 1))
        found[key].append(boxes[best].tolist())
    predictions = [dict(image_id=key[0], sentence_id=key[1], boxes=boxes) for key, boxes in found.items()]
    _write(path, predictions)
    names = {"R@1": "", "R@5": "_top5", "R@10": "_top10"}
    scores: dict[str, float] = {}
    for prefix, any_box in (("grounding_accuracy", True), ("grounding_merged_accuracy", False)):
        for among, shares in phrase_recall(phrases, predictions, any_box).items():
            name = prefix + names[among]
            scores |= {name if kind == "all" else f"{name}_{kind}": share for kind, share in shares.items()}
    return scores


def write_visual7w(path: Path, examples: list[tuple[dict, list[int], list[float]]]) -> dict[str, float]:
    """Write the chosen box of each question as the script of Visual7W reads it, and return the accuracy."""
    predictions, answers = [], {}
    for record, best, _ in examples:
        number, box_ids = int(record["example_id"]), record["box_ids"]
        candidates = [dict(answer=int(box_ids[row - 1])) for row in best]
        predictions.append(dict(qa_id=number, question=record["expression"], candidates=candidates))
        answers[number] = int(box_ids[record["targets"][0]])
    _write(path, predictions)
    return dict(pointing_accuracy=pointing_score(answers, predictions).accuracy)


SCORERS = {"entities": write_entities, "visual7w": write_visual7w}  # config.data.scorer
