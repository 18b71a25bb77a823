"""Images at http and https addresses, downloaded with limits of size and time.

Code that serves others must not open the addresses that they send: the server could be made to read its own network.
So `image_files.read_image` refuses addresses unless its caller permits them.
"""

from __future__ import annotations

import functools
import http.client
import re
import time
import urllib.error
import urllib.request
from typing import Any

MOST_BYTES = 50_000_000  # of a download
WAIT = 10.0  # seconds without an answer after which a download ends
SECONDS = 60.0  # of a whole download


def is_address(image: Any) -> bool:
    """Return whether an image is given as an http or https address."""
    return isinstance(image, str) and re.match(r"https?://", image, re.IGNORECASE) is not None


def shown_address(address: str) -> str:
    """Return an address for messages: without what follows "?", which may hold a password."""
    return address.partition("?")[0]


@functools.lru_cache(maxsize=16)
def download_image(address: str) -> bytes:
    """Return what is at an address; that it is an image is found out where it is decoded.

    Raises:
        ValueError: The address is wrong, the server does not answer, or the content is too large; the message has one
            line.
    """
    request = urllib.request.Request(address, headers={"User-Agent": "vlbert_jax", "Accept": "image/*"})
    deadline, content = time.monotonic() + SECONDS, b""
    try:
        with _opener().open(request, timeout=WAIT) as response:
            if int(response.headers.get("Content-Length") or 0) > MOST_BYTES:
                raise ValueError(f"the image has more than {MOST_BYTES:,} bytes; download it and reduce its size")
            while part := response.read1(2**16):
                content += part
                if len(content) > MOST_BYTES:
                    raise ValueError(f"the image has more than {MOST_BYTES:,} bytes; download it and reduce its size")
                if time.monotonic() > deadline:
                    raise ValueError(f"the download takes more than {SECONDS:g} s; download the image by other means")
    except urllib.error.HTTPError as error:
        reason = f"the server answers {error.code} {error.reason}; check the address"
    except (OSError, http.client.HTTPException, ValueError) as error:
        timeout = isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError)
        reason = f"the server does not answer within {WAIT:g} s; try again later" if timeout else str(error)
    else:
        return content
    raise ValueError(f"{shown_address(address)}: {' '.join(reason.split())}") from None


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    """Return an opener that follows redirections to http and https only, not to files or FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler, urllib.request.HTTPErrorProcessor, urllib.request.HTTPDefaultErrorHandler,
        urllib.request.UnknownHandler,
    ):  # fmt: skip
        opener.add_handler(handler())
    return opener
