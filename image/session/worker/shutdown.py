"""Requests to stop: a signal, or the end of the worker's lifetime. The first one decides the exit status.

One signal says that the work was stopped, so that no command is waited for. Another asks to give up, which a worker
does that has not started and no other: both are decided under one mutex
(docs/claim-protocol.md#a-worker-that-is-overdue).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Final

from image.session.claim import GIVE_UP_SIGNAL, STOP_SIGNAL, Ended, Exit

# Seconds from a request to stop until the process is gone, whatever it is doing. A tool in flight is never
# interrupted and may take 150 s, and its result must still be posted (docs/wire/anthropic.md#t15).
GRACE: Final = 180.0

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_GIVEN_UP: Final = (Exit.GIVEN_UP, "the dispatcher gave it up before it was ready")


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
        self._on_order: Callable[[], object] | None = None
        self._start: threading.Timer | None = None
        self._given_up = False
        self._started = False

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
        signal.signal(STOP_SIGNAL, lambda _number, _frame: None)
        signal.signal(GIVE_UP_SIGNAL, self._note_given_up)
        threading.Thread(target=self._hear, args=(read_end,), name="signals", daemon=True).start()
        self._after(lifetime, lambda: self.request(Exit.LIFETIME, f"lifetime of {lifetime:g} s is over"))
        self._start = self._after(
            start_limit, lambda: self._last_resort(Exit.HUNG, f"it did not start within {start_limit:g} s")
        )

    def started(self) -> None:
        """Main thread only: from here on nobody may give this worker up. Raises Ended where somebody has, whether the
        other thread has read of it or not."""
        with self._mutex:
            if self._given_up:
                raise Ended(*_GIVEN_UP)
            self._started = True
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

    def on_order(self, callback: Callable[[], object]) -> None:
        """Called from another thread, each time that somebody says that the work was stopped."""
        self._on_order = callback

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
                elif number == STOP_SIGNAL:
                    if self._on_order is not None:  # else the first heartbeat of the SDK will tell
                        self._on_order()
                elif number == GIVE_UP_SIGNAL:
                    self._give_up()

    def _note_given_up(self, _number: int, _frame: object) -> None:
        """Between two instructions of the main thread, which may hold the mutex: no lock here."""
        self._given_up = True

    def _give_up(self) -> None:
        with self._mutex:
            if not self._started:
                self._last_resort(*_GIVEN_UP)

    def _after(self, seconds: float, action: Callable[[], None]) -> threading.Timer:
        timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), action)
        timer.daemon = True
        timer.start()
        return timer
