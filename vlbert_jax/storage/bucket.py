"""Requests to a folder in a bucket, each with a time limit, repeated a few times, and with errors of one line.

fsspec makes them: `gcsfs` for gs://, `s3fs` for s3://. They find the credentials in the environment and in the usual
files; no message contains them.
"""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import logging
import os
import re
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
EXTRAS = {"gs": "gcs", "s3": "s3"}  # of the package vlbert_jax
ATTEMPTS = 6  # of a request, with pauses of PAUSE x 1, 2, 4, ... seconds between them
PAUSE = 0.5
PATIENCE = 60.0  # seconds for an answer to one attempt, and one more for each MILLION_BYTES
MILLION_BYTES = 1_000_000
SMALL = 8_000_000  # bytes of files that are sent from memory
THREADS = 8  # requests at the same time
DENIED = re.compile(r"\b(Forbidden|Unauthorized|AccessDenied)\b")  # in messages of gcsfs and s3fs
SECRETS = re.compile(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY", re.IGNORECASE)  # in names of environment variables


class StorageError(OSError):
    """A bucket does not do what it was asked for; the message is one line."""


def check_address(address: str) -> None:
    """Raise ValueError where an address cannot be used: its kind, its form, or a package that is missing."""
    scheme, _, place = address.partition("://")
    if scheme not in PACKAGES:
        raise ValueError(f"{scheme}:// is not supported; give a folder, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER")
    if "@" in place.partition("/")[0]:
        raise ValueError(f"a {scheme}:// address holds no credentials; store them where {PACKAGES[scheme]} finds them")
    if not place.partition("/")[0]:
        raise ValueError(f"{address} names no bucket; give {scheme}://BUCKET/FOLDER")
    if importlib.util.find_spec(PACKAGES[scheme]) is None:
        extra = f"'vlbert_jax[{EXTRAS[scheme]}]'"
        raise ValueError(f"{address} needs {PACKAGES[scheme]}, which is not installed: pip install {extra}")


class Bucket:
    """The objects below one address. Names are relative to it; "" is the object at the address itself."""

    def __init__(self, address: str):
        check_address(address)
        self.address = address.rstrip("/")
        import fsspec

        scheme = address.partition("://")[0]
        options: dict[str, Any] = dict(use_listings_cache=False, skip_instance_cache=True)
        if scheme == "s3":  # this module repeats requests itself
            options |= dict(config_kwargs=dict(connect_timeout=10, read_timeout=PATIENCE, retries=dict(max_attempts=1)))
        self.files: Any = fsspec.filesystem(scheme, **options)
        self.root: str = self.files._strip_protocol(self.address)

    def below(self, name: str) -> Bucket:
        """Return the objects below a folder."""
        inner = copy.copy(self)
        inner.address, inner.root = f"{self.address}/{name}", f"{self.root}/{name}"
        return inner

    def sizes(self) -> dict[str, int]:
        """Return the name and the size in bytes of each object. Raises StorageError."""
        return {name: size for name, (size, _) in self.stamps().items()}

    def stamps(self) -> dict[str, list]:
        """Return the name of each object, its size in bytes and a mark of its content. Raises StorageError."""
        found = self._request("list", "", "_find", self.root, detail=True)
        names = {path.removeprefix(self.root).lstrip("/"): about for path, about in found.items()}
        return {
            name: [about["size"], str(about.get("ETag") or about.get("md5Hash") or about.get("etag") or "")]
            for name, about in names.items()
            if about.get("type", "file") == "file"
        }

    def read(self, name: str) -> bytes:
        """Return the content of a small object. Raises FileNotFoundError and StorageError."""
        return self._request("read", name, "_cat_file", self._path(name))

    def write(self, name: str, content: bytes, new: bool = False) -> None:
        """Replace an object atomically; with `new` raise FileExistsError where it exists. Raises StorageError."""
        mode = dict(mode="create") if new else {}
        try:
            self._request("write", name, "_pipe_file", self._path(name), content, **mode)
        except FileExistsError:
            if self.read(name) != content:  # an attempt without an answer may have made it
                raise

    def download(self, sizes: dict[str, int], folder: Path) -> None:
        """Write objects with the given sizes to files of the same names in `folder`. Raises StorageError."""

        def fetch(name: str) -> None:
            if ".." in name.split("/"):
                raise StorageError(f"{self._shown(name)} would be a file outside of its folder; rename or delete it")
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            self._request("read", name, "_get_file", self._path(name), str(target), size=sizes[name])
            if target.stat().st_size != sizes[name]:
                raise StorageError(f"{self._shown(name)} changed while it was read; run the same command again")

        self._each(fetch, sizes)

    def upload(self, folder: Path, names: Iterable[str]) -> None:
        """Write files in `folder` to objects of the same names. Raises FileNotFoundError and StorageError."""

        def send(name: str) -> None:
            size = (folder / name).stat().st_size
            if size <= SMALL:  # a file that grows meanwhile is read once
                self.write(name, (folder / name).read_bytes())
            else:
                self._request("write", name, "_put_file", str(folder / name), self._path(name), size=size)

        self._each(send, names)

    def copy_to(self, target: Bucket, names: Mapping[str, str]) -> None:
        """Copy objects within the storage to objects of `target`, by their new names.

        Raises FileNotFoundError and StorageError.
        """
        sizes = self.sizes()

        def duplicate(name: str) -> None:
            if name not in sizes:
                raise FileNotFoundError(f"there is no {self._shown(name)}")
            size = sizes[name]
            self._request("copy", name, "_cp_file", self._path(name), target._path(names[name]), size=size)

        self._each(duplicate, names)

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; those that do not exist are left out. Raises StorageError."""

        def remove(name: str) -> None:
            try:
                self._request("delete", name, "_rm_file", self._path(name))
            except FileNotFoundError:
                pass

        self._each(remove, names)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def _shown(self, name: str) -> str:
        return f"{self.address}/{name}" if name else self.address

    @staticmethod
    def _each(work, names: Iterable[str]) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(work, names):
                pass

    def _request(self, verb: str, name: str, method: str, *args, size: int = 0, **options) -> Any:
        """Call an asynchronous method of the file system; repeat it while that may help."""
        from fsspec.asyn import sync

        seconds = PATIENCE + size / MILLION_BYTES

        async def bounded() -> Any:
            return await asyncio.wait_for(getattr(self.files, method)(*args, **options), seconds)

        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                return sync(self.files.loop, bounded)
            except Exception as error:
                if isinstance(error, FileExistsError) or (isinstance(error, FileNotFoundError) and verb != "write"):
                    raise
                reason, final = _reason(error, seconds)
                log.debug("%s: %s, attempt %d: %s", self._shown(name), verb, attempt + 1, reason)
                if final or attempt == ATTEMPTS - 1:
                    tried = "" if final else f" after {ATTEMPTS} attempts"
                    raise StorageError(f"cannot {verb} {self._shown(name)}{tried}: {reason}") from None
        raise AssertionError("the last attempt returns or raises")


def _reason(error: Exception, seconds: float) -> tuple[str, bool]:
    """Return why a request failed, in one line without credentials, and whether it will fail again."""
    kind, text = type(error).__name__, str(error).strip()
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return f"no answer within {seconds:.0f} s", False
    code = getattr(error, "code", None) or getattr(error, "status", None)
    if "Credentials" in kind or "NoAuth" in kind:
        return "no credentials were found; log in, or set the variables of the environment for them", True
    if isinstance(error, PermissionError) or str(code) in ("401", "403") or DENIED.search(text):
        return "access is denied; check the rights of this account on the bucket", True
    if isinstance(error, FileNotFoundError):
        return "there is no such bucket", True
    text = " ".join(re.sub(r"\?\S+", "", text).split())[:300]  # a query may hold a signature
    for variable, value in os.environ.items():
        if len(value) >= 8 and SECRETS.search(variable):
            text = text.replace(value, "***")
    return f"{kind}: {text}" if text else kind, False
