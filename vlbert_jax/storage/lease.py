"""The lock of a run in a bucket: an object with its owner, which the owner renews while it runs."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import socket
import time
import uuid
from pathlib import Path

from vlbert_jax.files import json_object
from vlbert_jax.storage.bucket import Bucket, StorageError

log = logging.getLogger(__name__)

LOCK = ".lock"  # name of the object
LEASE_SECONDS = 120.0  # a lock that is not renewed for this time belongs to a process that is gone
LOOK_SECONDS = 5.0  # between two looks at the lock of another machine


class Lease:
    """The right to write below an address; `renew` it at least every LEASE_SECONDS / 4."""

    def __init__(self, bucket: Bucket):
        """Take the lock. Raises ValueError where another run has it, and StorageError."""
        self.bucket, self.token = bucket, uuid.uuid4().hex
        self.started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        self.count, self.renewed = 0, time.monotonic()
        while True:
            self._wait_for_end()  # not every store refuses to replace an object
            with contextlib.suppress(FileExistsError):
                bucket.write(LOCK, self._content(), new=True)
                return

    def _content(self) -> bytes:
        owner = dict(host=socket.gethostname(), system=_system(), process=os.getpid(), started=self.started)
        return json.dumps(owner | dict(token=self.token, renewals=self.count)).encode()

    def _holder(self) -> dict:
        """Return who has the lock, {} if nobody has."""
        try:
            return json_object(self.bucket.read(LOCK), f"{self.bucket.address}/{LOCK}", "delete this object", "token")
        except FileNotFoundError:
            return {}

    def _wait_for_end(self) -> None:
        """Delete the lock of another process if that is gone. Raises ValueError if it is not."""
        first, end, waits = self._holder(), None, False
        while first:
            here = (first.get("host"), first.get("system")) == (socket.gethostname(), _system())
            who = f"process {first.get('process')} of {first.get('host')}, since {first.get('started')}"
            if here and not _runs(first.get("process")):
                break
            end = end or time.monotonic() + (0 if here else LEASE_SECONDS)
            if time.monotonic() >= end and not here:
                break
            if here or waits and self._holder() != first:
                raise ValueError(
                    f"another run writes to {self.bucket.address} ({who}); stop it first, or choose another --workdir"
                )
            if not waits:
                log.info("%s is locked by %s; waiting up to %.0f s for it", self.bucket.address, who, LEASE_SECONDS)
            waits = True
            time.sleep(LOOK_SECONDS)
        if first and self._holder() == first:
            self.bucket.delete([LOCK])

    def renew(self) -> None:
        """Show that this process runs. Raises StorageError where another run has taken the lock meanwhile."""
        if time.monotonic() - self.renewed < LEASE_SECONDS / 4:
            return
        if (holder := self._holder()).get("token") not in (self.token, None):
            raise StorageError(
                f"{self.bucket.address} was taken over by process {holder.get('process')} of {holder.get('host')}, "
                "because this run did not reach it for too long"
            )
        self.count += 1
        self.bucket.write(LOCK, self._content())
        self.renewed = time.monotonic()

    def release(self) -> None:
        """Give the lock back. Raises StorageError."""
        if self._holder().get("token") == self.token:
            self.bucket.delete([LOCK])


def _system() -> str:
    """Return a text that a restart of the machine or of its container changes: numbers of processes begin anew then."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:  # of another system than Linux
        return ""


def _runs(process) -> bool:
    """Return whether a process of this machine runs."""
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except PermissionError:
        pass
    return int(process) != os.getpid()
