"""Stopping a run on SIGTERM."""

import logging
import signal
import threading

import jax
from jax.experimental import multihost_utils

log = logging.getLogger(__name__)


class Stopped(Exception):
    """Raised on all processes of a run after one of them was asked to stop (SIGTERM); says what is saved."""


class Preemption:
    """Detects within its context whether a process of the run was asked to stop (SIGTERM).

    Python sets signal handlers in the main thread only. In another thread (a server, Ray) a run of one process is not
    stopped by SIGTERM, and the log says so.
    """

    def __enter__(self):
        self.signalled, self.alone, self.calls = False, jax.process_count() == 1, 0
        # With more processes JAX installs a handler of its own, which finds a call that suits all.
        self.handling = self.alone and threading.current_thread() is threading.main_thread()
        if self.handling:
            self.before = signal.signal(signal.SIGTERM, self._note)
        elif self.alone:
            log.warning("not in the main thread: SIGTERM does not stop this run, only checkpoints are saved on the way")
        return self

    def _note(self, *_):
        self.signalled = True

    def reached(self) -> bool:
        """Return True from the same call on in every process; all processes call it equally often.

        No process waits for another here.
        """
        self.calls += 1
        return self.signalled if self.alone else multihost_utils.reached_preemption_sync_point(self.calls)

    def __exit__(self, *_):
        if self.handling:
            signal.signal(signal.SIGTERM, self.before)
