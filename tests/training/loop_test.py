"""The training loop writes rows and checkpoints, resumes runs, handles signals and evaluates.

The tests train the toy task, which takes a second.
"""

import dataclasses
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tqdm

from tests.helpers import HANG_SECONDS, ROOT, toy_task
from tests.helpers.toy_runs import rows_of, task_with, two_devices, updates
from vlbert_jax.training import checkpoint, metrics, sharding, state
from vlbert_jax.training.description import facts_of
from vlbert_jax.training.evaluate import evaluate_run
from vlbert_jax.training.loop import train
from vlbert_jax.training.preemption import Stopped
from vlbert_jax.training.state import open_run
from vlbert_jax.weights.orbax import newest_step


class Crash(Exception):
    pass


@pytest.mark.parametrize("changes", [dict(batch_size=13), dict(grad_accumulation_steps=16)], ids=str)
def test_a_batch_that_does_not_divide_is_refused_before_the_model_is_built(changes, tmp_path):
    def build_model(*_):
        raise AssertionError("the model is built")

    with pytest.raises(ValueError, match="do not divide"):
        open_run(toy_task.make_config(**changes), task_with(build_model=build_model), tmp_path, two_devices())


def crashing_before(step):
    """Return a `train_batches` that raises Crash when batch `step` is requested."""

    def train_batches(config, start_step, *hosts):
        for k, batch in enumerate(toy_task.toy.train_batches(config, start_step, *hosts), start_step):
            if k == step:
                raise Crash
            yield batch

    return train_batches


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return the config, workdir and last state of an uninterrupted run."""
    config, workdir = toy_task.make_config(second_loss_from=6), tmp_path_factory.mktemp("uninterrupted")
    _, state = train(config, toy_task.toy, workdir, two_devices())
    return config, workdir, state


def test_rows(uninterrupted):
    config, workdir, _ = uninterrupted
    rows = rows_of(workdir)
    assert [(row["step"], row["split"]) for row in rows] == [
        (4, "train"), (8, "train"), (10, "val"), (12, "train"), (16, "train"), (20, "train"), (20, "val"),
    ]  # fmt: skip
    assert set(rows[0]) == {"step", "split", "loss", "fit_loss", "fit_accuracy", "grad_norm", "learning_rate"}
    assert set(rows[1]) - set(rows[0]) == {"size_loss"}  # the loss `size` is active from step 6
    assert set(rows[2]) == {"step", "split", "accuracy", "loss", "other/accuracy", "other/loss"}
    assert rows[5]["learning_rate"] == 0
    timed = metrics.read_rows(workdir / "metrics.jsonl")[1]
    assert {"step_time_ms", "data_wait_time_ms", "samples_per_sec"} <= set(timed)
    assert sorted(int(p.name) for p in (workdir / "checkpoints").iterdir()) == [10, 15, 20]
    assert json.loads((workdir / "config.json").read_text())["seed"] == config.seed
    assert {"packages", "devices", "revision"} <= set(json.loads((workdir / "versions.json").read_text()))


def test_a_train_row_has_means_since_the_previous_row(uninterrupted):
    _, workdir, _ = uninterrupted
    _, reports = updates(uninterrupted[0], two_devices(), count=4)
    expected = np.mean([report["loss"] for report in reports])
    np.testing.assert_allclose(rows_of(workdir)[0]["loss"], expected, rtol=1e-5)


def test_a_val_row_counts_every_record_once(uninterrupted):
    """The loss is the mean over all records, without padding."""
    config, workdir, state = uninterrupted
    batch = jax.tree.map(
        lambda *parts: np.concatenate(parts)[: toy_task.VALIDATION],
        *toy_task.toy.eval_batches(config, 0, 1)["val"],
    )
    weights = [np.asarray(x) for x in (state.constants.frozen, state.params.first, state.params.last)]
    logits = (np.tanh(batch.boxes[:, 0] @ weights[0][:4] @ weights[1]) @ weights[2])[:, 0]
    mask = batch.element_mask[:, 0, 0]
    expected = np.mean((logits - batch.targets.group)[mask] ** 2)
    np.testing.assert_allclose(rows_of(workdir)[-1]["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("crashes", [(3, 6), (5, 13)], ids=str)
def test_a_resumed_run_equals_an_uninterrupted_run(uninterrupted, tmp_path, crashes):
    """A resumed run is bit-identical to an uninterrupted one.

    It crashes before the first checkpoint, at a checkpoint, and between a checkpoint and a row.
    """
    config, workdir, state = uninterrupted
    for step in crashes:
        with pytest.raises(Crash):
            train(config, task_with(train_batches=crashing_before(step)), tmp_path, two_devices())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "sp')  # a process was killed while it wrote
    _, resumed = train(config, toy_task.toy, tmp_path, two_devices())
    assert rows_of(tmp_path) == rows_of(workdir)
    jax.tree.map(np.testing.assert_array_equal, resumed, state)


def test_a_run_continues_on_another_mesh(tmp_path):
    """Another mesh (with dropout) or other micro-batches do not change the rows."""
    for number, (fields, changed) in enumerate(
        [
            (dict(prng_impl="threefry2x32"), {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}),
            (dict(dropout_rate=0.0), {"mesh.fsdp": 4, "grad_accumulation_steps": 2}),
        ]
    ):
        config = toy_task.make_config(second_loss_from=6, **fields)
        stayed, moved = tmp_path / f"stayed{number}", tmp_path / f"moved{number}"
        train(config, toy_task.toy, stayed, two_devices())
        with pytest.raises(Crash):
            train(config, task_with(train_batches=crashing_before(13)), moved, two_devices())
        other = toy_task.make_config(second_loss_from=6, **fields, **changed)
        train(other, toy_task.toy, moved, sharding.make_mesh(other.mesh))
        rows, expected = rows_of(moved), rows_of(stayed)
        assert [(row["step"], row["split"]) for row in rows] == [(row["step"], row["split"]) for row in expected]
        for row, one in zip(rows, expected, strict=True):
            assert {name: value for name, value in row.items() if name != "split"} == pytest.approx(
                {name: value for name, value in one.items() if name != "split"}, rel=2e-5, abs=1e-7
            )


def test_a_clock_that_jumps_back_changes_nothing(uninterrupted, tmp_path, monkeypatch):
    """Durations, the progress bar, rows, kept checkpoints and TensorBoard do not depend on the wall clock."""
    config, workdir, _ = uninterrupted
    now = [time.time()]

    def jumping():
        now[0] -= 10 * 86_400
        return now[0]

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(time, "time_ns", lambda: int(jumping()) * 10**9)
    monkeypatch.setattr(tqdm.std, "time", jumping)
    with metrics.Bar(total=9, file=io.StringIO(), mininterval=0) as bar:
        bar.update(3)
        assert 0 <= bar.format_dict["elapsed"] < 60 and bar.format_dict["rate"] > 0
    train(config, toy_task.toy, tmp_path, two_devices())
    assert rows_of(tmp_path) == rows_of(workdir)
    rows = [row for row in metrics.read_rows(tmp_path / "metrics.jsonl") if row["split"] == "train"]
    assert all(0 < row["step_time_ms"] < 60_000 and 0 <= row["data_wait_time_ms"] < 60_000 for row in rows)
    kept = [sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (tmp_path, workdir)]
    assert kept[0] == kept[1]
    assert " s of updates" in facts_of(tmp_path, rows)["duration"]


def test_a_finished_run_does_not_change(uninterrupted):
    config, workdir, state = uninterrupted
    before = (workdir / "metrics.jsonl").read_text()
    _, again = train(config, task_with(train_batches=crashing_before(20)), workdir, two_devices())
    assert (workdir / "metrics.jsonl").read_text() == before
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_sigterm_saves_and_stops(uninterrupted, tmp_path):
    config, workdir, _ = uninterrupted

    def train_batches(config, start_step, *hosts):
        for k, batch in enumerate(toy_task.toy.train_batches(config, start_step, *hosts), start_step):
            if k == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="step 7 is saved"):
        train(config, task_with(train_batches=train_batches), tmp_path, two_devices())
    assert newest_step(tmp_path) == 7
    assert signal.getsignal(signal.SIGTERM) == handler
    train(config, toy_task.toy, tmp_path, two_devices())
    assert rows_of(tmp_path) == rows_of(workdir)


def test_a_split_that_cannot_be_evaluated_ends_the_run_before_its_first_update(tmp_path):
    def eval_batches(config, *hosts):
        raise ValueError("val has no usable target")

    with pytest.raises(ValueError, match="val has no usable target"):
        train(toy_task.make_config(), task_with(eval_batches=eval_batches), tmp_path, two_devices())
    assert not rows_of(tmp_path)


def test_sigterm_interrupts_an_evaluation(uninterrupted, tmp_path):
    """SIGTERM interrupts an evaluation; the next start repeats it with the same rows and scores.

    SIGTERM arrives in an evaluation, in its repetition, and in an update before an evaluation.
    """
    config, workdir, _ = uninterrupted

    def terminated(batches, number):
        for k, batch in enumerate(batches):
            if k == number:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    def train_batches(config, start_step, *hosts):
        return terminated(toy_task.toy.train_batches(config, start_step, *hosts), 19 - start_step)

    def eval_batches(config, *hosts):
        subsets = toy_task.toy.eval_batches(config, *hosts)
        return subsets | {"other": terminated(subsets["other"], 1)}

    for functions, message, step in (
        (dict(eval_batches=eval_batches), "step 10 is saved", 10),
        (dict(eval_batches=eval_batches), "in an evaluation", 10),
        (dict(train_batches=train_batches), "step 20 is saved", 20),
    ):
        with pytest.raises(Stopped, match=message):
            train(config, task_with(**functions), tmp_path, two_devices())
        assert rows_of(tmp_path) == [r for r in rows_of(workdir) if (r["step"], r["split"]) < (step, "val")]
    with pytest.raises(Stopped, match="in an evaluation"):
        evaluate_run(config, task_with(eval_batches=eval_batches), tmp_path, two_devices())
    assert not (tmp_path / "scores.json").exists()
    train(config, toy_task.toy, tmp_path, two_devices())
    assert rows_of(tmp_path) == rows_of(workdir)
    scores = [{file.parts[-3]: file.read_text() for file in w.rglob("metrics/metrics")} for w in (tmp_path, workdir)]
    assert scores[0] == scores[1] and scores[0].keys() == {"10", "20"}


def test_a_non_finite_loss_saves_the_last_finite_state(uninterrupted, tmp_path):
    config = toy_task.make_config(second_loss_from=6, poison_step=13)
    for _ in range(2):  # the second start fails at the same step
        with pytest.raises(FloatingPointError, match="not finite at step 14; .* saved as step 13"):
            train(config, toy_task.toy, tmp_path, two_devices())
    assert rows_of(tmp_path) == [row for row in rows_of(uninterrupted[1]) if row["step"] <= 12]
    assert newest_step(tmp_path) == 13
    checkpoints = checkpoint.Checkpoints(tmp_path, config)
    loss, count = checkpoints.meta()["window"]["loss"]  # of the one finite update since the row of step 12
    assert np.isfinite(loss) and count == 1
    checkpoints.close()


def test_implicit_transfers_are_errors(tmp_path, monkeypatch):
    """A batch that was not put on the devices is an error."""
    monkeypatch.setattr(sharding, "global_batch", lambda batch, mesh: batch)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(toy_task.make_config(), toy_task.toy, tmp_path, two_devices())


def test_evaluate_run_scores_the_newest_checkpoint(uninterrupted, tmp_path, caplog):
    config, workdir, _ = uninterrupted
    scores = evaluate_run(config, toy_task.toy, workdir, two_devices())
    row = rows_of(workdir)[-1]
    assert scores == {name: value for name, value in row.items() if name != "split"}
    assert json.loads((workdir / "scores.json").read_text()) == scores
    other = config.copy_and_resolve_references()
    other.optimizer.name = "sgd"  # the state of the run has the moments of adamw
    with caplog.at_level("INFO"):
        assert evaluate_run(other, toy_task.toy, workdir, two_devices()) == scores
    assert "config.json, because they change no number of an evaluation: optimizer.name='adamw'" in caplog.text
    damaged = tmp_path / "damaged"
    shutil.copytree(workdir, damaged)
    next(damaged.glob("checkpoints/20/state/d/*")).write_bytes(b"")
    assert evaluate_run(config, toy_task.toy, damaged, two_devices())["step"] == 15
    assert "checkpoint 20 is damaged and not used" in caplog.text
    with pytest.raises(FileNotFoundError, match="nothing to evaluate"):
        evaluate_run(config, toy_task.toy, tmp_path, two_devices())
    config = config.copy_and_resolve_references()
    config.init.checkpoint = "another"
    with pytest.raises(ValueError, match="ambiguous what to evaluate: the run in .*, or config.init.checkpoint"):
        evaluate_run(config, toy_task.toy, workdir, two_devices())


def test_order_of_restoring(tmp_path, monkeypatch):
    """A checkpoint of the run precedes the weights that `init` names, and these precede scratch."""
    calls = []

    def load_into(params, constants, encoder, task, init, complete, extractor, architecture, answer_rows):
        calls.append(init)
        return jax.tree.map(lambda x: 2 * x, params), constants, set()

    monkeypatch.setattr(state, "load_into", load_into)
    config, mesh = toy_task.make_config(), two_devices()
    (tmp_path / "new").mkdir()
    scratch = open_run(config, toy_task.toy, tmp_path, mesh).state
    assert not calls
    config.init.bert = str(tmp_path)
    scores = evaluate_run(config, toy_task.toy, tmp_path / "new", mesh)
    assert scores["step"] == 0 and calls.pop()
    run = open_run(config, toy_task.toy, tmp_path, mesh)
    assert calls == [{"bert": str(tmp_path)}]
    np.testing.assert_array_equal(run.state.params.first, 2 * scratch.params.first[...])
    run.checkpoints.save(3, dataclasses.replace(run.state, step=3), run.meta)
    run.checkpoints.close()
    own = open_run(config, toy_task.toy, tmp_path, mesh).state
    assert int(own.step) == 3 and len(calls) == 1
    np.testing.assert_array_equal(own.params.first, run.state.params.first)


SCRIPT = """
import pathlib, sys
import jax
from tests.helpers import toy_task
from vlbert_jax.training import sharding
from vlbert_jax.training.loop import train
config = toy_task.make_config(second_loss_from=6, step_delay=0.05)
train(config, toy_task.toy, pathlib.Path(sys.argv[1]), sharding.make_mesh(config.mesh, jax.devices()[:2]))
"""


@pytest.mark.slow
def test_killed_at_any_moment(uninterrupted, tmp_path):
    """A run that SIGKILL interrupts at random times has the rows of an uninterrupted run."""
    rng = random.Random()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    kills, stderr = 0, ""
    for attempt in range(9):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True
        )
        if attempt < 3:
            newest = newest_step(tmp_path)
            while newest_step(tmp_path) == newest and process.poll() is None:
                time.sleep(0.01)  # until the next checkpoint; a random delay follows
            time.sleep(rng.uniform(0, 0.4))
            process.kill()
            kills += process.wait() == -signal.SIGKILL
            process.stderr.close()
        else:
            _, stderr = process.communicate(timeout=HANG_SECONDS)
            break
    assert process.returncode == 0, stderr
    assert kills >= 2
    assert rows_of(tmp_path) == rows_of(uninterrupted[1])
