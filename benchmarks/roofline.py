"""Show where the time of a training step goes, and what its matrix products and convolutions alone would take.

    python benchmarks/roofline.py [--recipes=base_prec,base_e2e,vqa] [--captions=4] [--dtype=float32] [--steps=3]
    python benchmarks/roofline.py --trace_only           # without part 1, which compiles a program for each size

In the same minutes, on the local device, for each recipe in the shapes of `shapes.py`; for the name of an architecture,
base_prec with its base model; for vqa, the answers to a question about an image of 900x600 with 36 boxes:

1. Each matrix product and convolution of the step is timed alone, at the size and in the form in which it occurs. Their
   sum is the time that the step would take if it did nothing else; the rate is that of the machine at these sizes.
   Those of vqa are counted without padding, which the step does compute. A convolution that a CPU computes by tiles
   (vlbert_jax/model/winograd.py) counts as a convolution, so a step can take less than their sum.
2. The step is timed, with its page faults and the time that the system spends (it clears the pages).
3. One step is traced. Every operation of the compiled program is of one kind, and of the forward pass, the backward
   pass, or the optimizer, by the operations of its fusion and by the name that JAX gives it. The table has the time of
   all threads in each kind. XLA runs operations at the same time, and a part of an operation may wait for a thread, so
   the shares of a column add up to the whole, and the seconds to more than the time of the step.

The output is Markdown; the last line is a JSON object with the same figures.
"""

import argparse
import collections
import glob
import json
import math
import platform
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vlbert_jax.memory import keep_freed_memory  # noqa: E402

keep_freed_memory()  # as the commands do, before the first array

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.extend import core  # noqa: E402

from benchmarks import question, train_step  # noqa: E402
from benchmarks.shapes import BASE, SHAPES, fit_to_shape, recipe_of, shape_of  # noqa: E402
from vlbert_jax.batch import make_batch  # noqa: E402
from vlbert_jax.model.architectures import ARCHITECTURES  # noqa: E402
from vlbert_jax.training import compile_ahead, sharding  # noqa: E402

PRODUCTS = ("dot_general", "conv_general_dilated")
# Kind -> operations of HLO, one of which a fusion of that kind has; the first kind that fits counts.
KINDS = {
    "matrix products": {"dot"},
    "convolutions": {"convolution"},
    "random bits": {"rng-bit-generator", "xor", "shift-right-logical"},
    "gathers, scatters": {"gather", "scatter", "sort"},
    "softmax, losses": {"exponential", "log", "log-plus-one", "exponential-minus-one"},
    "GELU": {"erf"},
    "norms, sums": {"reduce", "reduce-window", "rsqrt", "sqrt"},
    "copies": {
        *("copy", "transpose", "broadcast", "slice", "dynamic-slice", "dynamic-update-slice", "concatenate", "pad"),
    },
}
# What a call of a library of a GPU computes, by the name of the call.
LIBRARIES = (("conv", "convolution"), ("gemm|matmul|fmha", "dot"))
ANSWERS = "vqa"
ELEMENTWISE = "elementwise"
ARITHMETIC = {"add", "subtract", "multiply", "divide", "select", "compare", "maximum", "minimum", "negate", "convert"}
PARTS = ("forward", "backward", "optimizer")


def products_of(jaxpr, times: int = 1) -> Iterator[tuple]:
    """Yield (equation, runs) of each matrix product and convolution; of a `cond`, those of its costliest branch."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in PRODUCTS:
            yield equation, times
            continue
        inner = list(core.jaxprs_in_params(equation.params))
        if equation.primitive.name == "cond":
            inner = [max(inner, key=compile_ahead.matmul_flops)]
        for part in inner:
            yield from products_of(part, times * equation.params.get("length", 1))


def seconds_of(call: Callable, repeats: int = 3) -> float:
    """Return the median of some calls; the first one, which is not counted, compiles or allocates memory."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def products_alone(jaxpr) -> dict[str, dict]:
    """Return, for products and for convolutions, their FLOP and the seconds that they take one by one."""
    runs, examples = collections.Counter(), {}
    for equation, times in products_of(jaxpr):
        key = (equation.primitive.name, *(str(v.aval) for v in equation.invars), str(equation.params))
        runs[key] += times
        examples[key] = equation
    found = {name: dict(flops=0.0, seconds=0.0, sizes=0) for name in PRODUCTS}
    rng = np.random.default_rng(0)
    for key, equation in examples.items():
        arrays = [jax.numpy.asarray(rng.random(v.aval.shape, np.float32), v.aval.dtype) for v in equation.invars]
        program = jax.jit(lambda *arrays, equation=equation: equation.primitive.bind(*arrays, **equation.params))
        entry = found[key[0]]
        entry["flops"] += runs[key] * compile_ahead.matmul_flops(jax.make_jaxpr(program)(*arrays).jaxpr)
        entry["seconds"] += runs[key] * seconds_of(lambda program=program, arrays=arrays: program(*arrays))
        entry["sizes"] += 1
    return found


def operations_of(program: str) -> dict[str, tuple[str, str]]:
    """Return (kind, part) of every instruction of an optimized HLO program."""
    inside, about, computation = collections.defaultdict(set), {}, ""
    for line in program.splitlines():
        if start := re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line):
            computation = start[1]
        if not (found := re.match(r"\s*(?:ROOT )?%?([\w.-]+) = (?:\(.*?\)|\S+) ([\w-]+)\(", line)):
            continue
        name, operation = found.groups()
        if library := re.search(r'custom_call_target="([^"]*)"', line):
            operation = next((kind for words, kind in LIBRARIES if re.search(words, library[1])), operation)
        called = re.findall(r"(?:calls|to_apply)=%?([\w.-]+)", line)
        inside[computation].add(operation)
        inside[computation].update(f"%{other}" for other in called)
        path = re.search(r'op_name="([^"]*)"', line)
        about[name] = operation, called, path[1] if path else ""

    def all_inside(computation: str, seen: frozenset = frozenset()) -> set[str]:
        found = set()
        for operation in inside[computation]:
            if not operation.startswith("%"):
                found.add(operation)
            elif operation not in seen:
                found |= all_inside(operation[1:], seen | {operation})
        return found

    def kind_of(operations: set[str]) -> str:
        for kind, members in KINDS.items():
            if kind == "copies" and operations & ARITHMETIC:
                return ELEMENTWISE
            if operations & members:
                return kind
        return ELEMENTWISE

    # Without a gradient, everything is the forward pass.
    kinds, rest = {}, "optimizer" if "jvp(" in program else "forward"
    for name, (operation, called, path) in about.items():
        operations = {operation}.union(*(all_inside(other) for other in called))
        part = "backward" if "transpose(" in path else "forward" if "jvp(" in path else rest
        kinds[name] = kind_of(operations), part
    return kinds


def traced_times(program: str, update: Callable) -> collections.Counter:
    """Return the seconds of all threads in each (kind, part) of one update, whose optimized HLO is `program`."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            update()
        data = jax.profiler.ProfileData.from_file(glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)[0])
    kinds, times = operations_of(program), collections.Counter()
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                operation = dict(event.stats).get("hlo_op", "while")  # on a GPU the event has the name of the kernel
                if not operation.startswith("while"):
                    times[kinds.get(operation, (ELEMENTWISE, "optimizer"))] += event.duration_ns / 1e9
    return times


class Program(NamedTuple):
    """What is measured: an update, or answers to a question."""

    jaxpr: Any  # its matrix products and convolutions are counted
    hlo: str  # optimized
    run: Callable[[], None]  # runs it once, and waits for it


def program_of(name: str, args: argparse.Namespace) -> Program:
    """Return the program of a recipe with what it reads."""
    if name == ANSWERS:
        return answers_program(args)
    if name in ARCHITECTURES:
        config, shape = train_step.architecture_config(name, args.small), "base_prec"
    else:
        config, shape = recipe_of(name, args.small), name
    shape = shape_of(shape, args.captions, args.small)
    config.compute_dtype = args.dtype
    fit_to_shape(config, shape)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        opened = train_step.open_step(config, shape, mesh)
    return Program(opened.jaxpr, opened.step.as_text(), train_step.updates_of(opened))


def answers_program(args: argparse.Namespace) -> Program:
    """Return the CNN and the encoder of a question about an image, which a predictor runs one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        asked = question.Question(Path(folder), question.recipe_of(args.small, args.dtype))
    predictor = asked.predictor
    batch, needed = (
        make_batch(arrays, predictor.task.targets)
        for arrays in (asked.example, question.without_padding(asked.example))
    )

    @jax.jit
    def answers(state, batch):
        seen = predictor._appearance.func(state, batch)
        return predictor._predict.func(state, batch.replace(pixels=None, region_features=seen))

    state = predictor._state
    compiled = answers.lower(state, batch).compile()
    jaxpr = answers.trace(state, needed).jaxpr.jaxpr
    return Program(jaxpr, compiled.as_text(), lambda: jax.block_until_ready(compiled(state, batch)))


def measure(name: str, args) -> dict:
    """Return the figures of a recipe and print its tables."""
    jaxpr, hlo, run = program_of(name, args)
    alone = {} if args.trace_only else products_alone(jaxpr)
    run()
    before = resource.getrusage(resource.RUSAGE_SELF)
    seconds = seconds_of(run, args.steps)
    after = resource.getrusage(resource.RUSAGE_SELF)
    times = traced_times(hlo, run)
    count = args.steps + 1
    needed = sum(entry["seconds"] for entry in alone.values())
    facts = dict(
        recipe=name,
        step_s=round(seconds, 5),
        products_alone_s=round(needed, 3) if alone else None,
        share=round(needed / seconds, 3) if alone else None,
        tflop=round(compile_ahead.matmul_flops(jaxpr) / 1e12, 4),
        gflops={name: _rate(entry) for name, entry in alone.items()},
        page_faults=round((after.ru_minflt - before.ru_minflt) / count),
        system_s=round((after.ru_stime - before.ru_stime) / count, 3),
        user_s=round((after.ru_utime - before.ru_utime) / count, 3),
    )
    print_tables(facts, alone, times)
    return facts | dict(thread_seconds={f"{kind}, {part}": round(t, 6) for (kind, part), t in sorted(times.items())})


def _rate(entry: dict) -> float | None:
    return round(entry["flops"] / entry["seconds"] / 1e9, 1) if entry["seconds"] else None


def print_tables(facts: dict, alone: dict, times: collections.Counter) -> None:
    print(f"\n## {facts['recipe']}\n")
    print(f"A step takes {facts['step_s']:.3g} s.")
    if alone:
        share = f"{facts['products_alone_s']:.3g} s ({100 * facts['share']:.0f} %)"
        print(f"Its products and convolutions alone take {share}.")
    print(f"{facts['page_faults']:,} page faults and {facts['system_s']:.2f} s of the system in each step.\n")
    if alone:
        print("| alone | sizes | TFLOP | seconds | GFLOP/s |\n|---|---|---|---|---|")
    for name, entry in alone.items():
        if entry["sizes"]:
            cells = [name, entry["sizes"], f"{entry['flops'] / 1e12:.3f}", f"{entry['seconds']:.2f}", _rate(entry)]
            print(f"| {' | '.join(map(str, cells))} |")
    total = math.fsum(times.values())
    digits = 2 if total > 1 else 5
    print(f"\n| seconds of all threads, {total:.{digits}f} | {' | '.join(PARTS)} | share |\n|---|---|---|---|---|")
    for kind in (*KINDS, ELEMENTWISE):
        row = [times[kind, part] for part in PARTS]
        print(f"| {kind} | {' | '.join(f'{t:.{digits}f}' for t in row)} | {100 * sum(row) / total:.1f} % |")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=",".join((*BASE, ANSWERS)), help="(default: %(default)s)")
    parser.add_argument("--captions", type=int, help="captions per batch (default: see shapes.py)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="dtype of activations")
    parser.add_argument("--steps", type=int, default=3, help="timed steps; the median is reported")
    parser.add_argument("--trace_only", action="store_true", help="do not time the products alone")
    parser.add_argument("--small", action="store_true", help="a toy size, to see that everything runs")
    args = parser.parse_args(argv)
    names = args.recipes.split(",")
    known = (*SHAPES, ANSWERS, *ARCHITECTURES)
    if wrong := set(names) - set(known):
        parser.error(f"--recipes has {', '.join(sorted(wrong))}; it can be {', '.join(known)}")
    print(f"{jax.devices()[0].device_kind}, {train_step.processor()}, jax {jax.__version__}, {platform.platform()}")
    print(json.dumps([measure(name, args) for name in names]))


if __name__ == "__main__":
    main()
