"""Test the command of the app: its page in a browser, its end, and its messages."""

import importlib.util
import json
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from tests.helpers import HANG_SECONDS, ROOT
from tests.helpers.browser import CHROMIUM, open_browser
from vlbert_jax import app

# Where the tests run in the background SIGINT is ignored, so Python's handler is set.
START = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
START += "from vlbert_jax import app; sys.exit(app.main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def server():
    """Start the app with the models that ship; yield the process and the address that it prints."""
    command = [sys.executable, "-c", START]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(command, cwd=ROOT, **pipes)
    line = process.stdout.readline()
    try:
        assert line.startswith("The page is at http://127.0.0.1:"), process.communicate(timeout=HANG_SECONDS)[1]
        assert line.endswith("/ (Ctrl-C ends it)\n")
        yield process, line.split()[4]
    finally:
        process.kill()
        process.communicate()


def test_the_page_has_a_tab_for_each_model(server):
    with urllib.request.urlopen(server[1] + "config", timeout=HANG_SECONDS) as answer:
        config = json.load(answer)
    labels = [part["props"]["label"] for part in config["components"] if part["type"] == "tabitem"]
    expected = ["Answer", "Similarity", "Ground", "Fill", "Classify two images", "Classify", "Describe"]
    assert labels == expected
    assert config["analytics_enabled"] is False and config.get("run_history", False) is False
    texts = "".join(str(part["props"].get("value")) for part in config["components"] if part["type"] == "html")
    assert texts.count("small demonstration model") == len(expected)


def visible(selector):
    """Return JavaScript for the elements of a selector that are seen: the parts of other tabs are not."""
    return f"[...document.querySelectorAll({json.dumps(selector)})].filter(e => e.offsetParent)"


def click(page, selector, text=""):
    """Click the visible element of a selector whose text begins with `text`."""
    found = f"{visible(selector)}.find(e => e.textContent.trim().startsWith({json.dumps(text)}))"
    page.wait_for(f"Boolean({found})")
    page.run(f"{found}.click()")


LINE = f"{visible('.reply .line')}.map(e => e.textContent).join()"
MARKS = "[...document.querySelectorAll('#board rect.strong')].map(e => e.parentNode.textContent).join()"


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
def test_in_a_browser(server, tmp_path):
    frame = "document.querySelector('.attention iframe')"
    boxes, about = "document.querySelectorAll('#board g').length", "document.querySelector('#board .about').textContent"
    message = "document.querySelector('.toast-body')?.textContent"
    with open_browser(tmp_path / "profile") as page:
        page.open(server[1])
        page.wait_for(f"{boxes} === 3")

        # A question about the example is one click away.
        click(page, "button", "Ask")
        assert page.wait_for(LINE).startswith("orange ")

        # A click on a word shows where each head of a layer looks.
        click(page, "button", "Show where each word looks")
        page.wait_for(f"{frame}?.contentDocument.querySelectorAll('#words button').length")
        page.run(f"attention = {frame}.contentDocument; null")
        assert page.run("attention.querySelectorAll('#words button')[2].firstChild.textContent") == "color"
        page.run("attention.querySelectorAll('#words button')[2].click()")
        page.run("attention.querySelector('#layers button[data-layer=\"1\"]').click()")
        assert page.run("attention.body.dataset.shown") == "1/0/2"
        assert page.run("attention.querySelectorAll('#heads button').length") == 5  # four heads and their mean

        # Deleting the box around the fish empties the answer, and changes it.
        page.run("document.querySelectorAll('#board .boxes button')[1].click()")
        page.wait_for(f"{boxes} === 2 && !{LINE} && !{frame}")
        assert page.run(about).endswith("2 regions from scene.json, changed by hand")
        click(page, "button", "Ask")
        assert not page.wait_for(LINE).startswith("orange ")

        # A box is drawn where the pointer was dragged. An expression marks a box.
        page.drag("#board svg", (0.02, 0.13), (0.46, 0.4))
        page.wait_for(f"{boxes} === 3")
        x, y = page.run("['x', 'y'].map(n => +document.querySelector('#board g[data-row=\"2\"] rect').getAttribute(n))")
        assert x == pytest.approx(0.02 * 118, abs=1) and y == pytest.approx(0.13 * 124, abs=1)
        click(page, "button[role=tab]", "Ground")
        click(page, "button", "Ask")
        assert "the large fish" in page.wait_for(MARKS) and page.run(LINE).startswith("region ")

        # The boxes that are marked are those of the open tab.
        click(page, "button[role=tab]", "Answer")
        page.wait_for(f"{boxes} === 3 && !{MARKS}")
        click(page, "button[role=tab]", "Ground")
        assert "the large fish" in page.wait_for(MARKS)

        # A text orders the images of the gallery, and texts are ordered for the image.
        names = f"{visible('.shelf .images li')}.map(e => e.querySelector('img').alt).join()"
        click(page, "button[role=tab]", "Similarity")
        page.wait_for(f"{names} === '1.jpg,2.jpg,3.jpg,4.jpg,5.jpg,6.jpg,7.jpg,8.jpg'")
        click(page, "button", "Order the images")
        page.wait_for(f"{names}.startsWith('7.jpg,')")
        assert "99%" in page.run(f"{visible('.shelf .images li.best')}[0].textContent")
        click(page, "button.ask", "Order the texts")
        page.wait_for(f"{LINE}.includes('a blue star above an orange moon')")

        # A file that is opened replaces the gallery, and the second image of a pair.
        page.run("image = document.querySelector('#board svg image').getAttribute('href')")
        opened = "fetch(image).then(r => r.blob()).then(b => {{ const files = new DataTransfer(); " \
                 "for (const name of {0}) files.items.add(new File([b], name)); " \
                 "const input = {1}[0]; input.files = files.files; " \
                 "input.dispatchEvent(new Event('change', {{bubbles: true}})); }}); null"  # fmt: skip
        page.run(opened.format('["a.jpg", "b.jpg"]', visible(".shelf .open") + ".map(e => e.querySelector('input'))"))
        page.wait_for(f"{names} === 'a.jpg,b.jpg'")
        click(page, "button[role=tab]", "Classify two")
        page.wait_for(f"{names} === '5.jpg'")
        click(page, "button", "Ask")
        assert page.wait_for(LINE).startswith("True ")

        # A caption needs no text.
        click(page, "button[role=tab]", "Describe")
        click(page, "button.ask", "Describe")
        page.wait_for(f"{LINE}.includes(' on the road.')")
        assert page.run(f"{visible('textarea')}.length") == 0
        click(page, "button[role=tab]", "Answer")

        # An error of the library is a message on the page.
        page.run(f"box = {visible('textarea')}[0]; box.value = ' '; box.dispatchEvent(new Event('input')); null")
        click(page, "button", "Ask")
        assert "the text is empty" in page.wait_for(message)
        data = "new DataTransfer()"
        page.run(f"files = {data}; files.items.add(new File(['no image'], 'a<b>.txt')); null")
        page.run("input = document.querySelector('#board input'); input.files = files.files; "
                 "input.dispatchEvent(new Event('change', {bubbles: true})); null")  # fmt: skip
        page.wait_for("[...document.querySelectorAll('.toast-body')].some(e => e.textContent.includes('a<b>.txt: '))")

        click(page, "button", "Reset the regions")
        page.wait_for(f"{boxes} === 3 && !document.querySelector('#board rect.strong')")
        others = "performance.getEntriesByType('resource').map(r => r.name).filter(n => !/^(http:..127|data:)/.test(n))"
        assert page.run(others) == []


def test_ctrl_c_ends_the_server(server):
    """This test is the last of the server."""
    process, _ = server
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, err
    assert out == "" and "Traceback" not in err
    assert err.startswith("loading demo-vqa\nloading demo-retrieval\n") and err.endswith("stopped by Ctrl-C\n")


def test_without_gradio_a_line_names_the_installation(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else found(name))
    assert app.main(["--checkpoint=nowhere"]) == 2
    assert capsys.readouterr().err.endswith("not installed: pip install 'vlbert_jax[app]'\n")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--proposals=0"], "--proposals is 0"),
        (["--port=70000"], "--port is 70000"),
        (["--checkpoint=demo-vqaa"], "did you mean demo-vqa?"),
    ],
)
def test_mistakes_are_one_line(argv, message, capsys):
    assert app.main([*argv, "--checkpoint=nowhere"]) == 2  # so that no server starts where a check is missing
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_a_port_in_use_is_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert app.main([f"--port={port}", "--checkpoint=nowhere"]) == 2
    assert capsys.readouterr().err.startswith(f"error: --port is {port}, which cannot be used (Address already in use")
