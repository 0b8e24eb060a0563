"""A browser without a window, driven by the DevTools protocol over two pipes."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
EXECUTABLE = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]


PATIENCE = 600
"""Seconds after which a browser that says nothing is ended: its page may never come out of a loop."""

KEY_CODES = {"Escape": 27, "ArrowLeft": 37}


class Browser:
    """One process; messages are JSON that ends with a NUL, in at its descriptor 3 and out at 4."""

    def __init__(self, directory: Path):
        inward, self.outward, self.inward, outward = *os.pipe(), *os.pipe()

        def descriptors() -> None:
            high = [os.dup(inward), os.dup(outward)]
            for source, number in zip(high, (3, 4), strict=True):
                os.dup2(source, number, inheritable=True)

        self.process = subprocess.Popen(
            [EXECUTABLE, *FLAGS, f"--user-data-dir={directory}", "about:blank"],
            preexec_fn=descriptors,
            pass_fds=(3, 4),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(inward)
        os.close(outward)
        self.unread, self.number, self.events = b"", 0, []

    def close(self) -> None:
        if self.process.poll() is None:
            self.call("Browser.close")
        self.process.wait(PATIENCE)
        os.close(self.outward)
        os.close(self.inward)

    def _read(self) -> dict[str, Any]:
        """The next message."""
        while b"\0" not in self.unread:
            if not select.select([self.inward], [], [], PATIENCE)[0]:
                self.process.kill()
                raise TimeoutError("the browser does not answer")
            piece = os.read(self.inward, 1 << 20)
            if not piece:
                raise EOFError("the browser has ended")
            self.unread += piece
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result of a command; events that come before it are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self.outward, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, (method, answer)
        return answer["result"]


class Tab:
    """A page of a browser, as wide as it is told."""

    def __init__(self, browser: Browser, file: Path, width: int, dark: bool = False):
        self.browser, self.width = browser, width
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=file.as_uri())
        self.wait("document.documentElement?.dataset.ready || document.documentElement?.dataset.error")
        self.wait("[...document.querySelectorAll('.plot')].every((plot) => plot.firstChild)")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **parameters)

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, (script, answer["exceptionDetails"])
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = PATIENCE) -> Any:
        """The value of an expression once it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.run(script):
                return value
            time.sleep(0.05)
        raise TimeoutError(script)

    def mouse(self, *events: tuple[str, float, float], **more: Any) -> None:
        """Real events of a mouse, such as ("mousePressed", x, y)."""
        for kind, x, y in events:
            button = "none" if kind in ("mouseMoved", "mouseWheel") and not more.get("buttons") else "left"
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1, **more)

    def press(self, key: str) -> None:
        """A key, down and up."""
        more = {"text": key} if len(key) == 1 else {"windowsVirtualKeyCode": KEY_CODES[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def seen(self, method: str) -> list[dict[str, Any]]:
        """Parameters of the events of a kind so far."""
        events = self.browser.events
        return [one["params"] for one in events if one["method"] == method and one.get("sessionId") == self.session]

    def download(self, directory: Path, script: str) -> tuple[str, str]:
        """The name and the text of the file that an expression in the page makes it save."""
        self.browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(directory))
        before = set(directory.iterdir())
        self.run(script)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            fresh = [path for path in set(directory.iterdir()) - before if path.suffix != ".crdownload"]
            if fresh and (text := fresh[0].read_text(encoding="utf-8")):
                return fresh[0].name, text
            time.sleep(0.05)
        raise TimeoutError(script)

    def screenshot(self, file: Path, height: int | None = None) -> None:
        """A picture of the page, as high as the page if no height is given."""
        height = height or self.run("document.documentElement.scrollHeight")
        self.call(
            "Emulation.setDeviceMetricsOverride", width=self.width, height=height, deviceScaleFactor=1, mobile=False
        )
        time.sleep(1)
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
