"""Compile the training step of a recipe for machines that need not exist here (`--mode=compile`).

The TPU compiler of XLA (libtpu, the extra `tpu`) runs on any Linux machine and accepts a slice by its
name, so memory and collectives are those of the real program. FLOP are counted, not measured; times are
predictions.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping

import jax
import ml_collections
from jax.extend import core

from vlbert_jax.tasks.base import Task, Updates
from vlbert_jax.training import optimizer, sharding
from vlbert_jax.training.state import create_state
from vlbert_jax.training.step import jitted_step

UTILIZATION = 0.4  # share of the peak of the chips, in predictions
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of an accelerator, per chip."""

    kind: str  # name of the device in JAX
    memory: int  # GiB
    tflops: int  # peak, bfloat16
    options: tuple[tuple[str, str], ...] = ()  # options of the compiler that select the chip


# docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, November 2026.
# A v4 chip is one device (megacore), as on a real machine.
CHIPS = {
    "v4": Chip("TPU v4", 32, 275, (("chip_config_name", "megacore"),)),
    "v5e": Chip("TPU v5 lite", 16, 197),
    "v5p": Chip("TPU v5", 95, 459),
    "v6e": Chip("TPU v6 lite", 32, 918),
}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Figures of a compiled training step. Bytes are per device, FLOP of a whole update."""

    devices: int
    kind: str
    mesh: dict[str, int]
    memory: dict[str, int]  # `state`, `batch`, `temporary`, `program`; empty where the compiler ran out of memory
    needed: int  # total bytes
    flops: float  # of matrix products and convolutions with every region real, without recomputation
    executed_flops: float  # with recomputation
    collectives: Counter  # kind -> number per update
    reduced: int  # bytes that the all-reduces of an update return
    limit: int = 0  # bytes that a local device reports; 0 = not reported

    @property
    def chip(self) -> Chip | None:
        return next((chip for chip in CHIPS.values() if chip.kind == self.kind), None)

    @property
    def room(self) -> float:
        """Bytes of a device; infinity if unknown."""
        return float(self.chip.memory * GIB if self.chip else self.limit or math.inf)

    @property
    def fits(self) -> bool:
        return bool(self.memory) and self.needed <= self.room

    @property
    def step_seconds(self) -> float:
        """Seconds predicted from compute alone, at UTILIZATION; NaN for a device that is not in CHIPS."""
        peak = self.chip.tflops * 1e12 * self.devices * UTILIZATION if self.chip else math.nan
        return self.executed_flops / peak


def devices_of(topology: str, num_slices: int) -> list:
    """Return the devices of a topology, or of this machine where `topology` is empty.

    Args:
        topology: Name such as v5e:16x16.
        num_slices: Number of such slices.

    Raises:
        ValueError: There is no such topology, or libtpu is missing.
    """
    if not topology:
        if num_slices != 1:
            raise ValueError(f"config.num_slices is {num_slices} without a config.topology to have slices of")
        return jax.devices()
    generation, _, shape = topology.partition(":")
    if generation not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", shape) or num_slices < 1:
        raise ValueError(
            f"config.topology={topology!r}, config.num_slices={num_slices}: a topology is one of {', '.join(CHIPS)}, a "
            "colon and the chips along each side, such as v5e:16x16 or v4:4x4x4; slices are 1 or more"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"compiling for {topology} requires libtpu, which is not installed: pip install 'vlbert_jax[tpu]'"
        )
    from jax.experimental import topologies

    # libtpu must only compile: it must neither look for chips nor lock them.
    os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    jax.config.update("jax_platforms", "cpu")
    options = dict(CHIPS[generation].options) | (dict(num_slices=num_slices) if num_slices > 1 else {})
    if topology in ("v5e:2x4", "v6e:2x4"):  # one machine (documentation above), which libtpu takes for two
        options["chips_per_host_bounds"] = [2, 4, 1]
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"config.topology={topology!r}: {error}") from error


def compile_step(config: ml_collections.ConfigDict, task: Task, devices: list, name: str = "") -> Compiled:
    """Compile an update that a run would make; this needs no data and no memory for the state.

    Args:
        config: Config of the run.
        task: Task of `config.task`.
        devices: Devices of the run.
        name: Which of `Task.updates`.

    Raises:
        ValueError: Mesh or batch do not divide the devices.
    """
    mesh, (batch, names, _) = sharding.make_mesh(config.mesh, devices), task.updates(config)[name]
    sharding.check_divides(batch.token_ids.shape[0], mesh)

    def traced(config: ml_collections.ConfigDict):
        tx = optimizer.make_optimizer(config.optimizer, optimizer.learning_rate_schedule(config))
        graphdef, abstract, shardings, _ = create_state(config, task, tx, mesh)
        static = dict(graphdef=graphdef, task=task, config=config, tx=tx, mesh=mesh, shardings=shardings)
        with jax.set_mesh(mesh):
            return jitted_step(names, **static).trace(abstract, batch), abstract, shardings

    step, abstract, shardings = traced(config)
    flops = executed = matmul_flops(step.jaxpr.jaxpr)
    if config.model.encoder.remat != "none" or config.model.region_head.remat:
        plain = config.copy_and_resolve_references()
        plain.model.encoder.remat, plain.model.region_head.remat = "none", False
        flops = matmul_flops(traced(plain)[0].jaxpr.jaxpr)
    known = dict(devices=len(devices), kind=devices[0].device_kind, mesh=dict(mesh.shape), flops=flops)
    if devices[0].platform != "tpu":
        known["limit"] = (devices[0].memory_stats() or {}).get("bytes_limit", 0)
    state = sharding.bytes_per_device(abstract, shardings)
    try:
        compiled = step.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        # The message has the bytes of the whole program, or of its temporaries alone.
        used = re.search(r"[Uu]sed ([\d.]+)([KMG])|temporaries \(([\d.]+)([KMG])\)", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or not used:
            raise
        number, unit = used[1] or used[3], used[2] or used[4]
        needed = int(float(number) * {"K": 2**10, "M": 2**20, "G": 2**30}[unit]) + (0 if used[1] else state)
        return Compiled(**known, memory={}, needed=needed, executed_flops=executed, collectives=Counter(), reduced=0)
    analysis = compiled.memory_analysis()
    memory = dict(
        state=state,
        batch=analysis.argument_size_in_bytes - state,
        temporary=analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        program=analysis.generated_code_size_in_bytes,
    )
    collectives, reduced = count_collectives(compiled.as_text())
    return Compiled(
        **known, memory=memory, needed=sum(memory.values()), executed_flops=executed, collectives=collectives,
        reduced=reduced,
    )  # fmt: skip


def run(config: ml_collections.ConfigDict, task: Task) -> int:
    """Print what a run would need on `config.topology`; return 0, or raise ValueError if it does not fit."""
    devices, kinds, found = devices_of(config.topology, config.num_slices), task.updates(config), {}
    for name, kind in kinds.items():
        found[name] = compile_step(config, task, devices, name)
        heading = [f"updates of {name}: {kind.number:,} of {config.total_steps:,}"] if name else []
        print("\n".join([*heading, *described(found[name], config, kind.number)]), flush=True)
    largest = max(found, key=lambda name: found[name].needed)
    if len(found) > 1:
        print("\n".join(_together(found, kinds, largest)))
    if not found[largest].fits:
        smaller = ", or ".join(remedies(found[largest], config, kinds[largest].batch.token_ids.shape[0]))
        which = f" for updates of {largest}" if largest else ""
        raise ValueError(
            f"does not fit: {found[largest].needed / GIB:.1f} GiB per device{which}. Smaller with {smaller}"
        )
    return 0


def _together(found: Mapping[str, Compiled], kinds: Mapping[str, Updates], largest: str) -> Iterator[str]:
    """Yield the lines about updates of several kinds together."""
    yield "all updates"
    yield f"memory       {found[largest].needed / GIB:.2f} GiB per device, by updates of {largest}, which need the most"
    seconds = sum(found[name].step_seconds * kind.number for name, kind in kinds.items())
    if math.isfinite(seconds):
        hours, devices = seconds / 3600, found[largest].devices
        yield f"time         predicted {hours:.3g} hours of these devices, {hours * devices:.4g} chip-hours"


def described(found: Compiled, config: ml_collections.ConfigDict, updates: int) -> Iterator[str]:
    """Yield the lines to print about a number of updates."""
    mesh = " x ".join(f"{name} {size}" for name, size in found.mesh.items())
    yield f"devices      {found.devices} x {found.kind}, {mesh}"
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in found.memory.items()) or "the compiler gave up"
    room = f" of {found.room / GIB:.4g}" if found.room < math.inf else ""
    yield f"memory       {found.needed / GIB:.2f}{room} GiB per device: {parts}"
    again = f"; {found.executed_flops / 1e12:.4g} with recomputation" if found.executed_flops > found.flops else ""
    yield (
        f"compute      {found.flops / 1e12:.4g} TFLOP per update, {found.flops / 1e12 / config.batch_size:.3g} per "
        f"unit of batch_size, every region taken for real{again}"
    )
    if found.memory:
        counts = ", ".join(f"{kind} {n}" for kind, n in found.collectives.items()) or "none"
        yield f"collectives  {counts} per update; all-reduces give {found.reduced / 1e9:.3g} GB"
    if found.chip is None:
        yield f"time         no prediction: the peak of {found.kind!r} is not known here"
        return
    hours = found.step_seconds * updates / 3600
    yield (
        f"time         predicted {found.step_seconds:.3g} s per update at {UTILIZATION:.0%} of {found.chip.tflops} "
        f"TFLOP/s per chip; {updates:,} updates: {hours:.3g} hours of these devices, "
        f"{hours * found.devices:.4g} chip-hours"
    )


def remedies(found: Compiled, config: ml_collections.ConfigDict, examples: int) -> Iterator[str]:
    """Yield flags that reduce the memory per device for a batch of `examples`, the cheapest first."""
    parts = 2 * config.grad_accumulation_steps
    if examples % (parts * found.mesh["data"] * found.mesh["fsdp"]) == 0:
        yield f"--config.grad_accumulation_steps={parts}"
    ways = math.gcd(found.mesh["data"] // config.num_slices, 8)
    if found.mesh["fsdp"] == 1 and ways > 1:
        data = f" --config.mesh.data={found.mesh['data'] // ways}" if config.mesh.data != -1 else ""
        yield f"--config.mesh.fsdp={ways}{data} (parameters and moments divided)"
    if config.data.features == "image" and not config.model.region_head.remat:
        yield "--config.model.region_head.remat=True"
    if config.model.encoder.remat != "full":
        yield "--config.model.encoder.remat=full"
    yield "a smaller --config.batch_size, or more devices"


# --- Counting -------------------------------------------------------------------------------------------------------


def matmul_flops(jaxpr: core.Jaxpr) -> float:
    """Return the FLOP of the matrix products and convolutions of a jaxpr.

    A loop counts every iteration, a `cond` its most expensive branch. What every device computes separately
    (`shard_map`) counts for all of them.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        inner = [matmul_flops(j) for j in core.jaxprs_in_params(equation.params)]
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape  # pyright: ignore[reportAttributeAccessIssue]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)  # pyright: ignore[reportAttributeAccessIssue]
        elif equation.primitive.name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]  # pyright: ignore[reportAttributeAccessIssue]
            per_output = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * per_output  # pyright: ignore[reportAttributeAccessIssue]
        elif equation.primitive.name == "cond":
            total += max(inner)
        elif equation.primitive.name == "shard_map":
            sizes = equation.params["mesh"].shape
            axes = equation.params.get("newly_manual_axes", equation.params.get("manual_axes"))  # JAX 0.10.2, before
            total += sum(inner) * math.prod(sizes[name] for name in axes)
        else:
            total += sum(inner) * equation.params.get("length", 1)
    return total


def count_collectives(program: str) -> tuple[Counter, int]:
    """Return kind -> number of runs in an optimized HLO program, and the bytes that its all-reduces return.

    A loop counts every iteration, a conditional every branch. The figures are per device.
    """
    kinds = "|".join(COLLECTIVES)
    bodies, name = {}, ""
    for line in program.splitlines():
        if start := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            name = "ENTRY" if start[1] else start[2]
        bodies.setdefault(name, []).append(line)
    counts, reduced = Counter(), 0

    def visit(name: str, times: int):
        nonlocal reduced
        for line in bodies.get(name, ()):
            if found := re.search(rf" = (.*?) ({kinds})(-start)?\(", line):
                counts[found[2]] += times
                reduced += times * _bytes(found[1]) * (found[2] == "all-reduce")
            turns = _turns(line, bodies) if " while(" in line else 1
            called = re.findall(r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.-]+)", line)
            called += re.findall(r"%?([\w.-]+)", "".join(re.findall(r"branch_computations=\{(.*?)\}", line)))
            for other in called:
                visit(other, times * turns)

    visit("ENTRY", 1)
    return counts, reduced


def _turns(loop: str, bodies: dict[str, list[str]]) -> int:
    """Return the number of iterations of a `while`: as the compiler states it, or the limit of its condition."""
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop):
        return int(noted[1])
    condition = re.search(r"condition=%?([\w.-]+)", loop)
    limits = re.findall(r" s32\[\]\S* constant\((\d+)\)", "\n".join(bodies.get(condition[1], ())))
    return int(limits[0]) if len(limits) == 1 else 1


def _bytes(shapes: str) -> int:
    """Return the bytes of a type as HLO writes it, such as (f32[16,8]{1,0}, bf16[])."""
    total = 0
    for kind, bits, sides in re.findall(r"\b(pred|[a-z]+?)(\d*)\[([\d,]*)\]", shapes):
        total += math.prod(map(int, filter(None, sides.split(",")))) * (1 if kind == "pred" else int(bits) // 8)
    return total
