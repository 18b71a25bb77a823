"""Traces cover given updates, durations exclude compilation, and evaluations hold few outputs."""

import gzip
import re
import threading
import time

import jax
import numpy as np
import pytest
from flax import nnx

from tests.helpers import toy_task
from tests.helpers.pretrain_case import shrunk
from tests.helpers.toy_runs import rows_of, task_with, two_devices
from vlbert_jax.tasks import get_task
from vlbert_jax.training import evaluate, metrics
from vlbert_jax.training.loop import train


def test_a_trace_of_some_updates(tmp_path):
    config = toy_task.make_config(total_steps=8, eval_every_steps=0, profile_steps=(3, 4))
    train(config, toy_task.toy, tmp_path, two_devices())
    (trace,) = (tmp_path / "profile").rglob("*.trace.json.gz")
    text = gzip.decompress(trace.read_bytes()).decode()
    assert text.count('"step_num":"3"') and text.count('"step_num":"4"')
    assert '"step_num":"2"' not in text and '"step_num":"5"' not in text


def test_no_trace_by_default(tmp_path):
    train(toy_task.make_config(total_steps=1), toy_task.toy, tmp_path, two_devices())
    assert not (tmp_path / "profile").exists()


def test_step_time_excludes_compilation(tmp_path):
    """The duration in the first row excludes two seconds of tracing."""

    def loss_sums(*args):
        time.sleep(2)
        return toy_task.toy.loss_sums(*args)

    config = toy_task.make_config(total_steps=4, eval_every_steps=0)
    train(config, task_with(loss_sums=loss_sums), tmp_path, two_devices())
    row = metrics.read_rows(tmp_path / "metrics.jsonl")[0]
    assert 4 * row["step_time_ms"] < 2000
    assert row["samples_per_sec"] == pytest.approx(16e3 / row["step_time_ms"])


def test_an_evaluation_holds_few_outputs(monkeypatch, caplog):
    """Outputs are fetched during the evaluation, scores are those of all batches, and the log shows the progress."""
    monkeypatch.setattr(evaluate, "PROGRESS", 0)
    caplog.set_level("INFO", "vlbert_jax")
    alive, most = [], []

    class Output:
        def __init__(self, value):
            alive.append(self)
            most.append(len(alive))
            self.value = value

    def fetch(output):
        alive.remove(output)
        return output.value

    monkeypatch.setattr(jax, "device_get", fetch)
    monkeypatch.setattr(evaluate.sharding, "global_batch", lambda batch, mesh: batch)
    batches = [np.float32(0.1 * i) for i in range(9)]
    task = task_with(eval_batches=lambda *_: {"val": iter(batches)})
    score = lambda params, constants, batch: Output(({"loss": (batch, 1)}, {}))  # noqa: E731
    scores, _ = evaluate.evaluate(score, None, None, task, toy_task.make_config(), two_devices(), lambda: False)
    assert max(most) == evaluate.AHEAD + 1 and not alive
    assert scores == {"loss": sum(map(float, batches)) / 9}
    assert caplog.messages[-1] == "the evaluation: 9 batches of val are scored"


def test_a_run_outside_the_main_thread(tmp_path, caplog):
    config, failures = toy_task.make_config(total_steps=4, eval_every_steps=0), []

    def run():
        try:
            train(config, toy_task.toy, tmp_path, two_devices())
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failures and [row["step"] for row in rows_of(tmp_path)] == [4, 4]
    assert "not in the main thread: SIGTERM does not stop this run" in caplog.text


def test_parts_of_the_model_have_names(tmp_path):
    """The operations of each part have its name, which is visible in traces."""
    config, task = shrunk("demo", tmp_path), get_task("pretrain")
    graphdef, state = nnx.split(nnx.eval_shape(lambda: task.build_model(config, nnx.Rngs(0))))

    def losses(state, batch):
        return task.loss_sums(nnx.merge(graphdef, state), batch, None, config, ("mlm_caption", "mrc"))[0]

    text = jax.jit(losses).lower(state, task.batch_shapes(config)).as_text(debug_info=True)
    for name in ("region_head", "encoder", "head"):
        assert re.search(rf'["/]{name}/', text), name
