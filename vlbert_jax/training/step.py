"""One update as a pure function."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from vlbert_jax.model.config import matmul_precision
from vlbert_jax.model.partitioning import with_copies
from vlbert_jax.tasks.base import Task
from vlbert_jax.training import optimizer, sharding
from vlbert_jax.training.state import TrainState

# By default XLA's CPU backend orders operations for the most concurrency: it makes early what the backward pass reads.
LEAST_MEMORY = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def train_step(
    state: TrainState,
    batch: PyTree,
    *,
    graphdef: nnx.GraphDef,
    task: Task,
    config: ml_collections.ConfigDict,
    tx: optax.GradientTransformationExtraArgs,
    names: tuple[str, ...],
    mesh: Mesh,
    shardings: TrainState,
) -> tuple[TrainState, dict[str, tuple[Array, Array]]]:
    """Make one update on a global batch.

    Each loss is divided by its count over the whole batch before the batch is cut into `grad_accumulation_steps`
    micro-batches, so the gradient does not depend on the cut (dropout masks differ).

    Args:
      state: the state before the update.
      batch: the global batch, cut over the mesh.
      graphdef: the model's structure.
      task: the task of `config.task`.
      config: the run's config.
      tx: the optimizer, including the clipping of gradients (`optimizer.make_optimizer`).
      names: the losses that count.
      mesh: devices of the run.
      shardings: where the arrays of the state are.

    Returns:
      The state after the update, and its metrics as (sum, count) pairs. If the loss or the gradient is not finite, the
      state is the old one but for `finite`.
    """
    with matmul_precision(config.matmul_precision):
        grads, (loss, sums, scores), counts = _gradients(state, batch, graphdef, task, config, names, mesh, shardings)
    norm = optax.tree.norm(grads)
    finite = state.finite & jnp.isfinite(loss) & jnp.isfinite(norm)
    updates, opt_state = tx.update(grads, state.opt_state, state.params, finite=finite)  # clips the gradients first
    # Without a gradient, momentum and decay would still move a parameter.
    updates = jax.tree_util.tree_map_with_path(
        lambda path, update: jnp.zeros_like(update) if task.is_idle(names_of(path), config, names) else update, updates
    )
    old, new = (state.step, state.params), (state.step + 1, optax.apply_updates(state.params, updates))
    # The host notices a value that is not finite some updates later: these updates keep the last good state, too.
    step, params = jax.tree.map(functools.partial(jnp.where, finite), new, old)
    rate, once = optimizer.learning_rate_schedule(config)(state.step + 1), jnp.float32(1)
    report = {"loss": (loss, once), "grad_norm": (norm, once), "learning_rate": (rate, once)}
    report |= {f"{name}_loss": (sums[name], counts[name]) for name in names}
    return TrainState(step, finite, params, state.constants, opt_state), report | scores


def _gradients(state, batch, graphdef, task, config, names, mesh, shardings):
    """Return the gradients, (loss, sums of the losses, training scores), and the counts of the losses."""
    parts, weights = config.grad_accumulation_steps, task.loss_weights(config)
    key = jax.random.fold_in(jax.random.key(config.seed, impl=config.prng_impl), state.step)
    counts = task.loss_counts(batch, config, names)

    def objective(params, micro_batch, key):
        model = nnx.merge(graphdef, with_copies(params), state.constants)
        sums, scores = task.loss_sums(model, micro_batch, key, config, names)
        loss = sum(weights[name] * sums[name] / counts[name] for name in names)
        return loss, (loss, sums, scores)

    def gradients(micro_batch, key):
        grads, out = jax.grad(objective, has_aux=True)(state.params, micro_batch, key)
        return jax.lax.with_sharding_constraint(grads, shardings.params), out

    def accumulate(total, part):
        micro_batch, index = part
        return jax.tree.map(jnp.add, total, gradients(micro_batch, jax.random.fold_in(key, index))), None

    if parts == 1:
        return *gradients(batch, key), counts
    cut = sharding.cut(batch, parts, mesh), jnp.arange(parts)
    like = jax.eval_shape(lambda part: gradients(part[0], key), jax.tree.map(lambda x: x[0], cut))
    total, _ = jax.lax.scan(accumulate, jax.tree.map(jnp.zeros_like, like), cut)
    return *total, counts


def jitted_step(names: tuple[str, ...], *, mesh: Mesh, shardings: TrainState, **static) -> Callable:
    """Return `(state, batch) -> (state, report)` by `train_step` with these losses, compiled at the first call.

    Both states have the given `shardings`, the batch is divided, and the new state takes the memory of the old one.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return jax.jit(
        functools.partial(train_step, names=names, mesh=mesh, shardings=shardings, **static),
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
        compiler_options=LEAST_MEMORY if on_cpu else None,
    )


def names_of(path: tuple) -> tuple[str, ...]:
    """Return the path of a parameter in a state as names."""
    return tuple(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
