"""The results of the probes: probes.json, the figure and the table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlbert_jax.batch import Batch
from vlbert_jax.data.images import as_rgb
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.files import atomic_write
from vlbert_jax.tasks.pretrain.aligned import LEVELS
from vlbert_jax.visualization.probe_figure import Example, Heat, Line, write_figure

COLUMNS = {  # of the table -> kind of target
    "visual words": "visual_words",
    "masked words": "words",
    "named hidden regions": "named_regions",
    "hidden regions": "regions",
}
REMOVED = {"visual words": "regions", "masked words": "regions", "named hidden regions": "words"}
REMOVED["hidden regions"] = "words"


def conclude(directory: Path, about: Mapping[str, Any], sums: dict[str, Any], shown: Any, config) -> list[str]:
    """Write probes.json and probes.svg to a folder, and return the lines of the table (`Task.conclude_probe`)."""
    results = {**about, **results_of(sums)}
    with atomic_write(directory / "probes.json") as path:
        path.write_text(json.dumps(results, indent=1) + "\n")
    write_figure(directory / "probes.svg", *_figure(results, shown, config))
    return [*table(results), "", *_about_attention(results), f"Results: {directory}"]


def results_of(sums: dict[str, Any]) -> dict[str, Any]:
    """Return the means of sums over all batches.

    They are, for each kind of target, its number and the accuracy and loss at each level; and for attention the number
    of words, the chance, the attention on the right regions and on all, by layer and head, and the largest and the mean
    of the former. A kind without a target is left out.
    """
    results = {}
    for kind in COLUMNS.values():
        if f"{kind}.loss" in sums and (number := int(sums[f"{kind}.loss"][1][0])):
            found = {name: sums[f"{kind}.{name}"][0] / number for name in ("accuracy", "loss")}
            by_level = {
                level: {name: float(values[i]) for name, values in found.items()} for i, level in enumerate(LEVELS)
            }
            results[kind] = dict(number=number, **by_level)
    if number := int(sums["attention.chance"][1]):
        right, regions, chance = (sums[f"attention.{name}"][0] / number for name in ("right", "regions", "chance"))
        summary = dict(number=number, chance=float(chance), largest=float(right.max()), mean=float(right.mean()))
        results["attention"] = summary | dict(right=right.tolist(), regions=regions.tolist())
    return results


def table(results: Mapping[str, Any]) -> list[str]:
    """Return the lines of a Markdown table: levels, and accuracy (loss) of each kind of target."""
    columns = {column: results[kind] for column, kind in COLUMNS.items() if kind in results}
    head = [f"{column} ({found['number']:,}), {REMOVED[column]} removed" for column, found in columns.items()]
    lines = [["removed", *head], ["---"] * (len(head) + 1)]
    for level in LEVELS:
        cells = (found[level] for found in columns.values())
        lines.append([level, *(f"{cell['accuracy']:.3f} ({cell['loss']:.3f})" for cell in cells)])
    return [f"| {' | '.join(line)} |" for line in lines]


def _about_attention(results: Mapping[str, Any]) -> list[str]:
    if "attention" not in results:
        return ["No masked word counts for attention."]
    found = results["attention"]
    layer, head = _best(found)
    return [
        f"Attention of {found['number']:,} masked words to the regions that they name, as a share of that to all: "
        f"{found['largest']:.3f} in layer {layer + 1}, head {head + 1}, {found['mean']:.3f} on average; "
        f"{found['chance']:.3f} by chance."
    ]


def _best(attention: Mapping[str, Any]) -> tuple[int, int]:
    """Return layer and head, from 0, with the most attention on the right regions."""
    right = np.array(attention["right"])
    layer, head = divmod(int(right.argmax()), right.shape[1])
    return layer, head


def _figure(results: Mapping[str, Any], shown: Any, config) -> tuple[list[Line], Heat | None, Example | None]:
    lines = [
        Line(f"{column}, {REMOVED[column]} removed", {level: results[kind][level]["accuracy"] for level in LEVELS})
        for column, kind in COLUMNS.items()
        if kind in results
    ]
    if "attention" not in results:
        return lines, None, None
    found = results["attention"]
    return lines, Heat(found["right"], found["chance"]), _example(shown, _best(found), config)


def _example(first: tuple[Batch, Mapping[str, Any]], best: tuple[int, int], config) -> Example | None:
    """Return the first word that counts, with its attention in one head; None where this process does not have it."""
    batch, shown = first
    row, word = int(shown["row"]), int(shown["word"])
    if not shown["found"] or row >= len(batch.token_ids):
        return None
    backend, targets = tokenizer_of(config).backend, batch.targets
    ids = batch.token_ids[row, 0][batch.element_mask[row, 0]]
    position, rows = targets.mlm_positions[row, 0, word], np.flatnonzero(batch.region_mask[row])[1:]
    attention = np.asarray(shown["attention"])[best][rows]
    width, height = batch.image_size[row, 0].astype(int)
    return Example(
        pixels=None if batch.pixels is None else as_rgb(np.asarray(batch.pixels[row, 0, :height, :width])),
        size=(int(width), int(height)),
        boxes=batch.boxes[row, rows],
        shares=attention / max(attention.sum(), 1e-30),
        right=targets.named[row, position, rows],
        words=[backend.id_to_token(int(i)) for i in ids if i < config.model.encoder.vocab_size],
        position=int(position),
        answer=backend.id_to_token(int(targets.mlm_labels[row, 0, word])),
        head=f"layer {best[0] + 1}, head {best[1] + 1}",
    )
