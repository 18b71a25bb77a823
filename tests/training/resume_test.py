"""A shrunk end-to-end run that continues on other devices equals an uninterrupted run.

The tests take minutes on two cores, so they require VLBERT_ALL_MESHES=1. loop_test.py and
hosts_test.py test the same with the toy task.
"""

import os
import shutil
import socket
import subprocess
import sys

import jax
import pytest

from data_prep.build import build_scenes
from tests.helpers import HANG_SECONDS, ROOT
from tests.helpers.pretrain_case import FEATURES, shrunk
from vlbert_jax.tasks.pretrain import task as pretrain
from vlbert_jax.tasks.pretrain.batches import eval_batches
from vlbert_jax.training import metrics, sharding
from vlbert_jax.training.loop import train
from vlbert_jax.training.preemption import Preemption, Stopped

PRETRAIN = pretrain.PretrainTask()

pytestmark = pytest.mark.skipif("VLBERT_ALL_MESHES" not in os.environ, reason="takes minutes")
FIELDS = {
    "total_steps": 6,
    "log_every_steps": 1,
    "eval_every_steps": 3,
    "checkpoint_every_steps": 0,
    "warmup_steps": 2,
    "learning_rate": 1e-2,
    "optimizer.name": "sgd",  # Adam turns a gradient of rounding errors into a full step
    "init.scratch": True,
    "report": False,
}
WITHOUT_DROPOUT = {"model.encoder.dropout_rate": 0.0, "model.region_head.dropout_rate": 0.0}
BY_ROWS = {"data.even_regions": False}  # dropout depends on the row, and each host would order its own rows


def run(config, workdir, devices=2):
    train(config, PRETRAIN, workdir, sharding.make_mesh(config.mesh, jax.devices()[:devices]))


@pytest.fixture(scope="module", params=[BY_ROWS, WITHOUT_DROPOUT], ids=["with_dropout", "without"])
def runs(request, tmp_path_factory):
    """Run six updates without interruption, and again with a stop after four.

    Returns:
        The fields of the config, and the folder of both runs.
    """
    folder = tmp_path_factory.mktemp("runs")
    build_scenes(
        folder / "data", num_train=60, num_val=10, num_train_stories=30, num_val_stories=8,
        feature_width=FEATURES,
    )  # fmt: skip
    fields = FIELDS | request.param
    config = shrunk("base_e2e", folder / "data", **fields)
    run(config, folder / "whole")
    with pytest.MonkeyPatch.context() as patch:
        calls = iter(range(99))
        evaluations = eval_batches(config, 0, 1)
        # `reached` is called for each update, and for each batch of the evaluation at step 3.
        stop = 4 + sum(1 for batches in evaluations.values() for _ in batches)
        patch.setattr(Preemption, "reached", lambda self: next(calls) == stop - 1)
        with pytest.raises(Stopped, match="step 4 is saved"):
            run(config, folder / "stopped")
    return fields, folder


def continued(runs, name, start):
    """Continue the stopped run by `start(config fields, data, workdir)`.

    Returns:
        The rows of the continued and of the uninterrupted run, without durations.
    """
    fields, folder = runs
    shutil.copytree(folder / "stopped", folder / name)
    start(fields, folder / "data", folder / name)
    both = []
    for workdir in (folder / name, folder / "whole"):
        rows = metrics.read_rows(workdir / "metrics.jsonl")
        both.append([{k: v for k, v in row.items() if "time" not in k and "per_sec" not in k} for row in rows])
    return both


def check(rows, expected):
    """Compare all values to a relative 1e-5. Accuracies are ratios of counts and meet that, too."""
    assert [(row.pop("step"), row.pop("split")) for row in rows] == [(r.pop("step"), r.pop("split")) for r in expected]
    assert len(rows) == 8
    for row, one in zip(rows, expected, strict=True):
        assert row == pytest.approx(one, rel=1e-5, abs=1e-7)
    assert len({row["loss"] for row in expected if "loss" in row}) == 6  # no batch occurs twice


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 4, 1)], ids=str)
def test_on_another_mesh(sizes, runs):
    mesh = dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), sizes, strict=True))

    def start(fields, data, workdir):
        run(shrunk("base_e2e", data, **fields, **mesh), workdir, devices=8 if sizes == (2, 2, 2) else 4)

    check(*continued(runs, str(sizes), start))


def test_with_micro_batches(runs):
    if runs[0].keys() & BY_ROWS.keys():
        pytest.skip("every micro-batch samples its own dropout")

    def start(fields, data, workdir):
        run(shrunk("base_e2e", data, **fields, grad_accumulation_steps=4), workdir)

    check(*continued(runs, "parts", start))


def test_on_two_hosts(runs):
    """Two processes with one device each continue the run by the command line."""

    def start(fields, data, workdir):
        recipe = workdir.with_suffix(".py")
        call = f"shrunk('base_e2e', {str(data)!r}, **{fields!r})"
        recipe.write_text(f"from tests.helpers.pretrain_case import shrunk\n\n\ndef get_config():\n    return {call}\n")
        flags = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
        environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        command = [sys.executable, "-m", "vlbert_jax.main", f"--config={recipe}", f"--workdir={workdir}"]
        command += [f"--coordinator={address}", "--num_processes=2"]
        processes = [
            subprocess.Popen([*command, f"--process_id={i}"], env=environment, text=True, stderr=subprocess.PIPE)
            for i in range(2)
        ]
        errors = [process.communicate(timeout=HANG_SECONDS)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], errors

    check(*continued(runs, "hosts", start))
