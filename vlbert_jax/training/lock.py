"""One run at a time writes to a workdir: a lock of the system, which ends with its process, however that ends."""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import pathlib
import socket
import time
from collections.abc import Iterator

import jax

from vlbert_jax.files import json_object

log = logging.getLogger(__name__)
LOCK = ".lock"  # file of a workdir
LEASE_SECONDS = 120  # a file server keeps the lock of a machine that was lost for about 90 s
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # of a file system without locks


@contextlib.contextmanager
def only_run(workdir: pathlib.Path) -> Iterator[None]:
    """Refuse a second run of the same workdir while this context lasts.

    Process 0 of a run has the lock for all its processes. It also counts between machines if their file system shares
    locks, as NFS does.

    Raises:
      ValueError: another run uses the workdir; the message names its process.
    """
    if jax.process_index() > 0:
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / LOCK, "a+") as file:
        _lock(file, workdir)
        file.truncate(0)
        started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        json.dump(dict(host=socket.gethostname(), process=os.getpid(), started=started), file)
        file.flush()
        yield


def _lock(file, workdir: pathlib.Path) -> None:
    """Lock an open file; wait some time for a process of another machine, which may be lost. Raises ValueError."""
    end = None
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _holder(file)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            log.info("%s has no locks (%s): start no second run in this workdir", workdir, error.strerror)
            return
        is_remote = holder.get("host", socket.gethostname()) != socket.gethostname()
        if end is None:
            end = time.monotonic() + (LEASE_SECONDS if is_remote else 0)
        who = f"process {holder.get('process')} of {holder.get('host')}, since {holder.get('started')}"
        if time.monotonic() >= end:
            lost = f"; if that machine is lost, remove {workdir / LOCK}" if is_remote else ""
            raise ValueError(
                f"another run writes to {workdir} ({who}); stop it first, or choose another --workdir{lost}"
            )
        log.info("%s is locked by %s; waiting up to %d s for it", workdir, who, LEASE_SECONDS)
        time.sleep(min(10.0, LEASE_SECONDS))


def _holder(file) -> dict:
    """Return what the process that has the lock has written, {} if nothing."""
    file.seek(0)
    with contextlib.suppress(ValueError):
        return json_object(file.read(), LOCK, "it is written again")
    return {}
