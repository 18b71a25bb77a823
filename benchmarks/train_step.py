"""Measure the time of one training step on the local device.

    python benchmarks/train_step.py                     # base_prec and base_e2e in the shapes of shapes.py
    python benchmarks/train_step.py --config=base_e2e --captions=8,16,32 --dtype=bfloat16
    python benchmarks/train_step.py --architectures=all     # or names: lxmert,uniter

The step is the update of the recipe (forward, backward, clipping, AdamW, dropout on) on synthetic batches that stay on
the device. FLOP count the matrix products and convolutions of the traced step, without recomputation. A batch that does
not fit in the memory of the device is a line with `failed`.

With `--architectures` it is the update of base_prec with the base model of each architecture: the same texts, boxes and
losses (regions are classified where the architecture hides them), in the layout that the data pipeline gives the
architecture. Steps of VL-BERT and of the other model take turns, so that the speed of the machine is the same for both.
`ratio` is the time of a step over the time of its FLOP at the rate of VL-BERT's step in the same turn: the median of
the turns; `ratios` are the least and the largest. For vlbert, which takes turns with itself, they show the spread of
the measurement. At most two models are in memory.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # the script also runs without an installation

from benchmarks.predict import invented_tokens  # noqa: E402
from benchmarks.shapes import BASE, SHAPES, fit_to_shape, recipe_of, shape_of  # noqa: E402
from vlbert_jax.batch import Batch, Example, make_batch  # noqa: E402
from vlbert_jax.data.examples import usual_orientation  # noqa: E402
from vlbert_jax.data.masking import draw_samples  # noqa: E402
from vlbert_jax.data.streams import stacked_evenly  # noqa: E402
from vlbert_jax.data.tokenizer import Tokenizer, load_tokenizer  # noqa: E402
from vlbert_jax.memory import keep_freed_memory  # noqa: E402
from vlbert_jax.model.architectures import ARCHITECTURES  # noqa: E402
from vlbert_jax.tasks.pretrain import task as pretrain  # noqa: E402
from vlbert_jax.tasks.pretrain.batches import with_text  # noqa: E402
from vlbert_jax.tasks.pretrain.examples import CaptionLayout, caption_example, text_example, text_words  # noqa: E402
from vlbert_jax.tasks.pretrain.targets import PretrainTargets  # noqa: E402
from vlbert_jax.training import compile_ahead, optimizer, sharding  # noqa: E402
from vlbert_jax.training.state import create_state  # noqa: E402
from vlbert_jax.training.step import jitted_step  # noqa: E402

PRETRAIN = pretrain.PretrainTask()

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


@functools.cache
def synthetic_tokenizer(vocab_size: int) -> Tokenizer:
    """Return a tokenizer with a vocabulary of invented tokens."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "vocab.txt"
        file.write_text("\n".join(invented_tokens(vocab_size)) + "\n")
        return load_tokenizer(str(file), vocab_size)


def synthetic_batch(config: ml_collections.ConfigDict, shape: dict, seed: int = 0) -> Batch:
    """Return a batch of invented captions, images and texts, made by the functions of the data pipeline.

    Every text element, region and pixel of the shape is real; words and regions are masked at random. The layout is
    that of the config's architecture, whose sizes `fit_to_shape` has set.
    """
    rng, regions, (width, height) = np.random.default_rng(seed), shape["boxes"] - 1, shape["image"]
    tokenizer = synthetic_tokenizer(config.model.encoder.vocab_size)
    layout = CaptionLayout.of(config, usual_orientation(config))
    layout = dataclasses.replace(layout, class_names="")  # the caption fills the text, without names of regions
    words = [token for token in invented_tokens(tokenizer.vocab_size) if token.startswith("word")]

    def record() -> dict:
        corner, extent = rng.uniform(0, 0.5, (regions, 2)), rng.uniform(0.1, 0.5, (regions, 2))
        boxes = np.concatenate([corner, corner + extent], -1) * np.tile([width, height], 2)
        fields = dict(
            caption=rng.choice(words, shape["tokens"] - 2).tolist(),  # and [CLS] and [SEP]
            image_size=np.array([width, height], np.int32),
            boxes=boxes.astype(np.float32),
            class_scores=rng.dirichlet(np.ones(layout.num_classes), regions).astype(np.float32),
        )
        if layout.precomputed:
            return fields | dict(features=rng.random((regions, layout.feature_size), np.float32))
        return fields | dict(image=rng.integers(0, 256, (height, width, 3), np.uint8))

    def caption() -> Example:
        draws = draw_samples(rng, layout.num_draws, regions, tokenizer.ordinary_ids)
        return caption_example(record(), draws, tokenizer, layout)

    def text() -> Example:
        draws = draw_samples(rng, layout.num_draws, 0, tokenizer.ordinary_ids)
        line = dict(text=" ".join(rng.choice(words, shape["text_tokens"])))
        return text_example(text_words([line], 0, tokenizer, layout), draws, tokenizer, layout)

    fields = stacked_evenly([caption() for _ in range(shape["captions"])])
    if config.losses.text_only:
        fields = with_text(fields, stacked_evenly([text() for _ in range(shape["captions"])]))
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
    """Compile the update of a recipe, fitted to the shape, for a synthetic batch; call it in a context of the mesh."""
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


def open_recipe(config: ml_collections.ConfigDict, shape: dict, args: argparse.Namespace) -> Opened:
    """Compile the update of a recipe under the options of the command line."""
    config.compute_dtype, config.prng_impl = args.dtype, args.prng
    config.model.encoder.scan_layers = not args.unroll
    fit_to_shape(config, shape)
    mesh = sharding.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        return open_step(config, shape, mesh)


def updates_of(opened: Opened) -> Callable[[], None]:
    """Return a function that makes one update, the next one at every call, and waits for it.

    The function owns the state of `opened`, whose memory the updates reuse.
    """
    state = opened.state

    def update() -> None:
        nonlocal state
        state, report = opened.step(state, opened.batch)
        jax.block_until_ready(report)

    return update


def timed_step(opened: Opened) -> Callable[[], float]:
    """Return a function that makes one update, as `updates_of`, and returns its seconds."""
    update = updates_of(opened)

    def step() -> float:
        began = time.perf_counter()
        update()
        return time.perf_counter() - began

    step()  # the first call allocates memory
    return step


def measure(name: str, shape: dict, args: argparse.Namespace) -> dict:
    """Return the figures of a recipe."""
    config = recipe_of(name, args.small)
    opened = open_recipe(config, shape, args)
    step = timed_step(opened)
    times = [step() for _ in range(args.steps)]
    seconds = statistics.median(times)
    memory = opened.step.memory_analysis()
    result = dict(
        recipe=name,
        dtype=args.dtype,
        captions=shape["captions"],
        compile_s=round(opened.compile_time, 1),
        step_ms=round(1e3 * seconds, 1),
        fastest_ms=round(1e3 * min(times), 1),
        samples_per_sec=round(config.batch_size / seconds, 2),
        tflop_per_step=round(opened.flops / 1e12, 3),
        tflops=round(opened.flops / seconds / 1e12, 3),
        temporary_gb=round(memory.temp_size_in_bytes / 1e9, 2),
        state_gb=round(memory.argument_size_in_bytes / 1e9, 2),
    )
    if peak := args.peak_tflops or peak_tflops(args.dtype):
        result["share_of_peak"] = round(opened.flops / seconds / 1e12 / peak / jax.device_count(), 4)
    return result


def measured_if_it_fits(name: str, shape: dict, args: argparse.Namespace) -> dict:
    """Return the figures of a recipe, or a row with `failed` where the device has too little memory."""
    try:
        return measure(name, shape, args)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return dict(recipe=name, dtype=args.dtype, captions=shape["captions"], failed=OUT_OF_MEMORY)


def positive_numbers(text: str) -> list[int]:
    """Parse "8,16" of a command line."""
    numbers = [int(word) for word in text.split(",")]
    if min(numbers) < 1:
        raise ValueError(text)
    return numbers


def architecture_config(name: str, small: bool = False) -> ml_collections.ConfigDict:
    """Return base_prec with the model of an architecture, and the losses of base_prec that this model has."""
    config = recipe_of("base_prec", small)
    config.model.architecture = name
    config.losses.mrc = ARCHITECTURES[name].hidden != "none"
    return config


def open_architecture(name: str, args: argparse.Namespace) -> Opened:
    """Compile the update of an architecture under the options of the command line."""
    shape = shape_of("base_prec", args.captions[0], args.small)
    return open_recipe(architecture_config(name, args.small), shape, args)


def compare(name: str, reference: Opened, reference_step: Callable[[], float], args: argparse.Namespace) -> dict:
    """Return the figures of an architecture, whose steps take turns with those of the reference, VL-BERT."""
    if name == reference.config.model.architecture:
        opened, step = reference, reference_step
    else:
        opened = open_architecture(name, args)
        step = timed_step(opened)
    times = np.array([[reference_step(), step()] for _ in range(args.steps)])
    ratios = times[:, 1] / times[:, 0] * reference.flops / opened.flops
    memory = opened.step.memory_analysis()
    return dict(
        architecture=name,
        tflop_per_step=round(opened.flops / 1e12, 4),
        step_ms=round(1e3 * float(np.median(times[:, 1])), 1),
        vlbert_ms=round(1e3 * float(np.median(times[:, 0])), 1),
        ratio=round(float(np.median(ratios)), 3),
        ratios=[round(float(edge), 3) for edge in (ratios.min(), ratios.max())],
        compile_s=round(opened.compile_time, 1),
        temporary_gb=round(memory.temp_size_in_bytes / 1e9, 2),
        state_gb=round(memory.argument_size_in_bytes / 1e9, 2),
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=list(SHAPES), help=f"recipe (default: {', '.join(BASE)})")
    parser.add_argument("--architectures", help="all, or names with commas: base_prec with their models")
    parser.add_argument(
        "--captions", type=positive_numbers, default=[None], metavar="N,...",
        help="captions per batch, one line for each (default: see shapes.py)",
    )  # fmt: skip
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="dtype of activations")
    parser.add_argument("--prng", default="rbg", choices=("rbg", "threefry2x32"), help="random generator of dropout")
    parser.add_argument("--unroll", action="store_true", help="unroll the layers instead of scanning them")
    parser.add_argument("--steps", type=int, default=5, help="timed steps; the median is reported")
    parser.add_argument("--peak_tflops", type=float, help="peak of one device (default: of its name, in bfloat16)")
    parser.add_argument("--small", action="store_true", help="a toy size, to see that everything runs")
    args = parser.parse_args(argv)
    names = (args.architectures or "").split(",") if args.architectures != "all" else list(ARCHITECTURES)
    if args.architectures is not None:
        if wrong := set(names) - ARCHITECTURES.keys():
            known = ", ".join(ARCHITECTURES)
            parser.error(f"--architectures has {', '.join(map(repr, sorted(wrong)))}; it can be all, or of {known}")
        if args.config not in (None, "base_prec"):
            parser.error(f"--architectures measures base_prec: leave out --config={args.config}")
        if len(args.captions) > 1:
            parser.error("--architectures measures one number of captions: give --captions one number")
    keep_freed_memory()  # as the commands do
    device = jax.devices()[0]
    print(f"{jax.device_count()} x {device.device_kind} ({processor()}), jax {jax.__version__}")
    if args.architectures is not None:
        reference = open_architecture("vlbert", args)
        step = timed_step(reference)
        for name in names:
            print(json.dumps(compare(name, reference, step, args)), flush=True)
    else:
        for name in [args.config] if args.config else BASE:
            for captions in args.captions:
                shape = shape_of(name, captions, args.small)
                print(json.dumps(measured_if_it_fits(name, shape, args)), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory of the process: {peak:.2f} GB")


if __name__ == "__main__":
    main()
