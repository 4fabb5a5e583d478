"""Headless Chromium that is driven by the DevTools protocol: what it asks for is recorded, what it shows can be asked."""

from __future__ import annotations

import base64
import itertools
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket

from tests.support.chromium import CHROMIUM

_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--remote-allow-origins=*",
    "--disable-background-networking", "--disable-component-update", "--no-first-run", "--disable-dev-shm-usage",
)  # fmt: skip


class Browser:
    """One page.

    Args:
        address: The DevTools address of the page.

    Attributes:
        requests: The address of each request that the page has made, blocked ones too.
        errors: What the page has written to its console as an error, exceptions included.
    """

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, timeout=60)
        self._numbers = itertools.count(1)
        self.requests: list[str] = []
        self.errors: list[str] = []
        for domain in ("Page", "Network", "Runtime", "DOM", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and return its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                assert "error" not in message, (method, message)
                return message["result"]
            self._note(message)

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif event.get("method") == "Network.webSocketCreated":
            self.requests.append(parameters["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(parameters["exceptionDetails"])[:2000])
        elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression; a promise is waited for."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, script: str, timeout_s: float = 60) -> Any:
        """Wait until an expression is true, and return its value."""
        end = time.monotonic() + timeout_s
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"in vain: {script}\n{self.run('document.body.innerText')}"
            time.sleep(0.03)
        return value

    def go(self, address: str) -> None:
        """Open an address."""
        self.call("Page.navigate", url=address)

    def choose_files(self, selector: str, *paths: Path) -> None:
        """Choose files in the first input of a selector, as a person does in the dialogue."""
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        identity = found["result"]["objectId"]
        self.call("DOM.setFileInputFiles", files=[str(path) for path in paths], objectId=identity)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press a key by its name: Enter, Tab or Space."""
        code, text = {"Enter": (13, "\r"), "Tab": (9, ""), "Space": (32, " ")}[key]
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **typed)

    def click(self, script: str) -> None:
        """Click on an element, which an expression returns, once it is there."""
        self.wait_for(f"!!({script})")
        self.run(f"({script}).click()")

    def resize(self, width: int, height: int, is_dark: bool = False) -> None:
        """Show the page at a size in pixels, in the colours of day or night."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path) -> None:
        """Write what is shown as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Yield a browser with an empty page."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            address = _find_address(process)
            page = _pages(address)[0]
            yield Browser(page)
        finally:
            process.terminate()
            process.wait(20)


def _find_address(process: subprocess.Popen) -> str:
    for line in process.stderr:
        found = re.search(r"DevTools listening on ws://(\S+?)/", line)
        if found:
            return found[1]
    raise AssertionError("Chromium has ended")


def _pages(address: str) -> list[str]:
    from urllib.request import urlopen

    with urlopen(f"http://{address}/json", timeout=20) as answer:
        targets = json.load(answer)
    return [target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page"]
