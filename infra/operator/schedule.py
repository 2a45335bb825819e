"""The schedule that a host has none of: call this server's own `poll_tick` at its start and then once a minute.

Webhooks are dropped after three attempts, and work that is queued again is announced by none (contract claude T7), so
served functions without a schedule would leave a session waiting for ever. It goes through HTTP with the operator's
token, as any scheduler's call would.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

EVERY_SECONDS: Final = 60.0
_FIRST_TRIES: Final = 0.5
_LONGEST_TICK: Final = 600.0


@contextlib.contextmanager
def ticking(url: str, token: str, say: Callable[[str], None], every: float = EVERY_SECONDS) -> Iterator[None]:
    """Tick inside the block, `every` so many seconds. `url` is the server's, without a path."""
    over = threading.Event()
    thread = threading.Thread(target=_loop, args=(f"{url}/poll_tick", token, say, every, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()  # a tick under way ends with its server, which sees it to its end


def _loop(url: str, token: str, say: Callable[[str], None], every: float, over: threading.Event) -> None:
    answered, in_trouble, wait = False, False, 0.0
    while not over.wait(wait):
        problem = _tick(url, token, say)
        answered = answered or problem is None
        wait = every if answered else _FIRST_TRIES  # until the server listens
        if problem is not None and answered and not in_trouble and not over.is_set():
            say(f"The tick failed: {problem}; trying again every {every:g} s.")
        in_trouble = problem is not None


def _tick(url: str, token: str, say: Callable[[str], None]) -> str | None:
    """One tick; what went wrong, or None."""
    import httpx2

    try:
        with httpx2.Client(trust_env=False, timeout=httpx2.Timeout(_LONGEST_TICK, connect=5.0)) as client:
            answer = client.post(url, headers={"authorization": f"Bearer {token}"})
        report: Any = json.loads(answer.content)
    except (httpx2.HTTPError, ValueError) as error:
        return type(error).__name__
    if answer.status_code != 200:
        return f"status {answer.status_code}"
    for line in remarks(report):
        say(line)
    return None


def remarks(report: dict[str, Any]) -> Iterator[str]:
    """What a person should read of a tick's report (`shared.models.TickReport` as JSON)."""
    for each in report.get("reconciled", ()):
        for action in each["actions"]:
            problem = "" if action["done"] else f"  NOT DONE: {action['problem']}"
            yield f"repair: {action['act']} {action['target']} ({action['why']}){problem}"
        for alarm in each["alarms"]:
            yield f"ALARM: {each['environment_id']}: {alarm}"
        for session in each["needs_interrupt"]:
            yield f"ALARM: {session} is stuck: end its turn with the API key (make repair)"
