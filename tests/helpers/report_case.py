"""Write the report of a model without a run."""

import jax
from flax import nnx

from vlbert_jax.tasks.base import About


def shown_by(task, model, config):
    """Return the batches of a task's report with the rows of a model."""
    graphdef, state = nnx.split(model)
    rows = jax.jit(lambda state, batch: task.report_rows(nnx.merge(graphdef, state), batch, config))
    return [(batch, jax.device_get(rows(state, batch))) for batch in task.report_batches(config)]


def report_examples(task, model, config, scores):
    """Return the examples of a task's report."""
    return task.report_examples(shown_by(task, model, config), config, scores)


def write_report(task, directory, model, config, history):
    """Write the report page of a model, and return its examples."""
    about = About("Finished.", {"command": "a command"}, [("Next:", "another command")], {"seed": 1})
    return task.write_report(directory, shown_by(task, model, config), config, history, about)
