"""When each step of a session's way happened, read from the services' own records after the fact.

Nothing is polled while a session is on its way, so measuring costs it nothing. All clocks are this machine's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import httpx2

from tests.benchmarks.stage import PROMPT
from tests.support.waiting import until
from tests.support.world import Place

_QUIET: Final = 1.5  # seconds


@dataclass(frozen=True, slots=True)
class TimelineSpan:
    """Seconds since the epoch."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Way:
    """From a webhook's POST to the answer of the worker's first successful heartbeat.

    `boot` is from the worker's first instruction to its `ready` line, and `early_beats` counts heartbeats that came
    before the ack.
    """

    webhook: TimelineSpan
    poll: TimelineSpan
    boot: TimelineSpan
    ack: TimelineSpan
    beat: TimelineSpan
    early_beats: int

    @property
    def seconds(self) -> float:
        return self.beat.end - self.webhook.start


def served_way(place: Place) -> Way:
    """One session, served to its end, and its way. Its sandbox still runs."""
    wait_quiet(place)
    session = place.session(PROMPT)
    place.wait_done(session)
    return _way(place, session)


def _way(place: Place, session_id: str) -> Way:
    state = place.world.claude_admin.get("state")
    calls = requests(place)
    item = place.item(session_id)
    # A session starts to run again after each round of tool calls; the first time is the one that queued the item.
    delivery = next(
        each
        for each in state["deliveries"]
        if each["session_id"] == session_id and each["type"] == "session.status_run_started"
    )
    handed_out = moment(next(note["at"] for note in item["history"] if note["what"] == "handed out"))
    polls = [span(call) for call in calls if call["path"].endswith("/work/poll")]
    beats = [call for call in calls if call["path"].endswith(f"/work/{item['id']}/heartbeat")]
    held = first(beats, 200)
    sent = moment(delivery["attempts"][-1]["at"])
    poll = next(each for each in polls if each.start <= handed_out <= each.end)
    return Way(
        webhook=TimelineSpan(sent, poll.start),
        poll=poll,
        boot=boot(place, session_id),
        ack=span(next(call for call in calls if call["path"].endswith(f"/work/{item['id']}/ack"))),
        beat=span(held),
        early_beats=sum(call["status"] == 412 for call in beats),
    )


def wait_quiet(place: Place) -> None:
    """Until the place's environment has not been polled for a while: rounds of polls are a second apart at least
    (docs/claim-protocol.md#drain), so one for what came before would put off the next session's."""

    def quiet() -> bool:
        ends = [span(call).end for call in requests(place) if call["path"].endswith("/work/poll")]
        return not ends or time.time() - ends[-1] > _QUIET

    until(quiet, "the functions poll on")


def first_beats(place: Place, work_ids: Iterable[str]) -> Mapping[str, float]:
    """Work id -> when the answer to its first successful heartbeat left; only those that have one."""
    wanted = {f"/work/{work_id}/heartbeat": work_id for work_id in work_ids}
    found: dict[str, float] = {}
    for call in requests(place):
        work_id = wanted.get("/work/" + call["path"].rpartition("/work/")[2])
        if work_id is not None and call["status"] == 200:
            found.setdefault(work_id, span(call).end)
    return found


def wait_beats(place: Place, work_ids: Sequence[str], seconds: float) -> None:
    """Looks once a second: on a machine that is busy with the workers, each look takes from them."""
    end = time.monotonic() + seconds
    while (beaten := len(first_beats(place, work_ids))) < len(work_ids):
        if time.monotonic() > end:
            raise AssertionError(f"only {beaten} of {len(work_ids)} workers have beaten in {seconds:g} seconds")
        time.sleep(1.0)


def boot(place: Place, session_id: str) -> TimelineSpan:
    """Of the newest worker in the session's sandbox, as the sandbox's own supervisor saw it."""
    (box,) = [each for each in place.sandboxes() if each["name"] == place.sandbox(session_id)]
    process = max((each for each in box["processes"] if each["managed"]), key=lambda each: each["started_at"])
    headers = {"authorization": f"Bearer {place.environ['TENSORLAKE_API_KEY']}", "host": f"{box['id']}.local"}
    url = f"{place.environ['TENSORLAKE_API_URL']}/api/v1/processes/{process['pid']}/stdout/follow"
    with httpx2.stream("GET", url, headers=headers, trust_env=False, timeout=30) as stream:
        stream.raise_for_status()
        for line in stream.iter_lines():
            event = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
            if '"ready"' in event.get("line", ""):
                return TimelineSpan(process["started_at"] / 1000, event["timestamp"] / 1000)
    raise AssertionError("the worker never said ready")


def requests(place: Place) -> Sequence[Mapping[str, Any]]:
    """The Claude side's request log, in the order of the answers."""
    recent: Sequence[Mapping[str, Any]] = place.world.claude_admin.get("requests")["recent"]
    return recent


def span(call: Mapping[str, Any]) -> TimelineSpan:
    """The log's `at` is when the answer left."""
    end = moment(call["at"])
    return TimelineSpan(end - call["seconds"], end)


def first(calls: Iterable[Mapping[str, Any]], status: int) -> Mapping[str, Any]:
    return next(call for call in calls if call["status"] == status)


def moment(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()
