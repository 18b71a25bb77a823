"""Provide meshes, single updates and metric rows of the toy task."""

import itertools

import jax
import ml_collections

from tests.helpers import toy_task
from vlbert_jax.training import metrics, optimizer, sharding
from vlbert_jax.training.state import create_state
from vlbert_jax.training.step import train_step


def make_mesh(data=-1, fsdp=1, tensor=1):
    return sharding.make_mesh(ml_collections.ConfigDict(dict(data=data, fsdp=fsdp, tensor=tensor)))


def two_devices():
    return sharding.make_mesh(toy_task.make_config().mesh, jax.devices()[:2])


def task_with(**functions):
    """Return the toy task with some functions replaced."""
    methods = {name: staticmethod(function) for name, function in functions.items()}
    return type("Changed", (toy_task.ToyTask,), methods, extends=True)()


def rows_of(workdir):
    """Return the rows of metrics.jsonl without durations."""
    return [
        {name: value for name, value in row.items() if "time" not in name and "per_sec" not in name}
        for row in metrics.read_rows(workdir / "metrics.jsonl")
    ]


def updates(config, mesh, count=3, same_batch=False, task=toy_task.toy):
    """Run `count` updates without the loop; return the state and the metrics of each update."""
    tx = optimizer.make_optimizer(config.optimizer, optimizer.learning_rate_schedule(config))
    graphdef, _, shardings, create = create_state(config, task, tx, mesh)
    state, reports = create(), []

    @jax.jit
    def step(state, batch):
        names = task.active_losses(config, 0)
        return train_step(
            state, batch, graphdef=graphdef, task=task, config=config, tx=tx, names=names, mesh=mesh,
            shardings=shardings,
        )  # fmt: skip

    for batch in itertools.islice(task.train_batches(config, 0, 0, 1), count):
        batch = next(task.train_batches(config, 0, 0, 1)) if same_batch else batch
        state, report = step(state, sharding.global_batch(batch, mesh))
        reports.append({name: float(value) / float(n) for name, (value, n) in report.items()})
    return state, reports
