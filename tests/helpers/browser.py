"""Control a headless Chromium through two pipes with the DevTools protocol."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time

from tests.helpers import HANG_SECONDS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SWITCHES = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--remote-debugging-pipe", "--window-size=1300,1000", "--proxy-server=127.0.0.1:9", "--disable-quic",
            "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip


PATIENCE = 60  # seconds for a page to show something


class Page:
    """A tab of the browser; `session` is its identifier in DevTools."""

    def __init__(self, to_browser: int, from_browser: int):
        self.to_browser, self.from_browser = to_browser, os.fdopen(from_browser, "rb")
        self.number, self.session, self.unread = 0, None, b""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.send("Page.enable")

    def send(self, method: str, **params) -> dict:
        """Send a command and return its answer; raise RuntimeError if the answer is an error."""
        self.number += 1
        message = dict(id=self.number, method=method, params=params)
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _read(self) -> dict:
        while b"\0" not in self.unread:
            chunk = self.from_browser.raw.read(1 << 16)
            if not chunk:
                raise RuntimeError("the browser has closed its pipe")
            self.unread += chunk
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)

    def open(self, url: str):
        self.send("Page.navigate", url=url)
        while self._read().get("method") != "Page.loadEventFired":
            pass

    def run(self, code: str):
        """Return the value of a JavaScript expression; raise RuntimeError with its exception."""
        result = self.send("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"]["exception"].get("description"))
        return result["result"].get("value")

    def wait_for(self, code: str):
        """Return the value of a JavaScript expression as soon as it is true."""
        end = time.monotonic() + PATIENCE
        while not (value := self.run(code)):
            if time.monotonic() > end:
                raise TimeoutError(f"{code}\n{self.run('document.body.innerText')}")
            time.sleep(0.05)
        return value

    def drag(self, selector: str, start: tuple[float, float], end: tuple[float, float]):
        """Drag the pointer between two places of an element, as fractions of its width and height."""
        x, y, width, height = self.run(
            f"(() => {{const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            "const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]})()"
        )
        for kind, (right, down) in (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)):
            place = dict(x=x + right * width, y=y + down * height, button="left", buttons=1, clickCount=1)
            self.send("Input.dispatchMouseEvent", type=kind, **place)

    def mouse(self, selector: str, press: bool):
        """Move the pointer to the middle of an element, and click if `press`."""
        x, y = self.run(
            f"(() => {{const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]})()"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased") if press else ("mouseMoved",):
            button = {} if kind == "mouseMoved" else dict(button="left", clickCount=1)
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def screenshot(self) -> bytes:
        return base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"])


@contextlib.contextmanager
def open_browser(profile):
    """Start a browser that keeps its files in the folder `profile`; yield its page."""
    (browser_input, to_browser), (from_browser, browser_output) = os.pipe(), os.pipe()
    # The browser reads descriptor 3 and writes to descriptor 4, so the pipes are duplicated there.
    # Unused descriptors in between keep the duplication from overwriting one of the pipes.
    program = (
        "import os, sys; one, two = (os.dup(os.dup(int(end))) for end in sys.argv[1:3]);"
        "os.dup2(one, 3); os.dup2(two, 4); os.execv(sys.argv[3], sys.argv[3:])"
    )
    command = [sys.executable, "-c", program, str(browser_input), str(browser_output), CHROMIUM, *SWITCHES]
    command.append(f"--user-data-dir={profile}")
    process = subprocess.Popen(command, pass_fds=(browser_input, browser_output), stderr=subprocess.DEVNULL)
    os.close(browser_input), os.close(browser_output)
    page = None
    try:
        page = Page(to_browser, from_browser)
        yield page
    finally:
        process.terminate()
        process.wait(HANG_SECONDS)
        os.close(to_browser)
        if page:
            page.from_browser.close()
