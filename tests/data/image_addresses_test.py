"""Test images at http addresses, of a server on the loopback: what is opened, and what is refused."""

import http.server
import io
import re
import threading
import time

import numpy as np
import pytest
from PIL import Image

import vlbert_jax
from tests.helpers import ROOT
from vlbert_jax import predict
from vlbert_jax.data import image_addresses
from vlbert_jax.data.image_files import find_images, read_image

SCENE = ROOT / "examples/scene.jpg"


class Server(http.server.BaseHTTPRequestHandler):
    requested: list[str] = []

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.requested.append(self.path)
        kind, scene = self.path.partition("?")[0], SCENE.read_bytes()
        if kind == "/moved":
            self.send_response(302)
            self.send_header("Location", {"p": "/scene", "f": f"file://{SCENE}", "t": "ftp://x/"}[self.path[-1]])
            return self.end_headers()
        self.send_response(404 if kind == "/nothing" else 200)
        if kind == "/claims":
            self.send_header("Content-Length", str(10**9))
        self.end_headers()
        if kind == "/slow":
            for byte in scene:  # never long enough without an answer
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
        elif kind == "/silent":
            time.sleep(1.5)
        elif kind != "/claims":
            self.wfile.write(b"<html>" * 9 if kind == "/page" else scene)


@pytest.fixture(scope="module")
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.handle_error = lambda *_: None  # a client that leaves early is what is tested
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_image_at_an_address(address, capsys):
    expected = np.asarray(Image.open(SCENE))
    for path in ("/scene?password=1&x=*", "/moved?p"):
        name, pixels = read_image(address + path, addresses=True)
        np.testing.assert_array_equal(pixels, expected)
        assert name == address + path.partition("?")[0]
    assert find_images([f"{address}/scene?a[1]*"]) == [f"{address}/scene?a[1]*"]
    del Server.requested[:]
    assert predict.main([f"--image={address}/scene?command=1", f"--boxes={ROOT / 'examples/scene.json'}"]) == 0
    assert f"{address}/scene?command=1: 118 x 124; 3 regions" in capsys.readouterr().out
    assert Server.requested == ["/scene?command=1"]  # once, though the image is checked first


def test_addresses_are_refused_unless_they_are_permitted(address):
    del Server.requested[:]
    with pytest.raises(ValueError, match=re.escape(f"{address}/scene: addresses are not opened; give a file, or")):
        vlbert_jax.load("demo-vqa").answer(f"{address}/scene", "what?")
    assert not Server.requested
    permitted = vlbert_jax.load("demo-vqa", addresses=True)
    assert permitted.answer(f"{address}/scene", "what is red?") == permitted.answer(SCENE, "what is red?")


@pytest.mark.parametrize("path, message", [
    ("/nothing", "the server answers 404 Not Found; check the address"),
    ("/page", "the file is not an image of a format that Pillow supports"),
    ("/claims", "the image has more than 50,000,000 bytes; download it and reduce its size"),
    ("/large", "the image has more than 1,000 bytes"),
    ("/slow", "the download takes more than 0.5 s"),
    ("/silent", "the server does not answer within 1 s; try again later"),
    ("/moved?f", "the server answers 302 "),
    ("/moved?t", "unknown url type: ftp"),
])  # fmt: skip
def test_what_is_refused(path, message, address, monkeypatch):
    monkeypatch.setattr(image_addresses, "WAIT", 1.0)
    monkeypatch.setattr(image_addresses, "SECONDS", 0.5)
    if path == "/large":
        monkeypatch.setattr(image_addresses, "MOST_BYTES", 1000)
    began = time.monotonic()
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_image(address + path, addresses=True)
    assert time.monotonic() - began < 5 and "\n" not in str(caught.value)
    assert str(caught.value).startswith(address + path.partition("?")[0] + ": ")


def test_nothing_listens(tmp_path):
    with pytest.raises(ValueError, match=r"http://127.0.0.1:9/x: .*refused"):
        read_image("http://127.0.0.1:9/x", addresses=True)
    with pytest.raises(ValueError, match="there is no such file"):
        read_image("ftp://x/a.jpg", addresses=True)
    file = io.BytesIO()
    Image.new("RGB", (3, 2)).save(file, "PNG")
    (tmp_path / "http:x").write_bytes(file.getvalue())
    assert read_image(str(tmp_path / "http:x"))[1].shape == (2, 3, 3)
