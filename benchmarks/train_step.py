"""Measure the time of one training step on the local device.

    python benchmarks/train_step.py                     # base_prec and base_e2e in the shapes of the table below
    python benchmarks/train_step.py --config=base_e2e --captions=8,16,32 --dtype=bfloat16

The step is the update of the recipe (forward, backward, clipping, AdamW, dropout on) on synthetic batches that stay on
the device. FLOP count the matrix products and convolutions of the traced step, without recomputation. A batch that does
not fit in the memory of the device is a line with `failed`.
"""

import argparse
import json
import os
import pathlib
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # the script also runs without an installation

from configs import pretrain as recipes  # noqa: E402
from vlbert_jax.batch import Batch, make_batch  # noqa: E402
from vlbert_jax.data.packing import pack  # noqa: E402
from vlbert_jax.geometry import box_geometry  # noqa: E402
from vlbert_jax.tasks.pretrain import task as pretrain  # noqa: E402
from vlbert_jax.tasks.pretrain.targets import PretrainTargets  # noqa: E402
from vlbert_jax.training import compile_ahead, optimizer, sharding  # noqa: E402
from vlbert_jax.training.state import create_state  # noqa: E402
from vlbert_jax.training.step import jitted_step  # noqa: E402

PRETRAIN = pretrain.PretrainTask()

# Captions (with as many text-only sequences), text tokens of each, boxes, image (width, height).
SHAPES = {
    "base_prec": dict(captions=4, tokens=64, text_tokens=64, boxes=37, image=(800, 600)),
    "base_e2e": dict(captions=1, tokens=20, text_tokens=64, boxes=20, image=(800, 600)),
    "large_e2e": dict(captions=1, tokens=20, text_tokens=64, boxes=20, image=(800, 600)),
}
BASE = ("base_prec", "base_e2e")
SMALL_SHAPE = dict(tokens=16, text_tokens=16, boxes=5, image=(128, 96))

# Published TFLOP/s of a device in bfloat16, of dense matrices, by its name in JAX.
PEAK_TFLOPS = {chip.kind: chip.tflops for chip in compile_ahead.CHIPS.values()} | {
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA L4": 121,
    "NVIDIA L40S": 362,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H200": 989,
    "NVIDIA B200": 2250,
}
OUT_OF_MEMORY = "out of memory"


def peak_tflops(dtype: str) -> float | None:
    """Return the peak of the local device, None where it is not known."""
    return PEAK_TFLOPS.get(jax.devices()[0].device_kind) if dtype == "bfloat16" else None


def recipe_of(name: str, small: bool = False) -> ml_collections.ConfigDict:
    """Return the config of a recipe without its accumulation of gradients, so that a batch is computed at once."""
    config = getattr(recipes, name)()
    config.grad_accumulation_steps = 1
    return shrunk(config) if small else config


def shrunk(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Return the config with two layers of width 48 and one block in each stage of the ResNet."""
    config.model.encoder.update(dict(num_layers=2, hidden_size=48, num_heads=4, mlp_size=96, vocab_size=2000))
    config.model.region_head.blocks = (1, 1, 1, 1)
    return config


def shape_of(name: str, captions: int | None = None, small: bool = False) -> dict:
    """Return the sizes of a batch of a recipe."""
    shape = SHAPES[name] | (SMALL_SHAPE if small else {})
    return shape | (dict(captions=captions) if captions else {})


def synthetic_batch(config, shape: dict, seed: int = 0) -> Batch:
    """Return a full batch: every element, region and pixel of the shape is real."""
    rng, vocab_size = np.random.default_rng(seed), config.model.encoder.vocab_size
    b, (width, height) = shape["captions"], shape["image"]
    r = shape["boxes"]
    length = max(shape["tokens"] + r, shape["text_tokens"])
    m, k = config.data.max_mlm_targets, config.data.max_mrc_targets
    hidden = rng.random((b, r)) < 0.135
    hidden[:, 0] = False

    def sequence(row):
        none = np.zeros(shape["tokens"], np.int32)
        ids = rng.integers(1000, vocab_size, shape["tokens"])
        caption = pack(ids, none, r, hidden[row], none, length, vocab_size)
        text = rng.integers(1000, vocab_size, shape["text_tokens"])
        none = np.zeros(len(text), np.int32)
        alone = pack(text, none, 0, (), none - 1, length, vocab_size)
        sequences = [caption, alone] if config.losses.text_only else [caption]
        return {name: np.stack([s[name] for s in sequences]) for name in caption}

    rows = [sequence(row) for row in range(b)]
    fields = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    n = fields["token_ids"].shape[1]
    corner, extent = rng.uniform(0, 0.5, (b, r, 2)), rng.uniform(0.1, 0.5, (b, r, 2))
    size = np.array([width, height], np.float32)
    boxes = (np.concatenate([corner, corner + extent], -1) * np.tile(size, 2)).astype(np.float32)
    boxes[:, 0] = [0, 0, width - 1, height - 1]
    image_size = np.tile(size, (b, 1))
    masked = np.sort(rng.random((b, n, shape["tokens"])).argsort(-1)[..., :m], -1).astype(np.int32)
    regions = np.sort(1 + rng.random((b, r - 1)).argsort(-1)[:, :k], -1).astype(np.int32)
    k = regions.shape[1]
    fields.update(
        mlm_positions=masked,
        mlm_labels=rng.integers(1000, vocab_size, masked.shape).astype(np.int32),
        mlm_mask=rng.random(masked.shape) < 0.15 * shape["tokens"] / masked.shape[-1],
        boxes=boxes,
        region_mask=np.ones((b, r), bool),
        region_hidden=hidden,
        image_size=image_size[:, None],
        box_geometry=box_geometry(boxes, image_size).astype(config.compute_dtype),
        mrc_regions=regions,
        mrc_positions=shape["tokens"] + regions,
        mrc_targets=rng.dirichlet(np.ones(config.model.num_region_classes), (b, k)).astype(np.float32),
        mrc_mask=rng.random((b, k)) < 0.15 * r / k,
        relationship=np.ones(b, np.int32),
    )
    if config.data.features == "image":
        canvas = [-(-side // 32) * 32 for side in (height, width)]
        fields["pixels"] = np.zeros((b, 1, *canvas, 3), np.uint8)
        fields["pixels"][:, 0, :height, :width] = rng.integers(0, 256, (b, height, width, 3), np.uint8)
    else:
        fields["region_features"] = rng.random((b, r, config.model.feature_size), np.float32)
    return make_batch(fields, PretrainTargets)


class Opened(NamedTuple):
    """A compiled update with what it reads."""

    step: Callable  # (state, batch) -> (state, report)
    state: Any
    batch: Batch
    config: ml_collections.ConfigDict
    graphdef: Any
    jaxpr: Any  # of the step
    flops: float  # of its matrix products and convolutions
    compile_time: float  # seconds


def open_step(config: ml_collections.ConfigDict, shape: dict, mesh: jax.sharding.Mesh) -> Opened:
    """Compile the update of a recipe for a synthetic batch; call it in a context of the mesh."""
    config.batch_size = shape["captions"] * (2 if config.losses.text_only else 1)
    jax.config.update("jax_default_prng_impl", config.prng_impl)
    tx = optimizer.make_optimizer(config.optimizer, optimizer.learning_rate_schedule(config))
    graphdef, _, shardings, create = create_state(config, PRETRAIN, tx, mesh)
    state, batch = create(), sharding.global_batch(synthetic_batch(config, shape), mesh)
    names = PRETRAIN.active_losses(config, 0)
    static = dict(graphdef=graphdef, task=PRETRAIN, config=config, tx=tx, mesh=mesh, shardings=shardings)
    traced = jitted_step(names, **static).trace(state, batch)
    began = time.perf_counter()
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - began
    jaxpr = traced.jaxpr.jaxpr
    return Opened(compiled, state, batch, config, graphdef, jaxpr, compile_ahead.matmul_flops(jaxpr), seconds)


def processor() -> str:
    """Return the name of the processor and the number of its cores."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{os.cpu_count()} x {model or platform.processor() or platform.machine()}"


def measure(name: str, captions: int | None, args) -> dict:
    config, shape = recipe_of(name, args.small), shape_of(name, captions, args.small)
    config.compute_dtype, config.prng_impl = args.dtype, args.prng
    config.model.encoder.scan_layers = not args.unroll
    mesh = sharding.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        opened = open_step(config, shape, mesh)
        state, times = opened.state, []
        for _ in range(args.steps + 1):
            began = time.perf_counter()
            state, report = opened.step(state, opened.batch)
            jax.block_until_ready(report)
            times.append(time.perf_counter() - began)
    seconds = statistics.median(times[1:])  # the first call allocates memory
    memory = opened.step.memory_analysis()
    result = dict(
        recipe=name,
        dtype=args.dtype,
        captions=shape["captions"],
        compile_s=round(opened.compile_time, 1),
        step_ms=round(1e3 * seconds, 1),
        fastest_ms=round(1e3 * min(times[1:]), 1),
        samples_per_sec=round(config.batch_size / seconds, 2),
        tflop_per_step=round(opened.flops / 1e12, 3),
        tflops=round(opened.flops / seconds / 1e12, 3),
        temporary_gb=round(memory.temp_size_in_bytes / 1e9, 2),
        state_gb=round(memory.argument_size_in_bytes / 1e9, 2),
    )
    if peak := args.peak_tflops or peak_tflops(args.dtype):
        result["share_of_peak"] = round(opened.flops / seconds / 1e12 / peak / jax.device_count(), 4)
    return result


def measured_if_it_fits(name: str, captions: int | None, args) -> dict:
    try:
        return measure(name, captions, args)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        captions = shape_of(name, captions)["captions"]
        return dict(recipe=name, dtype=args.dtype, captions=captions, failed=OUT_OF_MEMORY)


def positive_numbers(text: str) -> list[int]:
    """Parse "8,16" of a command line."""
    numbers = [int(word) for word in text.split(",")]
    if min(numbers) < 1:
        raise ValueError(text)
    return numbers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=list(SHAPES), help=f"recipe (default: {', '.join(BASE)})")
    parser.add_argument(
        "--captions", type=positive_numbers, default=[None], metavar="N,...",
        help="captions per batch, one line for each (default: see the table in this file)",
    )  # fmt: skip
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="dtype of activations")
    parser.add_argument("--prng", default="rbg", choices=("rbg", "threefry2x32"), help="random generator of dropout")
    parser.add_argument("--unroll", action="store_true", help="unroll the layers instead of scanning them")
    parser.add_argument("--steps", type=int, default=5, help="timed steps; the median is reported")
    parser.add_argument("--peak_tflops", type=float, help="peak of one device (default: of its name, in bfloat16)")
    parser.add_argument("--small", action="store_true", help="a toy size, to see that everything runs")
    args = parser.parse_args()
    device = jax.devices()[0]
    print(f"{jax.device_count()} x {device.device_kind} ({processor()}), jax {jax.__version__}")
    for name in [args.config] if args.config else BASE:
        for captions in args.captions:
            print(json.dumps(measured_if_it_fits(name, captions, args)), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory of the process: {peak:.2f} GB")


if __name__ == "__main__":
    main()
