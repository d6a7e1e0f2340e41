"""A headless Chromium, controlled with the Chrome DevTools Protocol over a pipe."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--remote-debugging-pipe"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
]
# With --remote-debugging-pipe, Chromium reads commands from file descriptor 3 and writes to 4.
_COMMAND_FD, _RESPONSE_FD = 3, 4


class Browser:
    """A browser with one page.

    Attributes:
        events: protocol events received since the last `open`.
    """

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._buffer = b""
        self._last_id = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []

    def attach(self) -> None:
        """Open an empty page and enable its events."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, path: Path, width: int, height: int = 900, dark: bool = False) -> None:
        """Open an HTML file, and wait until it is loaded and drawn."""
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def evaluate(self, expression: str) -> Any:
        """Evaluate a JavaScript expression in the page, await it if it is a promise, and return its value."""
        response = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in response, response
        return response["result"].get("value")

    def screenshot(self, full_page: bool = True) -> bytes:
        """Return a PNG of the page."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=full_page)["data"])

    def requests(self) -> list[str]:
        """Return the URLs that the page requested, without its own and data URLs."""
        urls = [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in urls[1:] if not url.startswith("data:")]

    def console_messages(self) -> list[Any]:
        """Return console messages, exceptions and log entries."""
        methods = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event["params"] for event in self.events if event["method"] in methods]

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Call a protocol method and return its result. Events that arrive in the meantime are recorded."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            received = self._receive()
            if received.get("id") == self._last_id:
                assert "error" not in received, received
                result: dict[str, Any] = received["result"]
                return result
            self.events.append(received)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            block = os.read(self._read, 1 << 20)
            assert block, "the browser ended"
            self._buffer += block
        message, self._buffer = self._buffer.split(b"\0", 1)
        received: dict[str, Any] = json.loads(message)
        return received


@contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser with a temporary profile, yield it, and end it."""
    assert CHROMIUM
    browser_read, parent_write = os.pipe()
    parent_read, browser_write = os.pipe()
    profile = tempfile.mkdtemp()
    # The shell moves the pipe ends to the file descriptors that Chromium expects.
    command = f'exec "$0" "$@" {_COMMAND_FD}<&{browser_read} {_RESPONSE_FD}>&{browser_write}'
    process = subprocess.Popen(
        ["bash", "-c", command, CHROMIUM, *_FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(browser_read, browser_write),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(browser_read)
    os.close(browser_write)
    try:
        opened = Browser(parent_write, parent_read)
        opened.attach()
        yield opened
        opened._session = None
        opened.call("Browser.close")
    finally:
        os.close(parent_write)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(parent_read)
        for _ in range(50):  # child processes may still write while they end
            shutil.rmtree(profile, ignore_errors=True)
            if not os.path.exists(profile):
                break
            time.sleep(0.1)
