"""Requests to stop: a signal, or the end of the worker's lifetime. The first one decides the exit status."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Final

from image.session.claim import Ended, Exit

# Seconds from a request to stop until the process is gone, whatever it is doing. A tool in flight is never
# interrupted and may take 150 s, and its result must still be posted (docs/wire/anthropic.md#t15).
GRACE: Final = 180.0

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Shutdown:
    """Any thread may ask and look. Signals arrive through a descriptor and a thread: a handler that ran between two
    instructions of the main thread could wait for a lock which that thread holds."""

    def __init__(self, last_resort: Callable[[Exit, str], None], *, grace: float = GRACE) -> None:
        """`last_resort` ends the process; it is called `grace` seconds after a request if that has not ended it."""
        self._last_resort = last_resort
        self._grace = grace
        self._mutex = threading.Lock()
        self._wake = threading.Event()
        self._reason: tuple[Exit, str] | None = None
        self._callback: Callable[[], object] | None = None
        self._start: threading.Timer | None = None

    @property
    def reason(self) -> tuple[Exit, str] | None:
        return self._reason

    def listen(self, lifetime: float, start_limit: float) -> None:
        """Main thread only: from here on signals and the lifetime (seconds) ask to stop, and a worker that has not
        said `started` within `start_limit` seconds ends, wherever it hangs."""
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda _number, _frame: None)
        threading.Thread(target=self._hear, args=(read_end,), name="signals", daemon=True).start()
        self._after(lifetime, lambda: self.request(Exit.LIFETIME, f"lifetime of {lifetime:g} s is over"))
        self._start = self._after(
            start_limit, lambda: self._last_resort(Exit.HUNG, f"it did not start within {start_limit:g} s")
        )

    def started(self) -> None:
        if self._start is not None:
            self._start.cancel()

    def request(self, exit_status: Exit, detail: str) -> None:
        with self._mutex:
            if self._reason is not None:
                return
            self._reason = (exit_status, detail)
            callback = self._callback
        self._after(self._grace, lambda: self._last_resort(exit_status, f"{detail}; the grace is over too"))
        self._wake.set()
        if callback is not None:
            callback()

    def on_request(self, callback: Callable[[], object]) -> None:
        """Called once, from any thread, at the first request or at once if that has been made."""
        with self._mutex:
            self._callback = callback
            late = self._reason is not None
        if late:
            callback()

    def check(self) -> None:
        """Raises Ended where somebody has asked to stop."""
        if self._reason is not None:
            raise Ended(*self._reason)

    def wait(self, seconds: float) -> None:
        """Sleeps; wakes early for a request to stop and for `nudge`."""
        self._wake.wait(seconds)
        self._wake.clear()
        if self._reason is not None:  # asked between the two lines above, or long ago: every later wait is short
            self._wake.set()

    def nudge(self) -> None:
        """Ends a `wait` early."""
        self._wake.set()

    def _hear(self, read_end: int) -> None:
        while True:
            for number in os.read(read_end, 64):
                if number in _SIGNALS:
                    self.request(Exit.STOPPED, signal.Signals(number).name)

    def _after(self, seconds: float, action: Callable[[], None]) -> threading.Timer:
        timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), action)
        timer.daemon = True
        timer.start()
        return timer
