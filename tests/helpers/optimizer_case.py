"""Provide settings of an optimizer, and compare updates with recordings of the official one."""

import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from vlbert_jax.training import optimizer


def make_config(**fields):
    config = dict(learning_rate=1e-3, warmup_steps=4, total_steps=12, opening=dict(steps=0, learning_rate=0.0))
    config["optimizer"] = dict(
        name="adamw", b1=0.9, b2=0.999, eps=1e-6, momentum=0.9, weight_decay=1e-4, no_decay=(), rate_factors=(),
        clip_norm=10.0, clip="global", schedule="triangle", counts_from=1, least_rate=0.0,
    )  # fmt: skip
    config = ml_collections.ConfigDict(config)
    config.update_from_flattened_dict(fields)
    return config


def settings_of(name: str, recorded: dict) -> dict:
    """Return the fields of config.optimizer and the lengths of a sibling's recording."""
    first = dict(zip(("b1", "b2"), recorded.get("betas", ()), strict=False))
    steps = recorded.get("t_total", recorded.get("num_train_steps"))
    is_uniter, each = name.startswith("uniter"), "max_grad_norm" in recorded
    limits = (recorded.get(field) for field in ("max_grad_norm", "clip_global_norm", "clip"))
    rates, decays = (np.ravel(recorded[x]).tolist() for x in ("learning_rate" if is_uniter else "lr", "weight_decay"))
    without = recorded.get("no_decay", ("LayerNorm.weight", "bias") if name.startswith("visualbert") else ())
    if len(decays) > 1:  # ViLBERT's groups, of one parameter each
        without = [f"param{i}$" for i, decay in enumerate(decays) if not decay]
    fields = dict(
        name="adamw" if is_uniter else "bertadam",
        b1=first.get("b1", recorded.get("b1")),
        b2=first.get("b2", recorded.get("b2")),
        eps=recorded.get("eps", recorded.get("e")),
        weight_decay=max(decays),
        no_decay=tuple(without),
        rate_factors=tuple(f"param{i}$={rate / rates[0]!r}" for i, rate in enumerate(rates) if i),
        clip_norm=float(next(limit for limit in limits if limit is not None)),
        clip="array" if each else "global",
        counts_from=int(is_uniter),
        least_rate=1e-8 if is_uniter else 0.0,
    )
    lengths = dict(learning_rate=rates[0], total_steps=steps)
    return lengths | {f"optimizer.{field}": value for field, value in fields.items()}


def check_updates_of_sibling(path):
    """Compare the parameters after each update, and the rates where they are recorded; relative tolerance 1e-6."""
    case, arrays = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
    recorded = case["config"]
    name = path.stem.removeprefix("optim_")
    config = make_config(**settings_of(name, recorded))
    config.warmup_steps = recorded.get("warmup_steps")
    with config.ignore_type():
        if config.warmup_steps is None:  # a part of all steps
            config.warmup_steps = recorded["warmup"] * config.total_steps
    numbered = {f"param{i}": f"in/param{i}" for i in range(len(arrays)) if f"in/param{i}" in arrays}
    start = numbered or {key.removeprefix("sd/"): key for key in arrays if key.startswith("sd/")}
    params = {parameter: jnp.asarray(arrays[key]) for parameter, key in start.items()}

    def at(kind: str, parameter: str, k: int):
        if numbered:
            return arrays[f"{kind}{parameter[5:]}_{k}" if kind == "in/grad" else f"{kind}/{parameter}_{k}"]
        return arrays[f"{kind}/{parameter}"][k]

    schedule = optimizer.learning_rate_schedule(config)
    tx = optimizer.make_optimizer(config.optimizer, schedule)
    state, update = tx.init(params), jax.jit(tx.update)
    for k in range(config.total_steps):
        gradients = {parameter: jnp.asarray(at("in/grad", parameter, k)) for parameter in params}
        if "out/learning_rate" in arrays:
            np.testing.assert_allclose(schedule(k + 1), arrays["out/learning_rate"][k], rtol=1e-6, atol=1e-9)
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for parameter, array in params.items():
            np.testing.assert_allclose(array, at("out", parameter, k), rtol=1e-6, atol=1e-6)


def check_official_updates(path):
    """Compare learning rate, gradient norm and parameters of each update.

    The relative tolerance is 1e-6; float32 resolves 6e-8.
    """
    case, arrays = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
    config = make_config(
        learning_rate=case["lr"],
        warmup_steps=case["warmup_steps"],
        total_steps=case["t_total"],
        **{
            "optimizer.b1": case["betas"][0],
            "optimizer.b2": case["betas"][1],
            "optimizer.eps": case["eps"],
            "optimizer.weight_decay": case["wd"],
            "optimizer.clip_norm": float(case["clip_grad_norm"]),
        },
    )
    schedule = optimizer.learning_rate_schedule(config)
    tx = optimizer.make_optimizer(config.optimizer, schedule)
    names = [key.removeprefix("in/p0_") for key in arrays if key.startswith("in/p0_")]
    params = {name: jnp.asarray(arrays[f"in/p0_{name}"]) for name in names}
    state = tx.init(params)
    update = jax.jit(tx.update)
    for k in range(len(case["lrs"])):
        gradients = {name: jnp.asarray(arrays[f"in/grads_{name}"][k]) for name in names}
        np.testing.assert_allclose(optax.tree.norm(gradients), arrays["out/total_norm"][k], rtol=1e-6)
        np.testing.assert_allclose(schedule(k + 1), case["lrs"][k], rtol=1e-6)
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for name in names:
            np.testing.assert_allclose(params[name], arrays[f"out/p_{name}"][k], rtol=1e-6, atol=1e-7)
