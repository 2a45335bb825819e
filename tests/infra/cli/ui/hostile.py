"""Both services saying something hostile wherever they may say a text."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from infra.cli.fleet.call_use import Calls, CallUse
from infra.cli.fleet.survey import OtherSandbox, SessionRow
from infra.cli.fleet.top import Overview, Queue
from infra.cli.session.follow import Call
from infra.cli.ui.drawing import drawn as drawn_page
from infra.cli.ui.pages import Reader, graph_of, timeline_of
from infra.cli.ui.races import Opened, Race, drawn
from shared.ports import ItemState
from shared.races.report import Artifact, BranchReport, PromotionReport, RaceReport, RaceSpan, RoundReport
from tests.infra.cli.fleet.test_survey import NOW, SESSION, item
from tests.support.checkout import ROOT

HOSTILE = (
    "\"'><script>document.title='owned'</script><img src=x onerror=alert(1)>{{7*7}}\x1b]0;x\x07\u202e"
    "</span><a hx-get=/x>"
)


RACE = "abc123abc123"


def hostile_report() -> RaceReport:
    branch = BranchReport(
        name=HOSTILE, index=0, status="failed", reason=HOSTILE, stdout_tail=HOSTILE, stderr_tail=HOSTILE,
        judge_tail=HOSTILE, failing=(HOSTILE,), params={HOSTILE: HOSTILE}, scores={HOSTILE: 1.0}, diff=HOSTILE,
        artifacts=(Artifact(path=HOSTILE, size=1, truncated=HOSTILE),), parent=HOSTILE,
    )  # fmt: skip
    span = RaceSpan(phase="run", branch=HOSTILE, start=0.0, end=1.0)
    rounds = (RoundReport(number=1, branches=(HOSTILE,), top=(HOSTILE,)),)
    promotion = PromotionReport(kind="workspace", done=False, reason=HOSTILE, conflicts=(HOSTILE,))
    return RaceReport(
        race_id=RACE, winner=None, branches=(branch,), rounds=rounds, checkpoint=HOSTILE, promotion=promotion,
        reaped=(), leftovers=(HOSTILE,), timeline=(span,), seconds=1.0,
    )  # fmt: skip


class Hostile(Reader):
    """Both services say HOSTILE wherever they may say a text."""

    async def home(self) -> dict[str, Any]:
        texts = dict.fromkeys(("title", "environment", "state", "item", "item_state", "sandbox"), HOSTILE)
        row = SessionRow(SESSION, **texts, sandbox_state=HOSTILE, age=1.0, seen=2.0, problem=HOSTILE)  # type: ignore[arg-type]
        queue = Queue(HOSTILE, 1, 2.0, 3, 4, 5.0, 6.0)
        return {
            "rows": [row],
            "others": [OtherSandbox(HOSTILE, HOSTILE, "race", HOSTILE, 1.0)],
            "overview": Overview(
                (queue,),
                {HOSTILE: 1},
                {HOSTILE: 1},
                (HOSTILE,),
                (HOSTILE,),
                calls=Calls((CallUse(HOSTILE, 1, None, (0, 2)), CallUse(HOSTILE, 0, 5, ())), HOSTILE),
                requests_left=(1, 2),
                own_calls=3,
            ),
            "graph": graph_of([item(ItemState.ACTIVE, started_at=NOW)], NOW),
            "environments": [HOSTILE],
            "missing": (HOSTILE,),
        }

    async def races(self) -> dict[str, Any]:
        race = Race(HOSTILE, HOSTILE, HOSTILE, 1.0, over_in=5.0, kept_for=6.0)
        return {"running": [race, replace(race, over_in=-1.0)], "kept": [race], "missing": (HOSTILE,)}

    async def race(self, race_id: str) -> Opened:
        """RACE has ended with a report, any other has failed."""
        error = {"type": HOSTILE, "message": HOSTILE, "field": HOSTILE}
        texts = dict.fromkeys(("race_id", "environment", "owner"), HOSTILE)
        times = dict.fromkeys(("asked_at", "ended_at", "expires_at"), datetime.fromtimestamp(NOW, UTC))
        facts = {**texts, **times, "state": "failed", "error": error}
        return Opened(facts, drawn(hostile_report()) if race_id == RACE else "")

    async def session(self, session_id: str) -> dict[str, Any]:
        events: list[dict[str, Any]] = [
            {"type": "agent.tool_use", "id": HOSTILE, "name": HOSTILE, "input": {"command": HOSTILE}},
            {"type": "user.tool_result", "tool_use_id": HOSTILE, "content": [{"type": "text", "text": HOSTILE}]},
            {"type": "agent.message", "content": [{"type": "text", "text": HOSTILE}]},
            {"type": "session.error", "error": {"type": HOSTILE, "message": HOSTILE}},
        ]
        session = {"id": session_id, "title": HOSTILE, "status": HOSTILE, "archived": True, "created_at": NOW}
        call = {"id": HOSTILE, "name": HOSTILE, "input": HOSTILE, "seconds": 1.0, "waits_for": HOSTILE}
        items = [{"id": HOSTILE, "created_at": NOW, "stopped_at": NOW}]
        facts: dict[str, Any] = {
            "session": {**session, "environment_id": HOSTILE},
            "console": None,
            "calls": [call, {**call, "waits_for": "a person"}],
            "last_error": HOSTILE,
            "items": items,
            "sandbox": {"id": HOSTILE, "state": HOSTILE},
            "deaths": 2,
            "worker_says": {**dict.fromkeys(("state", "sdk", "setup"), HOSTILE), "leased": False},
            "workers": [{"name": f"{HOSTILE}-{int(NOW):x}-1", "running": False, "exit_code": 1, "died": True}],
        }
        moments = timeline_of(events, items, facts["workers"], [{"at": NOW, "text": HOSTILE}])
        return {"facts": facts, "moments": moments, "now": time.time()}

    async def _alarms(self) -> list[str]:
        return [f"ALARM   {HOSTILE}"]


def hostile_drawings() -> Starlette:
    """The pages that an action leads to, as they would be drawn of HOSTILE."""

    async def call(request: Request) -> Response:
        asked = Call(HOSTILE, HOSTILE, {}, None, asks=True)
        facts = {"tokens": {"allow": HOSTILE, "deny": HOSTILE}, "longest": 500, "given": HOSTILE, "whole": False}
        return drawn_page(request, "call.html.j2", 200, session=HOSTILE, call=asked, **facts)

    async def sure(request: Request) -> Response:
        return drawn_page(request, "sure.html.j2", 200, name=HOSTILE, text=HOSTILE, token=HOSTILE, back=HOSTILE)

    async def style(request: Request) -> Response:
        return FileResponse(ROOT / "infra/cli/ui/static/ui.css")

    return Starlette(routes=[Route("/call", call), Route("/sure", sure), Route("/ui.css", style)])
