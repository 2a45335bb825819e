"""A real Chromium without a window, driven by its own DevTools protocol: for the page's tests and its pictures.

It needs the system's `chromium` and no driver beside it. Each browser has a profile of its own, which goes with it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
_FLAGS: Final = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--hide-scrollbars", "--no-proxy-server", "--remote-debugging-port=0"),
)
_SECONDS: Final = 120.0
_PHONE: Final = 600
_KEYS: Final = {"Tab": (9, ""), "Enter": (13, "\r"), "ArrowRight": (39, "")}


class BrowserFailed(Exception):
    """The browser did not start, did not answer, or a script in it failed."""


def program() -> str | None:
    """The path of a Chromium, where the system has one."""
    return next((found for name in NAMES if (found := shutil.which(name)) is not None), None)


class Tab:
    """One tab. `said`: what the console, the policy and failed scripts said since the last `go`."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0
        self._session = ""
        self._events: list[str] = []
        self.said: list[str] = []

    def open(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Raises BrowserFailed."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        self._connection.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserFailed(f"{method}: {answer['error'].get('message')}")
                result: dict[str, Any] = answer["result"]
                return result

    def go(self, url: str) -> None:
        """Returns when the page and what it loads are there. Raises BrowserFailed."""
        self.said.clear()
        with self.loading():
            failed = self.call("Page.navigate", url=url).get("errorText")
            if failed:
                raise BrowserFailed(f"{url}: {failed}")

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """What the block does loads a page: wait for it. Raises BrowserFailed."""
        self._events.clear()
        yield
        while "Page.loadEventFired" not in self._events:
            self._receive()

    def evaluate(self, script: str) -> Any:
        """The value of an expression, of a promise when it is kept. Raises BrowserFailed."""
        said = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in said:
            raise BrowserFailed(str(said["exceptionDetails"].get("exception", {}).get("description", "failed"))[:500])
        return said["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until the expression is true. Raises BrowserFailed."""
        end = time.monotonic() + _SECONDS
        while not self.evaluate(script):
            if time.monotonic() > end:
                raise BrowserFailed(f"did not become true: {script}")
            time.sleep(0.05)

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """In CSS pixels; a narrow one is a phone, that scales nothing."""
        phone = width < _PHONE
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def press(self, key: str) -> None:
        code, text = _KEYS[key]
        of = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **of, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **of)

    def picture(self) -> bytes:
        """What is seen, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png", optimizeForSpeed=False)["data"])

    def _receive(self) -> dict[str, Any]:
        try:
            message: dict[str, Any] = json.loads(self._connection.recv(timeout=_SECONDS))
        except TimeoutError:
            raise BrowserFailed(f"the browser said nothing for {_SECONDS:g} s") from None
        method, params = message.get("method"), message.get("params", {})
        if method is not None:
            self._events.append(method)
        match method:
            case "Log.entryAdded":
                entry = params["entry"]
                self.said.append(f"{entry['level']}: {entry['text']} {entry.get('url', '')}")
            case "Runtime.consoleAPICalled":
                self.said.append(f"{params['type']}: {params['args']}")
            case "Runtime.exceptionThrown":
                self.said.append(str(params["exceptionDetails"]))
        return message


@contextlib.contextmanager
def browser() -> Iterator[Tab]:
    """A browser with one tab, until the block ends. Raises BrowserFailed."""
    from websockets.sync.client import connect

    found = program()
    if found is None:
        raise BrowserFailed(f"no Chromium here (looked for {', '.join(NAMES)}). Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory(prefix="hands-browser-", ignore_cleanup_errors=True) as profile:
        argv = [found, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(argv, stdin=quiet, stdout=quiet, stderr=quiet) as process:
            try:
                url = _address(Path(profile) / "DevToolsActivePort", process)
                with connect(url, max_size=None, proxy=None, compression=None) as connection:
                    tab = Tab(connection)
                    tab.open()
                    yield tab
            finally:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()


def _address(file: Path, process: subprocess.Popen[bytes]) -> str:
    """Chromium writes it when it listens: the port, then the path."""
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise BrowserFailed(f"the browser ended with {process.returncode}")
        with contextlib.suppress(FileNotFoundError):
            lines = file.read_text(encoding="utf-8").split()
            if len(lines) > 1:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.05)
    raise BrowserFailed("the browser does not listen")
