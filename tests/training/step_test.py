"""Updates of the toy task do not depend on the mesh or on accumulation, and stop if not finite."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from tests.helpers import toy_task
from tests.helpers.toy_runs import make_mesh, task_with, two_devices, updates
from vlbert_jax.training import optimizer, sharding
from vlbert_jax.training.state import create_state
from vlbert_jax.training.step import jitted_step


@functools.cache
def expected(**fields):
    """Return the state and the metrics on one data-parallel axis without accumulation."""
    return updates(toy_task.make_config(**fields), make_mesh())


def assert_close(a, b):
    """Compare to 1e-5 of the largest value, because float32 sums have another order."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * float(np.max(np.abs(y))))


@pytest.mark.parametrize("sizes", [(4, 1, 2), (2, 4, 1), (1, 4, 2)])
def test_mesh_does_not_matter(sizes):
    """Parameters, metrics and dropout (threefry) equal those on one data-parallel axis."""
    fields = dict(prng_impl="threefry2x32")
    state, reports = updates(toy_task.make_config(**fields), make_mesh(*sizes))
    assert_close((state.params, reports), (expected(**fields)[0].params, expected(**fields)[1]))


def test_the_state_is_created_divided():
    """`embed` is divided over fsdp and `mlp` over tensor, in parameters and moments."""
    state, _ = updates(toy_task.make_config(), make_mesh(1, 4, 2), count=0)
    moments = state.opt_state[1]
    for tree in (state.params, moments.mu, moments.nu):
        assert {s.data.shape for s in tree.first[...].addressable_shards} == {(2, 8)}
        assert {s.data.shape for s in tree.last[...].addressable_shards} == {(8, 1)}


@pytest.mark.parametrize("parts, devices", [(2, 1), (4, 1), (2, 4)])
def test_accumulation_does_not_matter(parts, devices):
    """The result is the same even if micro-batches have different numbers of targets."""
    mesh = sharding.make_mesh(toy_task.make_config().mesh, jax.devices()[:devices])
    fields = dict(dropout_rate=0.0)
    state, reports = updates(toy_task.make_config(**fields, grad_accumulation_steps=parts), mesh)
    assert_close((state.params, reports), (expected(**fields)[0].params, expected(**fields)[1]))


def test_accumulation_samples_new_dropout_for_every_micro_batch():
    """Micro-batches with equal examples have different dropout."""
    config = toy_task.make_config(dropout_rate=0.5, grad_accumulation_steps=2, batch_size=2)
    batch = jax.tree.map(lambda x: np.repeat(x[:1], 2, 0), next(toy_task.toy.train_batches(config, 0, 0, 1)))
    seen = []

    def loss_sums(model, batch, key, config, names):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), model(batch, key))
        return toy_task.toy.loss_sums(model, batch, key, config, names)

    task = task_with(loss_sums=loss_sums, train_batches=lambda *_: iter([batch]))
    updates(config, sharding.make_mesh(config.mesh, jax.devices()[:1]), count=1, task=task)
    jax.effects_barrier()
    assert len(seen) == 2 and not np.array_equal(*seen)


def test_every_update_samples_new_dropout():
    config = toy_task.make_config(learning_rate=0.0, dropout_rate=0.5)
    config.optimizer.weight_decay = 0.0
    _, reports = updates(config, two_devices(), same_batch=True)
    assert len({report["loss"] for report in reports}) == 3


def test_frozen_parameters_do_not_change_and_have_no_moments():
    config = toy_task.make_config()
    state, _ = updates(config, two_devices())
    before, _ = updates(config, two_devices(), count=0)
    np.testing.assert_array_equal(state.constants.frozen, before.constants.frozen)
    assert not np.array_equal(state.params.first, before.params.first)
    assert set(state.opt_state[1].mu) == {"first", "last"} == set(state.params)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_non_finite_loss_stops_all_updates(name):
    """The state stays the last finite one even if later batches are finite."""
    config = toy_task.make_config(poison_step=2)
    config.optimizer.name = name
    state, reports = updates(config, two_devices(), count=5)
    good, _ = updates(config, two_devices(), count=2)
    assert int(state.step) == 2 and not bool(state.finite) and np.isnan(reports[2]["loss"])
    for a, b in zip(
        jax.tree.leaves(state), jax.tree.leaves(dataclasses.replace(good, finite=False)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["adamw", "bertadam"])
def test_no_moment_is_copied(name):
    """An update computes the new moments in the memory of the old ones, which nothing reads later."""
    config = toy_task.make_config()
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    config.optimizer.name = name
    tx = optimizer.make_optimizer(config.optimizer, optimizer.learning_rate_schedule(config))
    graphdef, _, shardings, create = create_state(config, toy_task.toy, tx, mesh)
    static = dict(graphdef=graphdef, task=toy_task.toy, config=config, tx=tx, mesh=mesh, shardings=shardings)
    batch = sharding.global_batch(next(toy_task.toy.train_batches(config, 0, 0, 1)), mesh)
    program = jitted_step(toy_task.toy.active_losses(config, 0), **static).lower(create(), batch).compile().as_text()
    assert "%state_opt_state_1__mu__" in program
    assert not re.findall(r"copy\(%state_opt_state_1__[mn]u__\w+", program)
