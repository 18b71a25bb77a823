"""Stopping a run on SIGTERM."""

import signal

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
    """A process of the run was asked to stop (SIGTERM), and all have; says what is saved."""


class Preemption:
    """Within its context: whether the machine has asked a process of the run to stop (SIGTERM)."""

    def __enter__(self):
        self.signalled, self.alone, self.calls = False, jax.process_count() == 1, 0
        if self.alone:  # with more processes JAX listens itself, to find a call that suits all
            self.before = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, *_):
        self.signalled = True

    def reached(self) -> bool:
        """True at the same call on every host; all call it as often. No host waits for another here."""
        self.calls += 1
        return self.signalled if self.alone else multihost_utils.reached_preemption_sync_point(self.calls)

    def __exit__(self, *_):
        if self.alone:
            signal.signal(signal.SIGTERM, self.before)
