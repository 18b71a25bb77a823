"""A JAX profiler trace of some updates, for TensorBoard or Perfetto."""

import contextlib
import logging
import pathlib
from collections.abc import Iterator, Sequence

import jax
from jaxtyping import PyTree

log = logging.getLogger(__name__)


class Profile:
    """Writes one trace that holds the updates from the first to the last of `steps`."""

    def __init__(self, steps: Sequence[int], directory: pathlib.Path):
        """Prepare the trace; nothing is written before the first of the updates.

        Args:
          steps: the first and the last update, counted from 1; empty = no trace.
          directory: folder of the trace; every process of the run writes a file of its own.

        Raises:
          ValueError: `steps` is neither empty nor two increasing numbers from 1.
        """
        if len(steps) not in (0, 2) or (steps and not 1 <= steps[0] <= steps[1]):
            raise ValueError(
                f"config.profile_steps is {tuple(steps)}; it can be empty, or the first and the last update of a trace"
            )
        self.first, self.last = steps or (0, 0)
        self.directory, self.tracing = directory, False

    @contextlib.contextmanager
    def of_update(self, step: int) -> Iterator[None]:
        """Name update `step` in the trace if it belongs there; a run that continues within the range starts late."""
        if not self.first <= step <= self.last:
            yield
            return
        if not self.tracing:
            jax.profiler.start_trace(str(self.directory))
            self.tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def after_update(self, step: int, state: PyTree):
        """Write the trace after the last of its updates, when the devices have finished it."""
        if self.tracing and step == self.last:
            jax.block_until_ready(state)
            self.close()

    def close(self):
        """Write a trace that is under way."""
        if self.tracing:
            jax.profiler.stop_trace()
            self.tracing = False
            log.info("profile: %s", self.directory)
