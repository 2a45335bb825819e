"""The soak's users: each talks to one session after the other, by a client that no fault hits."""

from __future__ import annotations

import queue
import random
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal

import anthropic

from tests.faults.soak_report import Played
from tests.support.world import API_KEY, Place

TURNS: Final = 3
ASLEEP: Final = 3.0
"""Seconds after its worker has left in which a tick finds a sandbox idle and suspends it."""


class Interrupted(Exception):
    """The soak is ended while this user waits for an answer."""


class User:
    """One session's user, by a client of its own that no fault hits."""

    def __init__(self, place: Place) -> None:
        self._place = place
        url = place.world.claude.url.replace("127.0.0.1", "localhost")
        self._api = anthropic.Anthropic(api_key=API_KEY, base_url=url, max_retries=0, timeout=30.0)

    def play(self, patience: float, think: Callable[[], float], over: threading.Event) -> Played:
        """patience: seconds that it waits for one answer; what comes later must still come before the settling is over.
        think: seconds before it says more. Raises Interrupted where the soak is `over` before."""
        began, thought = time.monotonic(), 0.0
        mark = secrets.token_hex(4)
        session = self._api.beta.sessions.create(
            agent=self._place.world.agent_id,
            environment_id=self._place.environment_id,
            initial_events=[_message(_prompt(mark, 1))],
        ).id
        said, interrupts = 1, 0
        for turn in range(1, TURNS + 1):
            if turn > 1:
                thought += (pause := think())
                if over.wait(pause):
                    raise Interrupted
                self._api.beta.sessions.events.send(session, events=[_message(_prompt(mark, turn))])
                said += 1
            end = time.monotonic() + patience
            while self.answers(session) < turn and time.monotonic() < end:
                if over.wait(0.4):
                    raise Interrupted
                if (now := self.interrupts(session)) > interrupts:
                    # The repair of a stranded item ends its turn; a user asks again.
                    interrupts = now
                    self._api.beta.sessions.events.send(session, events=[_message(_prompt(mark, turn))])
                    said += 1
            if turn == TURNS - 1:
                self._wait_for_the_worker_to_leave(session, over)
        return Played(session, said, interrupts, time.monotonic() - began - thought, mark)

    def close(self) -> None:
        self._api.close()

    def answers(self, session: str) -> int:
        return self._count(session, "agent.message")

    def through(self, session: str) -> bool:
        """Whether every turn was answered, and no message waits for a further answer: where a user asked again, the
        count of answers alone would not tell."""
        newest = self._api.beta.sessions.events.list(
            session, types=["user.message", "agent.message"], order="desc", limit=1
        ).data
        return bool(newest) and newest[0].type == "agent.message" and self.answers(session) >= TURNS

    def interrupts(self, session: str) -> int:
        return self._count(session, "user.interrupt")

    def archive(self, session: str) -> None:
        self._api.beta.sessions.archive(session)

    def delete(self, session: str) -> None:
        self._api.beta.sessions.delete(session)

    def rested(self, session: str) -> bool:
        """Whether all was answered and the session's work has ended."""
        return self.through(session) and self._place.item(session)["state"] == "stopped"

    def error_results(self, session: str) -> list[str]:
        found = []
        for event in self._api.beta.sessions.events.list(session, types=["user.tool_result"]):
            if event.type == "user.tool_result" and event.is_error:
                found.append("".join(block.text for block in event.content or () if block.type == "text"))
        return found

    def _count(self, session: str, kind: Literal["agent.message", "user.interrupt"]) -> int:
        return len(list(self._api.beta.sessions.events.list(session, types=[kind])))

    def _wait_for_the_worker_to_leave(self, session: str, over: threading.Event) -> None:
        end = time.monotonic() + 20
        while time.monotonic() < end and not over.is_set():
            if self._place.item(session)["state"] == "stopped":
                time.sleep(ASLEEP)  # time for a tick to suspend the sandbox
                return
            time.sleep(0.5)


def _prompt(mark: str, turn: int) -> str:
    return f"$ echo {mark}-{turn} >> /workspace/runs"


def _message(text: str) -> Any:
    return {"type": "user.message", "content": [{"type": "text", "text": text}]}


def play_all(
    place: Place,
    sessions: int,
    users: int,
    seconds: float,
    patience: float,
    say: Callable[[str], None],
    problems: list[str],
    *,
    think: float = 0.0,
    seed: int = 0,
    leave: Callable[[User, Played, random.Random, threading.Event], None] = lambda user, played, chance, over: None,
) -> list[Played]:
    """So many users at once, each with one session after the other, until count or time is reached. A user thinks for
    up to twice `think` seconds before each further turn, and may `leave` a session as it likes. One that fails itself
    is one of the `problems`, and the others go on."""
    numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(sessions):
        numbers.put(number)
    began = time.monotonic()
    played: list[Played] = []
    over = threading.Event()

    def play(number: int) -> None:
        user, chance = User(place), random.Random(f"{seed} user {number}")
        try:
            if over.wait(0.3 * number):
                return
            while time.monotonic() - began < seconds and not over.is_set():
                try:
                    numbers.get_nowait()
                except queue.Empty:
                    return
                one = user.play(patience, lambda: chance.uniform(0.0, 2.0 * think), over)
                played.append(one)
                leave(user, one, chance, over)
        except Interrupted:
            raise
        except Exception as error:  # the thread's edge
            problems.append(f"user {number} broke: {error!r}")
        finally:
            user.close()

    def progress() -> None:
        while not over.wait(15):
            say(f"{time.monotonic() - began:.0f} s: {len(played)} sessions are through")

    with ThreadPoolExecutor(users + 1) as pool:
        pool.submit(progress)
        playing = [pool.submit(play, number) for number in range(users)]
        try:
            for each in playing:
                each.result()
        finally:
            over.set()
    return played
