"""Compile pre-training for TPU slices that are not there, and predict its time.

    pip install -e '.[tpu]'                # the compiler; no TPU
    python benchmarks/topologies.py        # minutes per row; continues an interrupted run
    python benchmarks/topologies.py --only=base_prec,v5e-8

Each row is a compilation of the real training step (`--mode=compile`). Rows are appended to topologies.jsonl, and the
tables of topologies.md, after their HTML comments, are written from them.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import re
import sys
import time

import jax

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the script also runs without an installation

from configs import pretrain as recipes  # noqa: E402
from vlbert_jax.tasks.pretrain import task as pretrain  # noqa: E402
from vlbert_jax.tasks.pretrain.batches import batch_shapes  # noqa: E402
from vlbert_jax.training import compile_ahead  # noqa: E402

PRETRAIN = pretrain.PretrainTask()

RESULTS = ROOT / "benchmarks" / "results"
SLICES = {  # by their names in orders: v4 counts cores, two per chip
    "v5e-8": ("v5e:2x4", 1),
    "2x v5e-16": ("v5e:4x4", 2),
    "v4-128": ("v4:4x4x4", 1),
    "v5e-256": ("v5e:16x16", 1),
}
# The rows: recipe, slice, and the fields that differ from the recipe.
ROWS = [
    ("base_e2e", "v5e-8", {}),
    ("base_e2e", "v5e-8", {"grad_accumulation_steps": 2}),
    ("base_prec", "v5e-8", {}),
    ("base_e2e", "v4-128", {}),
    ("large_e2e", "v5e-8", {}),
    ("large_e2e", "v5e-8", {"grad_accumulation_steps": 4}),
    ("large_e2e", "v5e-8", {"grad_accumulation_steps": 4, "mesh.fsdp": 8}),
    ("base_e2e", "2x v5e-16", {}),
    ("base_prec", "v4-128", {}),
    ("base_prec", "v5e-256", {"batch_size": 512}),
    ("base_prec", "2x v5e-16", {}),
    ("large_e2e", "v4-128", {"grad_accumulation_steps": 1}),
    ("base_e2e", "v5e-256", {"batch_size": 512}),
    ("base_prec", "v4-128", {"batch_size": 8192}),
    ("base_e2e", "v4-128", {"batch_size": 2048}),
    ("large_e2e", "v4-128", {"batch_size": 1024, "grad_accumulation_steps": 1}),
    ("large_e2e", "2x v5e-16", {}),
    ("large_e2e", "v5e-256", {"batch_size": 512, "grad_accumulation_steps": 1}),
]


def compiled(recipe: str, name: str, fields: dict) -> dict:
    """Compile one row of topologies.jsonl and return it."""
    config = getattr(recipes, recipe)()
    config.update_from_flattened_dict(fields)
    config.topology, config.num_slices = SLICES[name]
    jax.config.update("jax_default_prng_impl", config.prng_impl)
    began = time.perf_counter()
    found = compile_ahead.compile_step(config, PRETRAIN, compile_ahead.devices_of(config.topology, config.num_slices))
    row = vars(found) | dict(
        recipe=recipe,
        slice=name,
        fields=fields,
        batch_size=config.batch_size,
        parts=config.grad_accumulation_steps,
        images=batch_shapes(config).boxes.shape[0],
        total_steps=config.total_steps,
        compile_seconds=round(time.perf_counter() - began),
    )
    print("\n".join(compile_ahead.described(found, config, config.total_steps)), flush=True)
    return row


# --- The page -------------------------------------------------------------------------------------------------------

PER_LINK = 50  # GB/s each way of the four links of v5e; only a full pod of 256 closes its rings
NETWORK = 800  # GB/s out of a v5e slice of 256 chips (6.4 Tbit/s)
INPUT = {  # bytes read and CPU seconds per image with its texts (benchmarks/results/input_pipeline.md)
    "base_e2e": (168e3 + 100 * 1601 * 2, 7.5e-3),  # JPEG, class scores
    "base_prec": (100 * (2048 * 4 + 1601 * 2), 5.5e-3),  # features, class scores
}
CHIPS_PER_HOST = 8
WEAK = (8, 64, 256, 1024)  # chips


def as_compiled(row: dict) -> compile_ahead.Compiled:
    names = {field.name for field in dataclasses.fields(compile_ahead.Compiled)}
    return compile_ahead.Compiled(**{name: value for name, value in row.items() if name in names})


def table(rows: list[dict]) -> str:
    lines = [
        "| recipe | slice | batch (parts) | GiB per chip | largest batch per chip | collectives per update | "
        "TFLOP per sequence | s per update | hours | chip-hours |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for recipe, name, fields in sorted(ROWS, key=lambda row: (row[0], list(SLICES).index(row[1]))):
        row = next((r for r in rows if (r["recipe"], r["slice"], r["fields"]) == (recipe, name, fields)), None)
        if row is None:  # not compiled yet
            continue
        found = as_compiled(row)
        used = f"{found.needed / compile_ahead.GIB:.1f} of {found.chip.memory}" + ("" if found.fits else ": too much")
        divided = f", fsdp {row['mesh']['fsdp']}" if row["mesh"]["fsdp"] > 1 else ""
        counts = ", ".join(f"{kind} {n}" for kind, n in row["collectives"].items())
        counts += f"; {row['reduced'] / 1e9:.2f} GB" if counts else ""
        hours = found.step_seconds * row["total_steps"] * 256 / row["batch_size"] / 3600
        lines.append(
            f"| {recipe} | {name}{divided} | {row['batch_size']} ({row['parts']}) | {used} "
            f"| {largest(row, rows)} | {counts} | {found.flops / 1e12 / row['batch_size']:.3g} "
            f"| {found.step_seconds:.3g} | {hours:.3g} | {hours * found.devices:.3g} |"
        )
    return "\n".join(lines)


def largest(row: dict, rows: list[dict]) -> str:
    """Return how many sequences per chip and part fit, a power of two: compiled, or by a line through two compilations.

    All compilations are for this kind of chip and mesh. The line passes through the two between which the memory ends,
    or else through the outermost two.
    """

    def per_chip(r: dict) -> float:
        return r["batch_size"] / r["devices"] / r["parts"]

    def alike(r: dict) -> tuple:
        return r["recipe"], r["kind"], r["mesh"]["fsdp"]

    same = [r for r in rows if alike(r) == alike(row)]
    points = sorted({per_chip(r): r["needed"] for r in same}.items())
    fitting = [r for r in same if r["memory"]]
    if len(points) < 2:
        return f"{per_chip(fitting[0]):g} or more (compiled)" if fitting else ""
    room = as_compiled(row).room
    ends = next((i for i, (_, needed) in enumerate(points) if needed > room), 0)
    (x0, y0), (x1, y1) = points[ends - 1 : ends + 1] if ends else (points[0], points[-1])
    limit = x0 + (room - y0) * (x1 - x0) / (y1 - y0)
    return f"{2 ** math.floor(math.log2(limit))} (line)"


def weak_scaling(row: dict) -> str:
    """Return a table of the predicted phases of an update on v5e, with the sequences per chip of `row`."""
    found = as_compiled(row)
    size, seconds = INPUT[row["recipe"]]
    sequences, images = row["batch_size"] / row["devices"], row["images"] / row["devices"]
    lines = [
        "| chips | batch | compute, s | all-reduce in slices, s | between slices, s | step, s | of linear | "
        "images/s per host | MB/s read per host | cores busy per host |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for chips in WEAK:
        slices, inside = -(-chips // 256), min(chips, 256)
        rate = PER_LINK * (4 if inside == 256 else 2) * 1e9
        within = 2 * row["reduced"] * (inside - 1) / inside / rate
        between = 2 * row["reduced"] * (slices - 1) / slices / (NETWORK * 1e9)
        compute = found.step_seconds
        step = compute + within + between
        fed = images * CHIPS_PER_HOST / step
        lines.append(
            f"| {chips:,} | {sequences * chips:,.0f} | {compute:.3g} | {within:.2g} | {between:.2g} | {step:.3g} "
            f"| {compute / step:.1%} | {fed:,.0f} | {fed * size / 1e6:,.0f} | {fed * seconds:.1f} |"
        )
    return "\n".join(lines)


def page(rows: list[dict]) -> str:
    """Return topologies.md with tables of the present rows."""
    text = (RESULTS / "topologies.md").read_text()
    parts = {"table": table(rows)}
    for recipe, fields in (("base_e2e", {"grad_accumulation_steps": 2}), ("base_prec", {})):
        for row in rows:
            if (row["recipe"], row["slice"], row["fields"]) == (recipe, "v5e-8", fields):
                parts[f"weak {recipe}"] = weak_scaling(row)
    for name, lines in parts.items():
        marks = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text = re.sub(marks, lambda m, lines=lines: f"{m[1]}{lines}\n{m[2]}", text, flags=re.S)
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="RECIPE,SLICE of the only row to compile")
    parser.add_argument("--rows", type=int, default=-1, help="most new rows; 0 only writes the page")
    args = parser.parse_args()
    path = RESULTS / "topologies.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for recipe, name, fields in ROWS:
        done = any((row["recipe"], row["slice"], row["fields"]) == (recipe, name, fields) for row in rows)
        if done or (args.only and args.only != f"{recipe},{name}"):
            continue
        if args.rows == 0:
            break
        args.rows -= 1
        print(f"--- {recipe}, {name}", flush=True)
        rows.append(compiled(recipe, name, fields))
        with path.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    (RESULTS / "topologies.md").write_text(page(rows))


if __name__ == "__main__":
    main()
