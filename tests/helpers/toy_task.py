"""Define a task that trains in a second, for tests of the training loop.

Its model has two trained dense layers and dropout.
"""

import dataclasses
import sys
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from configs import common
from vlbert_jax.batch import Arrays, Batch, padding
from vlbert_jax.model.layers import dropout
from vlbert_jax.tasks import Registered
from vlbert_jax.tasks.base import Examples, Task
from vlbert_jax.visualization.report import paragraph

FEATURES, WIDTH, VALIDATION = 8, 16, 24  # VALIDATION is the size of the val split


class Toy(nnx.Module):
    def __init__(self, dropout_rate, rngs):
        self.dropout_rate = dropout_rate
        normal = jax.random.normal
        self.frozen = nnx.Param(normal(rngs.params(), (FEATURES, FEATURES)) / 3, axes=("feature", None))
        self.first = nnx.Param(normal(rngs.params(), (FEATURES, WIDTH)) / 3, axes=("embed", "mlp"))
        self.last = nnx.Param(normal(rngs.params(), (WIDTH, 1)) / 4, axes=("mlp", None))

    def __call__(self, batch, key=None):
        x = batch.boxes[:, 0] @ self.frozen[...][:4]
        x = dropout(jnp.tanh(x @ self.first[...]), self.dropout_rate, key)
        return (x @ self.last[...])[:, 0]


def make_config(**fields) -> ml_collections.ConfigDict:
    config = common.trainer()
    config.task = "toy"
    config.total_steps, config.batch_size, config.learning_rate, config.warmup_steps = 20, 16, 1e-2, 2
    config.compute_dtype, config.report = "float32", False
    config.log_every_steps, config.eval_every_steps, config.checkpoint_every_steps = 4, 10, 5
    config.best_metric = "loss"
    config.dropout_rate = 0.1
    config.poison_step = -1  # step whose batch contains a NaN, -1 = none
    config.step_delay = 0.0  # seconds to wait for each batch
    config.second_loss_from = 0  # first step at which the loss `size` is active
    config.data = ml_collections.ConfigDict(
        dict(embedded="", data_dir="data", vocab="", features="image", extractor="", num_threads=1, prefetch=1)
    )
    config.model = ml_collections.ConfigDict(dict(encoder=dict(vocab_size=0)))
    config.update_from_flattened_dict(fields)
    return config


def get_config() -> ml_collections.ConfigDict:
    """Return the config for `--config=tests/helpers/toy_task.py`."""
    return make_config()


@dataclasses.dataclass(frozen=True, eq=False)
class ToyTargets(Arrays):
    group: Int[Array | np.ndarray, "b"] = padding(0)


def _batch(rng, size) -> Batch:
    boxes = rng.normal(size=(size, 1, 4)).astype(np.float32)
    zeros = np.zeros((size, 1, 1), np.int32)
    group = (np.sin(boxes[:, 0].sum(-1)) > 0).astype(np.int32)
    mask = rng.random((size, 1, 1)) < 0.8
    return Batch(zeros, zeros, zeros, zeros, mask, boxes=boxes, targets=ToyTargets(group))


class ToyTask(Task):
    name = "toy"
    targets = ToyTargets

    def build_model(self, config, rngs):
        return Toy(config.dropout_rate, rngs)

    def is_frozen(self, path, config):
        return path == ("frozen",)

    def batch_shapes(self, config):
        return jax.eval_shape(lambda: jax.tree.map(jnp.asarray, _batch(np.random.default_rng(0), config.batch_size)))

    def train_batches(self, config, start_step, process_index, process_count):
        for step in range(start_step, sys.maxsize):
            batch = _batch(np.random.default_rng((config.seed, step)), config.batch_size)
            time.sleep(config.step_delay)
            if step == config.poison_step:
                batch.boxes[0] = np.nan
            yield jax.tree.map(lambda x: np.split(x, process_count)[process_index], batch)

    def eval_batches(self, config, process_index, process_count):
        def subset(seed):
            batch = _batch(np.random.default_rng(seed), VALIDATION)
            for start in range(0, VALIDATION, 16):
                part = jax.tree.map(lambda x, start=start: x[start : start + 16], batch)
                missing = 16 - part.boxes.shape[0]
                part = jax.tree.map(
                    lambda x, m=missing: np.concatenate([x, np.zeros((m, *x.shape[1:]), x.dtype)]), part
                )
                yield jax.tree.map(lambda x: np.split(x, process_count)[process_index], part)

        return {"val": subset(1), "other": subset(2)}

    def active_losses(self, config, step):
        return ("fit", "size") if step >= config.second_loss_from else ("fit",)

    def loss_weights(self, config):
        return {"fit": 1.0, "size": 0.1}

    def loss_counts(self, batch, config, names):
        count = jnp.maximum(batch.element_mask.sum().astype(jnp.float32), 1)
        return dict.fromkeys(names, count)

    def loss_sums(self, model, batch, key, config, names):
        logits, mask = model(batch, key), batch.element_mask[:, 0, 0]
        hits = (logits > 0) == (batch.targets.group > 0)
        sums = {"fit": jnp.sum(mask * (logits - batch.targets.group) ** 2), "size": jnp.sum(mask * logits**2)}
        return {name: sums[name] for name in names}, {"fit_accuracy": (jnp.sum(hits & mask), jnp.sum(mask))}

    def score(self, model, batch, config):
        logits, mask = model(batch), batch.element_mask[:, 0, 0]
        hits = (logits > 0) == (batch.targets.group > 0)
        return {
            "accuracy": (jnp.sum(hits & mask), jnp.sum(mask)),
            "loss": (jnp.sum(mask * (logits - batch.targets.group) ** 2), jnp.sum(mask)),
            "never": (jnp.zeros(()), jnp.zeros(())),
        }

    def report_batches(self, config):
        return [_batch(np.random.default_rng(3), 16)]

    def report_rows(self, model, batch, config):
        return {"logits": model(batch)}

    def report_examples(self, shown, config, scores):
        values = [f"{value:.3f}" for _, rows in shown for value in rows["logits"]]
        return Examples([("Logits", paragraph(f"logits: {' '.join(values)}"))])


toy = ToyTask()
REGISTERED = Registered(f"{__name__}:ToyTask", "a toy", "--toy", "nothing")
