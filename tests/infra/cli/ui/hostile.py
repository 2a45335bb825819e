"""Both services saying something hostile wherever they may say a text."""

from __future__ import annotations

import time
from typing import Any

from infra.cli.fleet.survey import OtherSandbox, Row
from infra.cli.fleet.top import Overview, Queue
from infra.cli.ui.pages import Reader, graph_of, timeline_of
from shared.ports import ItemState
from tests.infra.cli.fleet.test_survey import NOW, SESSION, item

HOSTILE = (
    "\"'><script>document.title='owned'</script><img src=x onerror=alert(1)>{{7*7}}\x1b]0;x\x07\u202e"
    "</span><a hx-get=/x>"
)


class Hostile(Reader):
    """Both services say HOSTILE wherever they may say a text."""

    async def home(self) -> dict[str, Any]:
        texts = dict.fromkeys(("title", "environment", "state", "item", "item_state", "sandbox"), HOSTILE)
        row = Row(SESSION, **texts, sandbox_state=HOSTILE, age=1.0, seen=2.0, problem=HOSTILE)  # type: ignore[arg-type]
        queue = Queue(HOSTILE, 1, 2.0, 3, 4, 5.0, 6.0)
        return {
            "rows": [row],
            "others": [OtherSandbox(HOSTILE, HOSTILE, "race", HOSTILE, 1.0)],
            "overview": Overview((queue,), {HOSTILE: 1}, {HOSTILE: 1}, (HOSTILE,), (HOSTILE,)),
            "graph": graph_of([item(ItemState.ACTIVE, started_at=NOW)], NOW),
            "environments": [HOSTILE],
            "missing": (HOSTILE,),
        }

    async def races(self) -> dict[str, Any]:
        return {"races": [OtherSandbox(HOSTILE, HOSTILE, "race", HOSTILE, 1.0)], "missing": (HOSTILE,)}

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
        facts = {
            "session": {**session, "environment_id": HOSTILE},
            "console": None,
            "calls": [call],
            "last_error": HOSTILE,
            "items": items,
            "sandbox": {"id": HOSTILE, "state": HOSTILE},
            "deaths": 2,
            "worker_says": {**dict.fromkeys(("state", "sdk", "setup"), HOSTILE), "leased": False},
            "workers": [{"name": HOSTILE, "running": False, "exit_code": 1}],
        }
        return {"facts": facts, "moments": timeline_of(events, items), "now": time.time()}

    async def _alarms(self) -> list[str]:
        return [f"ALARM   {HOSTILE}"]
