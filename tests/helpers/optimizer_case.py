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
        name="adamw", b1=0.9, b2=0.999, eps=1e-6, weight_decay=1e-4, clip_norm=10.0, schedule="triangle"
    )
    config = ml_collections.ConfigDict(config)
    config.update_from_flattened_dict(fields)
    return config


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
