"""Stopping a run on SIGTERM and on SIGINT (Ctrl-C)."""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

log = logging.getLogger(__name__)
COMPILATION_SECONDS = 20  # time from SIGTERM until a compilation is given up; clusters kill a process after 30 s


class Stopped(Exception):
    """Raised on all processes of a run after one of them was asked to stop; says what is saved.

    `status` is the exit status of the command: 130 after SIGINT to a run of one process, else 143.
    """

    status = 128 + signal.SIGTERM


class Preemption:
    """Detects within its context whether a process of the run was asked to stop (SIGTERM, SIGINT).

    A second SIGINT ends the process at once, with status 130 and without saving; in an interactive session it raises
    KeyboardInterrupt. No signal interrupts a compilation, which may take minutes: a run of one process that is still
    compiling COMPILATION_SECONDS after SIGTERM ends at once, with status 143.

    Python sets signal handlers in the main thread only. In another thread (a server, Ray) a run of one process is not
    stopped by signals, and the log says so.
    """

    def __enter__(self):
        self.signalled, self.alone, self.calls = 0, jax.process_count() == 1, 0
        self.compiling = False
        self.closing = contextlib.ExitStack()
        # With more processes JAX installs a handler of SIGTERM, which finds a call that suits all.
        if threading.current_thread() is threading.main_thread():
            self._handle()
        elif self.alone:
            log.warning("not in the main thread: SIGTERM does not stop this run, only checkpoints are saved on the way")
        return self

    def _handle(self):
        """Install the handlers, and a thread that is notified of signals while the main thread is in a call of C."""
        numbers = [signal.SIGTERM] if self.alone else []
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # a shell sets this for background processes
            numbers.append(signal.SIGINT)
        for number in numbers:
            self.closing.callback(signal.signal, number, signal.signal(number, self._note))
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        thread = threading.Thread(target=self._answer, args=(reader,), daemon=True)
        thread.start()
        self.closing.callback(thread.join)
        self.closing.callback(writer.close)  # ends the thread
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self.closing.callback(signal.set_wakeup_fd, before)

    def _note(self, number, _):
        if number == signal.SIGINT and self.signalled == signal.SIGINT:
            raise KeyboardInterrupt
        self.signalled = number
        if not self.alone:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX passes it on to the other processes

    def _answer(self, reader: socket.socket):
        """Report the first SIGINT, and end the process at the second one; on SIGTERM limit a compilation.

        A handler of Python would wait for the main thread, which may compile a program for minutes.
        """
        asked = False
        with reader:
            while number := reader.recv(1):
                if number[0] == signal.SIGTERM and self.alone:
                    timer = threading.Timer(COMPILATION_SECONDS, self._end_compilation)
                    timer.daemon = True
                    timer.start()
                if number[0] != signal.SIGINT:
                    continue
                if asked and not hasattr(sys, "ps1"):
                    print("\nended at once; the same command continues from the newest checkpoint", file=sys.stderr)
                    os._exit(128 + signal.SIGINT)
                asked = True
                log.warning("Ctrl-C: the run is saved after this step and stops; Ctrl-C again ends it at once")

    @contextlib.contextmanager
    def of_compilation(self) -> Iterator[None]:
        """Mark a compilation by the main thread; it may be given up after SIGTERM."""
        self.compiling = True
        try:
            yield
        finally:
            self.compiling = False

    def _end_compilation(self):
        if self.compiling and not hasattr(sys, "ps1"):
            log.warning("SIGTERM in a compilation: ended; the same command continues from the newest checkpoint")
            sys.stdout.flush()
            os._exit(128 + signal.SIGTERM)

    def reached(self) -> bool:
        """Return True from the same call on in every process; all processes call it equally often.

        No process waits for another here.
        """
        self.calls += 1
        return bool(self.signalled) if self.alone else multihost_utils.reached_preemption_sync_point(self.calls)

    def __exit__(self, _, error, __):
        self.closing.close()
        if isinstance(error, Stopped) and self.alone and self.signalled:
            error.status = 128 + self.signalled
