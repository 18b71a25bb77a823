"""Where a run's log goes: lines above the progress bar on the terminal, and WORKDIR/log.txt with dates."""

from __future__ import annotations

import contextlib
import io
import logging
import logging.handlers
import pathlib
import sys
import time
from collections.abc import Iterator

import tqdm

from vlbert_jax.files import with_addresses

LOGGER = logging.getLogger("vlbert_jax")
EARLY_LINES = 10_000  # of the log before WORKDIR/log.txt is opened; they are kept in memory


class TerminalHandler(logging.StreamHandler):
    """A handler that takes the progress bar away while it writes a line, so that they never share one."""

    def emit(self, record: logging.LogRecord):
        with tqdm.tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class _OneLine(logging.Formatter):
    """A formatter of warnings without the line of source code that Python appends to them, and with addresses."""

    def format(self, record: logging.LogRecord) -> str:
        text = with_addresses(super().format(record))
        return text.rstrip().splitlines()[0] if record.name == "py.warnings" and text.strip() else text


class _FileHandler(logging.FileHandler):
    """A handler that loses lines where the disk is full; the error of the run itself says that it is."""

    def handleError(self, record: logging.LogRecord):
        pass


def log_to_terminal() -> None:
    """Print warnings of all libraries and the information of vlbert_jax on the standard error."""
    handler = TerminalHandler()
    handler.setLevel(logging.INFO)
    handler.setFormatter(_OneLine("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    # Warnings of Python become lines of the log, so that they do not share a line with the bar.
    logging.captureWarnings(True)
    logging.getLogger().addHandler(logging.handlers.MemoryHandler(EARLY_LINES, flushLevel=logging.CRITICAL + 1))
    LOGGER.setLevel(logging.DEBUG)  # rows of metrics are debugging information: the terminal has them already
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs every step; it raises what matters


@contextlib.contextmanager
def log_to_file(workdir: pathlib.Path) -> Iterator[None]:
    """Append everything that the terminal shows to WORKDIR/log.txt, and the error that ends the run.

    Lines that were logged before this context, since `log_to_terminal`, are written first.

    Raises:
      OSError: the file cannot be opened.
    """
    handler = _FileHandler(workdir / "log.txt", encoding="utf-8")
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()  # warnings of all libraries are shown on the terminal, too
    for early in [other for other in root.handlers if isinstance(other, logging.handlers.MemoryHandler)]:
        early.setTarget(handler)
        root.removeHandler(early)
        early.close()  # writes its lines
    root.addHandler(handler)
    try:
        yield
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
        handler.handle(logging.LogRecord(LOGGER.name, logging.ERROR, __file__, 0, text, (), None))
        raise
    finally:
        root.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()


class _LoggedOutput(io.TextIOBase):
    """A standard output whose complete lines are logged as well."""

    def __init__(self, output):
        self.output, self.line = output, ""

    def write(self, text: str) -> int:
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            LOGGER.debug("%s", line)  # the terminal has it already
        return self.output.write(text)

    def flush(self):
        self.output.flush()


@contextlib.contextmanager
def logged_output() -> Iterator[None]:
    """Log the lines that are printed in this context."""
    with contextlib.redirect_stdout(_LoggedOutput(sys.stdout)):
        yield


class Waits:
    """The waits of a run: a line before each says what it is for and how long it takes.

    That is the time that the last wait of its kind took, or a measured example.
    """

    def __init__(self):
        self.seconds: dict[str, float] = {}  # of the last wait of a kind

    @contextlib.contextmanager
    def announced(self, kind: str, about: str, example: str) -> Iterator[None]:
        """Say that a wait begins, and after it how long it took.

        Args:
          kind: what the wait is for; the last one of the same kind tells how long it takes.
          about: more about this wait, may be empty.
          example: how long the first one took where it was measured.
        """
        last = self.seconds.get(kind)
        expected = example if last is None else f"the last time it took {readable_seconds(last)}"
        LOGGER.info("%s; %s", f"{kind} {about}".strip(), expected)
        began = time.perf_counter()
        yield
        seconds = self.seconds[kind] = time.perf_counter() - began
        LOGGER.log(logging.INFO if seconds >= 1 else logging.DEBUG, "%s took %s", kind, readable_seconds(seconds))


def readable_seconds(seconds: float) -> str:
    """Return a duration in its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, hours, days = round(seconds) // 60, round(seconds) // 3600, round(seconds) // 86400
    if days:
        return f"{days} d {hours % 24} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min {round(seconds) % 60} s"
