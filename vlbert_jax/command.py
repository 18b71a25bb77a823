"""How a command starts and ends: Ctrl-C, warnings, and errors in one line. `data_prep` uses it too: no JAX."""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

# Other imports are inside the functions: until `end_at_ctrl_c` is called, Ctrl-C shows the code of what is imported.

LONGEST = 1000  # characters of an error; a value of a file in it may be longer
WRONG_PATH = (
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EEXIST,
)  # fmt: skip


def end_at_ctrl_c() -> None:
    """Let Ctrl-C end the process at once, without a word, if a command of this project is starting.

    While modules are imported there is nothing to save. A KeyboardInterrupt would show their code, or get lost: the
    start of a module in C and a callback of the garbage collector drop it.
    """
    program = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    if program == "-m":  # while Python looks for the module to run, which may be of somebody else
        is_command = any(argument.partition(".")[0] in ("vlbert_jax", "data_prep") for argument in sys.orig_argv)
    else:
        is_command = program.startswith("vlbert-")
    if is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def catch_ctrl_c() -> None:
    """Make Ctrl-C a KeyboardInterrupt again after `end_at_ctrl_c`."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame) -> None:
    """Raise KeyboardInterrupt, a moment later inside a callback of the garbage collector, which would drop it."""
    callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}  # JAX has one
    while frame is not None:
        if frame.f_code in callbacks:
            import threading

            again = threading.main_thread().ident, number
            threading.Timer(0.01, signal.pthread_kill, again).start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def report_once() -> None:
    """Hide what the threads of Orbax and TensorStore print after a write that failed, because the error is one line.

    On a full disk each of many writers finds the event loop closed, and asyncio logs the error of each once more.
    Python warns of coroutines of theirs that never started, at whatever moment it deletes them.
    """
    import logging
    import warnings

    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable  # it stays: threads may end after the command
    logging.getLogger("asyncio").addFilter(_is_news)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def _unraisable(found) -> None:
    if not (isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(found)


def _is_news(record) -> bool:
    message = record.getMessage()
    return "exception was never retrieved" not in message or "No space left on device" not in message


def run_command(
    work: Callable[[], None],
    needs: Sequence[str] = (),
    errors: tuple[type[Exception], ...] = (ValueError, OSError),
    interrupted: str = "stopped by Ctrl-C",
    reworded: Callable[[str], str] = str,
) -> int:
    """Run a command and return its exit status: 0, 2 after an error, or 130 after Ctrl-C.

    Args:
        work: Does what the command is for.
        needs: Slow modules, which are imported first; until then Ctrl-C ends the process at once.
        errors: Exceptions that one line on stderr explains; VLBERT_DEBUG=1 shows the traceback.
        interrupted: The line after Ctrl-C.
        reworded: Function of the message that returns the message to print.
    """
    report_once()
    try:
        for module in needs:
            importlib.import_module(module)
        catch_ctrl_c()
        with platforms_explained():
            work()
        return 0
    except errors as error:
        if os.environ.get("VLBERT_DEBUG"):
            raise
        status, message = 2, f"error: {reworded(one_line(error))}"
    except KeyboardInterrupt:
        status, message = 130, interrupted
    finally:
        if signal.getsignal(signal.SIGINT) is _interrupt:  # what Python does at its end saves nothing
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    print(message, file=sys.stderr)  # now that the error, and with it the progress bars of its frames, is gone
    return status


@contextlib.contextmanager
def platforms_explained() -> Iterator[None]:
    """Raise ValueError with a remedy where JAX cannot use a platform that JAX_PLATFORMS names.

    JAX raises RuntimeError for a name that it does not know, and AssertionError without a text for `cuda` without a GPU
    or without its plugin. A check before the work would start JAX before the processes of a run have joined.
    """
    try:
        yield
    except (AssertionError, RuntimeError) as error:
        chosen, reason = os.environ.get("JAX_PLATFORMS"), str(error)
        if not chosen or (reason and not reason.startswith("Unable to initialize backend")) or _has_devices():
            raise
        raise ValueError(
            f"JAX_PLATFORMS is {chosen!r}, and JAX finds no such device{reason and f' ({reason})'}; correct or unset "
            "JAX_PLATFORMS; for a GPU install vlbert_jax[cuda]"
        ) from error


def _has_devices() -> bool:
    """Return whether JAX finds devices, or is not what failed because nothing has imported it."""
    try:
        return "jax" not in sys.modules or bool(sys.modules["jax"].devices())
    except (AssertionError, RuntimeError):
        return False


def one_line(error: Exception) -> str:
    """Return the message of an error in one line of at most `LONGEST` characters."""
    message = str(error)
    if isinstance(error, OSError) and error.errno in WRONG_PATH and error.filename and not error.filename2:
        message = f"{os.fsdecode(error.filename)}: {error.strerror}; check this path and its permissions"
    from vlbert_jax.files import with_addresses

    message = " ".join(with_addresses(message).split())
    if len(message) > LONGEST:  # the place is at the start, the remedy at the end
        message = f"{message[: LONGEST - 303]} ... {message[-298:]}"
    return message


def log_warnings() -> None:
    """Print each warning of the package once on stderr, and nothing of the libraries below it."""
    import logging

    logging.basicConfig(format="warning: %(message)s", level=logging.WARNING, force=True)
    printed: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:  # a search reads the same text with each image
        known = record.getMessage() in printed
        printed.add(record.getMessage())
        return not known

    logging.getLogger().handlers[0].addFilter(is_new)
    logging.getLogger("vlbert_jax").setLevel(logging.NOTSET)  # a run in the same process has lowered it
    logging.getLogger("absl").setLevel(logging.CRITICAL)
