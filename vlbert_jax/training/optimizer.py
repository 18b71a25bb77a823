"""Learning rate schedules, gradient clipping, AdamW and SGD of the official code, as optax transformations.

The optimizers of VL-BERT's siblings are settings: BertAdam of VisualBERT, LXMERT and ViLBERT, and UNITER's AdamW.
"""

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float, Int, PyTree

Schedule = Callable[[Int[Array, ""] | int], Float[Array, ""]]
STACKED = re.compile(r"(^|/)(layers|groups)/")  # parameters whose first axis is the layer: each layer is an array


def learning_rate_schedule(config: ml_collections.ConfigDict) -> Schedule:
    """Return the learning rate of update k, which counts from 1: the official scheduler steps before its optimizer.

    With `optimizer.counts_from` 0 the schedule is one update late, as BertAdam reads it: the very first update has rate
    0 and the last one has not. `optimizer.least_rate` replaces lower rates (UNITER).

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
    late, least = 1 - config.optimizer.get("counts_from", 1), config.optimizer.get("least_rate", 0.0)
    drops = jnp.asarray([round(part * config.total_steps) for part in parts], jnp.int32)

    def rate(update):
        done = update - late
        main = phase(done - opening.steps, config.learning_rate, config.total_steps - opening.steps)
        main *= 0.1 ** jnp.sum(done >= drops)
        found = jnp.where(update > opening.steps, main, phase(done, opening.learning_rate, opening.steps))
        return jnp.maximum(found, least) if least else found

    return rate


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scale gradients by max_norm / (norm + 1e-6) where that is below 1, as PyTorch does."""

    def update(updates, state, params=None):
        scale = jnp.minimum(max_norm / (optax.tree.norm(updates) + 1e-6), 1.0)
        return jax.tree.map(lambda g: g * scale, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def clip_each_array(max_norm: float) -> optax.GradientTransformation:
    """Scale every array for itself as `clip_by_global_norm` does all; the layers of the encoder are separate arrays."""

    def clip(path, g):
        stacked = g.ndim > 0 and STACKED.search(parameter_name(path))
        norm = jnp.sqrt(jnp.sum(jnp.square(g), axis=tuple(range(1, g.ndim)) if stacked else None, keepdims=True))
        return g * jnp.minimum(max_norm / (norm + 1e-6), 1.0)

    def update(updates, state, params=None):
        return jax.tree_util.tree_map_with_path(clip, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def parameter_name(path: tuple) -> str:
    """Return the path of a parameter as a name: its keys, divided by slashes."""
    return "/".join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))


class Groups(NamedTuple):
    """Parameters that decay, or whose rate is another one."""

    weight_decay: float
    no_decay: tuple[str, ...] = ()  # patterns of names that do not decay
    rate_factors: tuple[str, ...] = ()  # PATTERN=FACTOR: the rate of these is multiplied; the first match counts

    def decays(self, params: PyTree) -> PyTree:
        """Return the decay of each parameter."""
        return self._each(params, lambda name: 0.0 if matches(self.no_decay, name) else self.weight_decay)

    def factors(self, params: PyTree) -> PyTree:
        """Return the factor of each parameter's rate; raise ValueError for one that is not a number."""
        pairs = [text.rpartition("=")[::2] for text in self.rate_factors]
        for pattern, factor in pairs:
            if not pattern or not re.fullmatch(r"[\d.]+(e-?\d+)?", factor):
                raise ValueError(
                    f"optimizer.rate_factors has {f'{pattern}={factor}'!r}; write PATTERN=FACTOR, as '^answer_head/=10'"
                )

        def factor_of(name: str) -> float:
            return next((float(factor) for pattern, factor in pairs if re.search(pattern, name)), 1.0)

        return self._each(params, factor_of)

    def _each(self, params: PyTree, value: Callable[[str], float]) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, _: value(parameter_name(path)), params)


def matches(patterns: tuple[str, ...], name: str) -> bool:
    """Return whether a pattern is found in a name."""
    return any(re.search(pattern, name) for pattern in patterns)


class AdamWState(NamedTuple):
    """State of AdamW and of BertAdam."""
    count: Int[Array, ""]  # updates so far
    mu: PyTree  # moving average of gradients
    nu: PyTree  # of their squares


def adam(
    schedule: Schedule, b1: float, b2: float, eps: float, groups: Groups, bert: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Return the AdamW of the official code (pytorch-transformers), which differs from `optax.adamw` twice.

    `eps` is added to sqrt(nu) before the bias correction, and the decay comes after the step and shrinks the
    stepped parameter, with the scheduled rate: p <- (p + u) (1 - rate * weight_decay). Every parameter
    decays, biases and norms too, unless `groups` says otherwise.

    `bert` is BertAdam: without bias correction, and the decay is part of the step, rate * (m / (sqrt(v) + eps)
    + decay * p).
    """

    def init(params):
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
        return AdamWState(jnp.zeros([], jnp.int32), zeros(), zeros())

    def update(gradients, state, params, *, finite=True):
        count = state.count + 1
        rate = schedule(count)
        # The step reads the moments that are kept. If it read them before the choice, XLA would compute them twice from
        # the old ones, which it would copy, because the new ones take their place.
        mu = jax.tree.map(lambda m, g: jnp.where(finite, b1 * m + (1 - b1) * g, m), state.mu, gradients)
        nu = jax.tree.map(lambda v, g: jnp.where(finite, b2 * v + (1 - b2) * g * g, v), state.nu, gradients)
        # 1 - b^count cancels badly in float32 (b2 = 0.999 loses five digits at the first update); expm1 does
        # not.
        correction1, correction2 = (-jnp.expm1(count * jnp.log1p(b - 1)) for b in (b1, b2))
        size = rate if bert else rate * jnp.sqrt(correction2) / correction1

        def change(m, v, p, decay, factor):
            step = -size * factor * m / (jnp.sqrt(v) + eps)
            return step - rate * factor * decay * (p if bert else p + step)

        changes = jax.tree.map(change, mu, nu, params, groups.decays(params), groups.factors(params))
        return changes, AdamWState(jnp.where(finite, count, state.count), mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def sgd(schedule: Schedule, momentum: float, weight_decay: float) -> optax.GradientTransformationExtraArgs:
    """Return PyTorch's SGD: decay is part of the gradient, and momentum is not scaled by the rate."""
    steps = optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(momentum),
        optax.scale_by_schedule(lambda count: -schedule(count + 1)),
    )

    def update(gradients, state, params, *, finite=True):
        changes, new = steps.update(gradients, state, params)
        return changes, jax.tree.map(functools.partial(jnp.where, finite), new, state)

    return optax.GradientTransformationExtraArgs(steps.init, update)


def make_optimizer(config: ml_collections.ConfigDict, schedule: Schedule) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer of the block `config.optimizer`; `clip_norm` 0 does not clip.

    Its `update` takes `finite`, a boolean scalar; if it is False, the state stays and the updates are undefined.

    Raises:
        ValueError: A name is unknown, or SGD has settings that only the others have.
    """
    groups = Groups(config.weight_decay, *(tuple(config.get(name, ())) for name in ("no_decay", "rate_factors")))
    options = (schedule, config.b1, config.b2, config.eps, groups)
    steps = {
        "adamw": lambda: adam(*options),
        "bertadam": lambda: adam(*options, bert=True),
        "sgd": lambda: sgd(schedule, config.momentum, config.weight_decay),
    }
    clips = {"global": clip_by_global_norm, "array": clip_each_array}
    for field, value, known in (("name", config.name, steps), ("clip", config.get("clip", "global"), clips)):
        if value not in known:
            raise ValueError(f"optimizer.{field} is {value!r}; it can be {', '.join(known)}")
    if config.name == "sgd" and (groups.no_decay or groups.rate_factors):
        raise ValueError("optimizer.no_decay and rate_factors are settings of adamw and bertadam, not of sgd")
    clip = clips[config.get("clip", "global")](config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, steps[config.name]())
