"""Provide emulators of S3 and GCS on the loopback, with a bucket for each test."""

import contextlib
import http.client
import http.server
import importlib
import itertools
import os
import random
import socket
import threading
import urllib.parse

import pytest

from tests.helpers import toy_task
from tests.helpers.toy_runs import rows_of, two_devices
from vlbert_jax.storage.workdir import local_workdir
from vlbert_jax.training.loop import train
from vlbert_jax.weights.checksums import damage_of

# gcsfs reads it when it is imported; it would ask for what no emulator has.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
SECRET = "a-secret-of-the-tests"
NUMBERS = itertools.count()


@contextlib.contextmanager
def s3_server():
    """Run moto's server; yield a function that makes a bucket and returns its address, and the environment."""
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = dict(
        AWS_ENDPOINT_URL=f"http://{host}:{port}", AWS_ACCESS_KEY_ID="a-key-of-the-tests", AWS_SECRET_ACCESS_KEY=SECRET,
        AWS_DEFAULT_REGION="us-east-1",
    )  # fmt: skip

    def make() -> str:
        boto3 = importlib.import_module("boto3")
        name = f"own-{next(NUMBERS)}"
        boto3.client("s3").create_bucket(Bucket=name)
        return f"s3://{name}"

    try:
        yield make, environment
    finally:
        server.stop()


@contextlib.contextmanager
def gs_server():
    """Do the same with an emulator of GCS."""
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    pytest.importorskip("gcsfs")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = emulator.create_server("127.0.0.1", port, in_memory=True)
    server.start()

    def make() -> str:
        name = f"own-{next(NUMBERS)}"
        importlib.import_module("gcsfs").GCSFileSystem(project="tests").mkdir(name)
        return f"gs://{name}"

    try:
        yield make, dict(STORAGE_EMULATOR_HOST=f"http://127.0.0.1:{port}")
    finally:
        server.stop()


SERVERS = {"s3": s3_server, "gs": gs_server}


@contextlib.contextmanager
def bucket_maker(kind: str, cache):
    """Run a server and set the environment of this process for it; copies go to the folder `cache`.

    The function that it yields has the variables in its field `environment`, for other processes.
    """
    with SERVERS[kind]() as (make, environment), pytest.MonkeyPatch.context() as patch:
        make.environment = environment | {
            "XDG_CACHE_HOME": str(cache),
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"],
        }
        for name, value in make.environment.items():
            patch.setitem(os.environ, name, value)
        yield make


class Proxy:
    """A proxy before a server of `SERVERS`, whose field `fault` makes requests fail.

    `broken`: a share of the requests is answered with an error of the server; `stalled`: none is answered; `refused`:
    those that write are answered with 403; "": none fails.
    """

    def __init__(self, target: str, share: float = 0.2):
        self.fault, self.share, self.random = "", share, random.Random(1)
        self.failed, self.awake = 0, threading.Event()
        proxy, place = self, urllib.parse.urlsplit(target).netloc

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def forward(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if fails := proxy.fails(self.command):
                    return self.answer(fails, [], b"")
                connection = http.client.HTTPConnection(place)
                connection.request(self.command, self.path, body, dict(self.headers))
                found = connection.getresponse()
                content = found.read()
                connection.close()
                skipped = ("transfer-encoding", "content-length", "connection", "date", "server")
                headers = [pair for pair in found.getheaders() if pair[0].lower() not in skipped]
                self.answer(found.status, headers, content, found.headers.get("Content-Length"))

            def answer(self, status, headers, content, length=None):
                self.send_response(status)
                for name, value in [*headers, ("Content-Length", length or len(content))]:
                    self.send_header(name, str(value))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def fails(self, command: str) -> int:
        """Return the status of the error with which a request is answered, 0 for none."""
        if self.fault == "stalled":
            self.failed += 1
            self.awake.wait(60)
            return 500
        refused = self.fault == "refused" and command in ("PUT", "POST", "DELETE")
        if refused or self.fault == "broken" and self.random.random() < self.share:
            self.failed += 1
            return 403 if refused else 503
        return 0

    def close(self):
        self.awake.set()
        self.server.shutdown()
        self.server.server_close()


def train_at(address, config, task=toy_task.toy):
    """Train at an address; return the rows and the state."""
    with local_workdir(address, True, damage_of) as folder:
        _, state = train(config, task, folder, two_devices())
        return rows_of(folder), state
