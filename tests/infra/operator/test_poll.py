"""The polling loop: never ended by what may pass, ended by a refused key and by a signal."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from infra.operator.poll import EXIT_REFUSED, Poller
from shared.models import DrainEnd, DrainReport, ItemEnd, ItemReport

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
    assert [line for line in said if "sesn_1" in line and "handed_over" in line]
    assert len([line for line in said if "polls keep failing" in line]) == 1
    assert "The queue answers again." in said


def test_a_refused_key_ends_it_with_a_clear_message() -> None:
    code, drains, said = run([[report(DrainEnd.REFUSED, reason="401")], []])
    assert (code, drains) == (EXIT_REFUSED, 1)
    assert [line for line in said if "ANTHROPIC_ENVIRONMENT_KEY" in line]


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
