"""Test the benchmark of a GPU at a toy size on a CPU: its parts run, and a part that fails is a row."""

import importlib.util
import json
import os
import subprocess
import sys
import types

import jax
import pytest

from benchmarks import gpu_part, shapes, train_step
from tests.helpers import HANG_SECONDS, ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.sh"


def rows(folder):
    return [json.loads(line) for line in (folder / gpu_part.ROWS).read_text().splitlines()]


def run_part(folder, script, seconds=60, part=gpu_part.STEPS, **about):
    gpu_part.main([f"--folder={folder}", f"--part={part}", f"--seconds={seconds}", f"--about={json.dumps(about)}",
                   "--", "sh", "-c", script])  # fmt: skip
    return rows(folder)


@pytest.mark.slow
def test_every_part_runs_at_a_toy_size(tmp_path):
    command = [SCRIPT, tmp_path, "--small", f"--python={sys.executable}"]
    one_device = os.environ | dict(XLA_FLAGS=f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=one_device, timeout=2 * HANG_SECONDS)
    found = {row["part"]: row for row in rows(tmp_path)}
    assert set(found) == set(gpu_part.PARTS)
    with_torch = all(map(importlib.util.find_spec, ("torch", "transformers")))
    for part, row in found.items():
        assert ("failed" in row) == (part == gpu_part.PEERS and not with_torch), row
    step, profile = found[gpu_part.STEPS], found[gpu_part.PROFILE]
    assert step["recipe"] == "base_prec" and step["captions"] == 2 and step["step_ms"] > 0
    assert found[gpu_part.DETECTOR]["images_per_second"] > 0
    assert profile["thread_seconds"]["matrix products, forward"] > 0
    if with_torch:
        assert found[gpu_part.PEERS]["base_prec"]["ratio"] > 0
    tables = (tmp_path / gpu_part.TABLES).read_text()
    assert f"| base_prec | 2 | {step['step_ms']} |" in tables and "| matrix products, forward |" in tables


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu"], "unknown option or missing value: --gpu"),
        (["--seconds=ten"], "--seconds=ten is not a number of seconds"),
        (["--peak-tflops=fast"], "--peak-tflops=fast is not a number"),
        (["one", "two"], "two folders: one and two"),
        ([f"--python={sys.executable}"], "JAX sees no GPU; --small runs toy sizes on a CPU"),
    ],
    ids=lambda value: "".join(value)[:20],
)
def test_wrong_arguments_are_refused(arguments, message):
    if jax.default_backend() != "cpu" and "no GPU" in message:
        pytest.skip("there is a GPU")
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, timeout=HANG_SECONDS)
    assert (done.returncode, done.stderr) == (2, f"gpu.sh: {message}; see --help\n")


def test_rows_before_a_failure_are_kept(tmp_path):
    row = dict(recipe="base_e2e", captions=4, step_ms=12.5, samples_per_sec=640, tflops=99, share_of_peak=0.25)
    row = json.dumps(row | dict(temporary_gb=9.5, state_gb=1))
    script = f"echo '{row}'; echo 'error: RESOURCE_EXHAUSTED: 9 GB'; exit 1"
    first, second = run_part(tmp_path, script, recipe="base_e2e")
    assert first["step_ms"] == 12.5 and first["part"] == gpu_part.STEPS
    assert second == dict(part=gpu_part.STEPS, recipe="base_e2e", failed="out of memory")
    assert run_part(tmp_path, "echo bad flag >&2; exit 3")[-1]["failed"] == "exit status 3: bad flag"
    assert run_part(tmp_path, "exit 0", seconds=1)[-1]["failed"] == "no time was left"
    tables = (tmp_path / gpu_part.TABLES).read_text()
    assert "| base_e2e | 4 | 12.5 | 640 | 99 | 25.0 % | 10.50 |" in tables
    assert "| base_e2e |  | out of memory |" in tables


def test_a_part_is_killed_with_its_children_at_its_time_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_part, "SHORTEST", 0)
    # The part ends when all of its processes have closed their output.
    row = run_part(tmp_path, f"(sleep 3; touch {tmp_path}/late) & sleep 3", seconds=0.5)[-1]
    assert row["failed"] == "not done after 0 s" and not (tmp_path / "late").exists()


def test_tables_are_those_of_the_last_run(tmp_path):
    for name in ("old", "new"):
        run_part(tmp_path, f"""echo '{{"device": "{name}"}}'""", part=gpu_part.DEVICE)
        run_part(tmp_path, f"echo {name} failed; exit 1", recipe="base_prec")
    tables = (tmp_path / gpu_part.TABLES).read_text()
    assert "# new" in tables and "old failed" not in tables and len(rows(tmp_path)) == 4


def test_a_batch_that_does_not_fit_is_a_row(monkeypatch):
    def measure(name, shape, args):
        raise jax.errors.JaxRuntimeError(f"{args.message}: allocating 9 GB")

    monkeypatch.setattr(train_step, "measure", measure)
    args = types.SimpleNamespace(dtype="bfloat16", message="RESOURCE_EXHAUSTED")
    row = train_step.measured_if_it_fits("large_e2e", dict(captions=64), args)
    assert row == dict(recipe="large_e2e", dtype="bfloat16", captions=64, failed="out of memory")
    args.message = "INTERNAL"
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        train_step.measured_if_it_fits("large_e2e", dict(captions=64), args)


def test_large_e2e_is_measured_in_one_part():
    config = shapes.recipe_of("large_e2e")
    assert config.model.encoder.num_layers == 24 and config.grad_accumulation_steps == 1
    assert shapes.shape_of("large_e2e", 8) == shapes.shape_of("base_e2e", 8)
