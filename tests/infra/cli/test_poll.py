"""The polling loop: never ended by what may pass, ended by a refused key and by a signal."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

import pytest

from infra.cli.poll import EXIT_REFUSED, REFUSALS, Poller, item_line
from shared.errors import SettingsError
from shared.reports import DrainEnd, DrainReport, ItemEnd, ItemReport

ITEM = ItemReport("work_1", "sesn_1", ItemEnd.HANDED_OVER, 0.25, "hands-x")


def report(end: DrainEnd, *items: ItemReport, reason: str = "") -> DrainReport:
    return DrainReport("env_1", end, 0.1, 1, items, reason)


def run(script: Sequence[Sequence[DrainReport] | Exception]) -> tuple[int, int, list[str]]:
    """Plays the script, then stops; returns the exit code, the number of drains and what was said."""
    said: list[str] = []
    drains = 0

    async def drain() -> Sequence[DrainReport]:
        nonlocal drains
        drains += 1
        step = script[drains - 1]
        if drains == len(script):
            poller.stopping.set()
        if isinstance(step, Exception):
            raise step
        return step

    poller = Poller(drain, said.append, pause=0.0001)

    async def main() -> int:
        async with asyncio.timeout(10):
            return await poller.run()

    return asyncio.run(main()), drains, said


def test_errors_that_may_pass_and_bugs_never_end_the_loop() -> None:
    trouble = [report(DrainEnd.UNAVAILABLE, reason="polls keep failing")]
    code, drains, said = run(
        [trouble, trouble, ValueError("x"), [report(DrainEnd.EMPTY, ITEM)], [report(DrainEnd.EMPTY)]]
    )
    assert (code, drains) == (0, 5)
    assert len([line for line in said if "polls keep failing" in line]) == 1
    assert "The queue answers again." in said


def test_each_item_is_told_on_one_line_with_its_end_and_an_alarm_where_a_person_should_look() -> None:
    assert item_line(ITEM).split()[:2] == ["sesn_1", "handed_over"]
    told = item_line(replace(ITEM, reason="the workspace is new", alarm=True))
    assert told.startswith("ALARM: sesn_1") and told.endswith(": the workspace is new")


def test_a_refused_key_ends_it_with_a_clear_message() -> None:
    code, drains, said = run([[report(DrainEnd.REFUSED, reason="401")]] * (REFUSALS + 5))
    assert (code, drains) == (EXIT_REFUSED, REFUSALS)
    assert len([line for line in said if "ANTHROPIC_ENVIRONMENT_KEY" in line]) == 1


def test_refusals_that_pass_do_not_end_it() -> None:
    refused = [[report(DrainEnd.REFUSED, reason="401")]] * (REFUSALS - 1)
    well = [[report(DrainEnd.EMPTY)]]
    assert run([*refused, *well, *refused, ValueError("x"), *refused, *well])[0] == 0


def test_what_our_own_errors_say_is_shown_and_nothing_of_others() -> None:
    group = ExceptionGroup("drains", [ExceptionGroup("drain", [SettingsError("FUNCTIONS_TOKEN is not set")])])
    said = run([group, ValueError("a secret"), [report(DrainEnd.EMPTY)]])[2]
    assert [line for line in said if "FUNCTIONS_TOKEN is not set" in line]
    assert not [line for line in said if "a secret" in line]


def pauses(script: Sequence[DrainEnd], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds waited after each of these drains, without waiting them."""
    waits: list[float] = []

    async def drain() -> Sequence[DrainReport]:
        return [report(script[len(waits)])]

    async def wait_for(awaitable: Coroutine[Any, Any, Any], seconds: float) -> None:
        awaitable.close()
        waits.append(seconds)
        if len(waits) == len(script):
            poller.stopping.set()

    poller = Poller(drain, lambda _: None)
    monkeypatch.setattr("shared.backoff.random.uniform", lambda low, high: 1.0)
    monkeypatch.setattr("infra.cli.poll.asyncio.wait_for", wait_for)
    assert asyncio.run(poller.run()) == 0
    return waits


def test_the_pauses_grow_to_a_minute_and_shrink_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    script = [DrainEnd.UNAVAILABLE] * 9 + [DrainEnd.EMPTY, DrainEnd.UNAVAILABLE]
    assert pauses(script, monkeypatch) == [2, 4, 8, 16, 32, 60, 60, 60, 60, 1, 2]


def test_an_outage_of_a_whole_day_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pauses([DrainEnd.UNAVAILABLE] * 1500, monkeypatch)[-1] == 60


def test_one_refused_environment_of_two_does_not_stop_the_other() -> None:
    both = [report(DrainEnd.REFUSED, reason="401"), report(DrainEnd.EMPTY, ITEM)]
    assert run([both, both])[:2] == (0, 2)


def test_a_stop_lets_the_running_drain_finish() -> None:
    async def main() -> tuple[int, bool]:
        finished = False

        async def drain() -> Sequence[DrainReport]:
            nonlocal finished
            poller.stopping.set()
            await asyncio.sleep(0.05)
            finished = True
            return [report(DrainEnd.EMPTY)]

        poller = Poller(drain, lambda _: None)
        return await poller.run(), finished

    assert asyncio.run(main()) == (0, True)
