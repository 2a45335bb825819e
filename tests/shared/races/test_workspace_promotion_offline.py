"""Promotion through a whole race, over real sockets and in real sandboxes."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

import pytest

from shared.adapters.tensorlake_sandboxes import TensorlakeSandboxes
from shared.ports import ItemState
from shared.races.race import run_race
from shared.races.report import PromotionReport, RaceReport
from shared.races.request import RaceRequest
from shared.races.workspace_promotion import PART_BYTES, WorkspacePromotion, promote_workspace
from tests.shared.races.race_stage import RaceStage, on_a_session
from tests.support.world import Place

CHANGES: Final = r"""
printf '\000\377 binary' > binary; printf 'new' > edited; rm deleted; rm -r gone; mkdir -p made/empty
chmod 755 script; ln -s nowhere dangling; ln -sfn edited link; printf odd > "$(printf 'n\nl\377')"
head -c 3000000 /dev/urandom > large; mkdir kept/more; printf x > kept/more/x; chmod 700 kept
"""
LIST: Final = (
    "find . -mindepth 1 -printf '%y %m %p %l\\n' | sort; find . -type f | sort | xargs -d '\\n' cat | sha256sum"
)


def test_what_the_winner_did_arrives_in_the_source_and_nothing_else_stays(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        await stage.sh("printf old > edited; printf d > deleted; mkdir gone kept; printf g > gone/f; printf s > script")
        await stage.sh("ln -s deleted link; printf k > kept/k; printf mine > untouched")
        before = set((await stage.sh("ls -a /tmp")).split())
        report = await stage.race(
            branches=[
                {"name": "loses", "script": "echo lost > lost; exit 1"},
                {"name": "wins", "script": f"{CHANGES}\n({LIST}) > /tmp/is; cat /tmp/is"},
            ],
            promote="workspace",
        )
        done = report.promotion
        assert report.winner == "wins" and done is not None and done.done, done
        assert await stage.sh(LIST) == next(branch for branch in report.branches if branch.name == "wins").stdout_tail
        assert await stage.sh("cat untouched; stat -c %a script kept; readlink link") == "mine755\n700\nedited"
        assert (done.deleted, done.skipped) == (3, ())
        assert set((await stage.sh("ls -a /tmp")).split()) <= before

    on_a_session(place, test)


def test_a_source_that_changed_meanwhile_refuses_unless_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(stage: RaceStage) -> None:
        await stage.sh("printf old > both")

        async def race(meanwhile: str, **fields: Any) -> PromotionReport:
            async def promote(**asked: Any) -> WorkspacePromotion:
                await stage.sh(f"printf {meanwhile} > both")
                return await promote_workspace(**asked)

            monkeypatch.setattr("shared.races.leader.promote_workspace", promote)
            branch = {"name": "a", "script": "printf winner > both; printf w > fresh"}
            report = await stage.race(branches=[branch], promote="workspace", **fields)
            assert report.promotion is not None and report.winner == "a"
            return report.promotion

        refused = await race("first")
        assert not refused.done and refused.conflicts == ("both",)
        assert await stage.sh("cat both; ls") == "firstboth"
        ours = await race("second", on_conflict="ours")
        assert ours.done and (ours.conflicts, ours.added, ours.changed) == (("both",), 1, 0)
        assert await stage.sh("cat both fresh") == "secondw"
        theirs = await race("third", on_conflict="theirs")
        assert theirs.done and (theirs.conflicts, theirs.changed) == (("both",), 1)
        assert await stage.sh("cat both fresh") == "winnerw"

    on_a_session(place, test)


def test_the_sessions_turn_goes_on_and_sees_what_was_promoted(place: Place) -> None:
    """The worker lives, its item stays active, and its own tool sees the winner's files."""
    session_id = place.session(
        "$ i=0; while [ ! -e answer ] && [ $i -lt 400 ]; do sleep 0.1; i=$((i+1)); done; cat answer"
    )
    settings = place.settings

    async def main() -> RaceReport:
        host = TensorlakeSandboxes(api_url=settings.tensorlake_url, api_key=settings.tensorlake_key, bind_seconds=20.0)
        try:
            async with place.dispatcher() as dispatcher:
                await dispatcher.drain()
            async with asyncio.timeout(30):
                while place.item(session_id)["state"] != ItemState.ACTIVE:
                    await asyncio.sleep(0.05)
            asked = {
                "source": {"session_id": session_id},
                "branches": [
                    {
                        "name": "a",
                        "script": f"head -c {PART_BYTES + 5} /dev/zero > filler; echo 42-by-the-winner > answer",
                    }
                ],
                "promote": "workspace",
            }
            request = RaceRequest.model_validate_json(json.dumps(asked))
            return await run_race(request, host=host, settings=settings, environment=place.environment)
        finally:
            await host.aclose()

    report = asyncio.run(main())
    assert report.promotion is not None and report.promotion.done, report.promotion
    place.wait_done(session_id)
    assert "42-by-the-winner" in place.answers(session_id)[0]
    items = place.items(session_id)
    assert len(items) == 1, "the item was served by one worker"
