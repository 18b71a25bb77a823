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

from vlbert_jax.tasks.base import Task
from vlbert_jax.training import optimizer, sharding
from vlbert_jax.training.state import TrainState


def train_step(
    state: TrainState,
    batch: PyTree,
    *,
    graphdef: nnx.GraphDef,
    task: Task,
    config: ml_collections.ConfigDict,
    tx: optax.GradientTransformation,
    names: tuple[str, ...],
    mesh: Mesh,
    shardings: TrainState,
) -> tuple[TrainState, dict[str, tuple[Array, Array]]]:
    """One update on a global batch, and its metrics as (sum, count) pairs.

    `names` are the losses that count. Each is divided by its count over the whole batch before the batch is
    cut into `grad_accumulation_steps` micro-batches, so the gradient does not depend on the cut (dropout
    draws differ).
    """
    parts, weights = config.grad_accumulation_steps, task.loss_weights(config)
    key = jax.random.fold_in(jax.random.key(config.seed, impl=config.prng_impl), state.step)
    counts = task.loss_counts(batch, config, names)

    def objective(params, micro_batch, key):
        model = nnx.merge(graphdef, params, state.constants)
        sums, scores = task.loss_sums(model, micro_batch, key, config, names)
        loss = sum(weights[name] * sums[name] / counts[name] for name in names)
        return loss, (loss, sums, scores)

    def gradients(micro_batch, key):
        grads, out = jax.grad(objective, has_aux=True)(state.params, micro_batch, key)
        return jax.lax.with_sharding_constraint(grads, shardings.params), out

    if parts == 1:
        grads, (loss, sums, scores) = gradients(batch, key)
    else:

        def accumulate(total, part):
            micro_batch, index = part
            return jax.tree.map(jnp.add, total, gradients(micro_batch, jax.random.fold_in(key, index))), None

        cut = sharding.cut(batch, parts, mesh), jnp.arange(parts)
        like = jax.eval_shape(lambda part: gradients(part[0], key), jax.tree.map(lambda x: x[0], cut))
        total, _ = jax.lax.scan(accumulate, jax.tree.map(jnp.zeros_like, like), cut)
        grads, (loss, sums, scores) = total

    norm = optax.tree.norm(grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    # Without a gradient, momentum and decay would still move a parameter.
    updates = jax.tree_util.tree_map_with_path(
        lambda path, update: jnp.zeros_like(update) if task.is_idle(names_of(path), config, names) else update, updates
    )
    finite = state.finite & jnp.isfinite(loss) & jnp.isfinite(norm)
    old = state.step, state.params, state.opt_state
    new = state.step + 1, optax.apply_updates(state.params, updates), opt_state
    # Not finite: keep the last good state, also from the updates dispatched before the host has noticed.
    step, params, opt_state = jax.tree.map(functools.partial(jnp.where, finite), new, old)
    rate, once = optimizer.learning_rate_schedule(config)(state.step + 1), jnp.float32(1)
    report = {"loss": (loss, once), "grad_norm": (norm, once), "learning_rate": (rate, once)}
    report |= {f"{name}_loss": (sums[name], counts[name]) for name in names}
    return TrainState(step, finite, params, state.constants, opt_state), report | scores


def jitted_step(names: tuple[str, ...], *, mesh: Mesh, shardings: TrainState, **static) -> Callable:
    """`(state, batch) -> (state, report)` by `train_step` with these losses, compiled at the first call.

    Both states live where `shardings` says, the batch is divided, and the new state takes the memory of the old.
    """
    return jax.jit(
        functools.partial(train_step, names=names, mesh=mesh, shardings=shardings, **static),
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def names_of(path: tuple) -> tuple[str, ...]:
    """The path of a parameter in a state, as names."""
    return tuple(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
