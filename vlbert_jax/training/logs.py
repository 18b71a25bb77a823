"""Where a run's log goes: lines above the progress bar on the terminal, and WORKDIR/log.txt with dates."""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Iterator

import tqdm

LOGGER = logging.getLogger("vlbert_jax")


class TerminalHandler(logging.StreamHandler):
    """A handler that takes the progress bar away while it writes a line, so that they never share one."""

    def emit(self, record: logging.LogRecord):
        with tqdm.tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class _FileHandler(logging.FileHandler):
    """A handler that loses lines where the disk is full; the error of the run itself says that it is."""

    def handleError(self, record: logging.LogRecord):
        pass


def log_to_terminal() -> None:
    """Print warnings of all libraries and the information of vlbert_jax on the standard error."""
    handler = TerminalHandler()
    handler.setLevel(logging.INFO)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[handler], force=True)
    LOGGER.setLevel(logging.DEBUG)  # rows of metrics are debugging information: the terminal has them already
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs every step; it raises what matters


@contextlib.contextmanager
def log_to_file(workdir: pathlib.Path) -> Iterator[None]:
    """Append everything that vlbert_jax logs to WORKDIR/log.txt, and the error that ends the run.

    Raises:
      OSError: the file cannot be opened.
    """
    handler = _FileHandler(workdir / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    LOGGER.addHandler(handler)
    try:
        yield
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
        handler.handle(logging.LogRecord(LOGGER.name, logging.ERROR, __file__, 0, text, (), None))
        raise
    finally:
        LOGGER.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()
