"""Learning rate schedules, gradient clipping, AdamW and SGD of the official code, as optax transformations."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float, Int, PyTree

Schedule = Callable[[Int[Array, ""] | int], Float[Array, ""]]


def learning_rate_schedule(config: ml_collections.ConfigDict) -> Schedule:
    """Return the learning rate of update k, which counts from 1: the official scheduler steps before its optimizer.

    All rise linearly from 0 to `learning_rate` at update `warmup_steps`. Then `triangle` falls linearly to 0 and
    `cosine` along half a cosine, both at update `total_steps`: the very last update has rate 0, as in the official
    code. `steps` is divided by ten at each of `optimizer.drops` (parts of `total_steps`); `constant` stays. The
    `opening` has a separate schedule of the same kind, with its own peak; after it the main schedule starts from 0.

    Raises:
        ValueError: The name of the schedule is unknown.
    """
    name, warmup, opening = config.optimizer.schedule, config.warmup_steps, config.opening
    decays = {
        "triangle": lambda left: left,
        "cosine": lambda left: 0.5 - 0.5 * jnp.cos(jnp.pi * left),
        "constant": lambda left: jnp.ones_like(left),
        "steps": lambda left: jnp.ones_like(left),
    }
    if name not in decays:
        raise ValueError(f"optimizer.schedule is {name!r}; it can be {', '.join(decays)}")

    def phase(update, peak, last):
        rise = update / max(warmup, 1)
        left = jnp.maximum(last - update, 0) / max(last - warmup, 1)  # 1 at the end of warmup, 0 at the last update
        return peak * jnp.where(update < warmup, rise, decays[name](left))

    parts = config.optimizer.drops if name == "steps" else ()
    drops = jnp.asarray([round(part * config.total_steps) for part in parts], jnp.int32)

    def rate(update):
        main = phase(update - opening.steps, config.learning_rate, config.total_steps - opening.steps)
        main *= 0.1 ** jnp.sum(update >= drops)
        return jnp.where(update > opening.steps, main, phase(update, opening.learning_rate, opening.steps))

    return rate


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scale gradients by max_norm / (norm + 1e-6) where that is below 1, as PyTorch does."""

    def update(updates, state, params=None):
        scale = jnp.minimum(max_norm / (optax.tree.norm(updates) + 1e-6), 1.0)
        return jax.tree.map(lambda g: g * scale, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


class AdamWState(NamedTuple):
    """State of AdamW."""
    count: Int[Array, ""]  # updates so far
    mu: PyTree  # moving average of gradients
    nu: PyTree  # of their squares


def adamw(
    schedule: Schedule, b1: float, b2: float, eps: float, weight_decay: float
) -> optax.GradientTransformation:
    """Return the AdamW of the official code (pytorch-transformers), which differs from `optax.adamw` twice.

    `eps` is added to sqrt(nu) before the bias correction, and the decay comes after the step and shrinks the
    stepped parameter, with the scheduled rate: p <- (p + u) (1 - rate * weight_decay). Every parameter
    decays, biases and norms too.
    """

    def init(params):
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
        return AdamWState(jnp.zeros([], jnp.int32), zeros(), zeros())

    def update(gradients, state, params):
        count = state.count + 1
        rate = schedule(count)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, gradients)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, gradients)
        # 1 - b^count cancels badly in float32 (b2 = 0.999 loses five digits at the first update); expm1 does
        # not.
        correction1, correction2 = (-jnp.expm1(count * jnp.log1p(b - 1)) for b in (b1, b2))
        size = rate * jnp.sqrt(correction2) / correction1

        def change(m, v, p):
            step = -size * m / (jnp.sqrt(v) + eps)
            return step - rate * weight_decay * (p + step)

        return jax.tree.map(change, mu, nu, params), AdamWState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def sgd(schedule: Schedule, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """Return PyTorch's SGD: decay is part of the gradient, and momentum is not scaled by the rate."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(momentum),
        optax.scale_by_schedule(lambda count: -schedule(count + 1)),
    )


def make_optimizer(config: ml_collections.ConfigDict, schedule: Schedule) -> optax.GradientTransformation:
    """Return the optimizer of the block `config.optimizer`; `clip_norm` 0 does not clip.

    Raises:
        ValueError: The name is unknown.
    """
    steps = {
        "adamw": lambda: adamw(schedule, config.b1, config.b2, config.eps, config.weight_decay),
        "sgd": lambda: sgd(schedule, config.momentum, config.weight_decay),
    }
    if config.name not in steps:
        raise ValueError(f"optimizer.name is {config.name!r}; it can be {', '.join(steps)}")
    clip = clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, steps[config.name]())
