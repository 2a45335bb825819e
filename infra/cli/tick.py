"""`tick`: one pass of poll_tick, in this process or at an address where the functions are served."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from infra.cli.environ import Loaded
from shared.errors import SettingsError
from shared.reports import DrainEnd, ItemEnd
from shared.secret import Secret
from shared.settings import Settings

_GOOD_ITEMS = frozenset((ItemEnd.HANDED_OVER.value, ItemEnd.DISMISSED.value, ItemEnd.GONE.value))
_GOOD_ENDS = frozenset((DrainEnd.EMPTY.value, DrainEnd.LIMIT.value, DrainEnd.DEADLINE.value))


async def run(loaded: Loaded, url: str = "") -> int:
    """Print the report as JSON. 0 when all was well, 1 when something failed or the service did not answer."""
    if url:
        token = Secret("FUNCTIONS_TOKEN", loaded.need("FUNCTIONS_TOKEN", "the token that the served functions know"))
        report = await _over_http(url, token.reveal())
    else:
        report = await _in_process(loaded)
    print(json.dumps(report, indent=2))
    return 0 if _is_good(report) else 1


async def _in_process(loaded: Loaded) -> Mapping[str, Any]:
    from shared.service import Service

    service = Service(Settings.from_environ(loaded.environ))
    try:
        return asdict(await service.tick())
    finally:
        await service.aclose()


async def _over_http(url: str, token: str) -> Mapping[str, Any]:
    import httpx2

    headers = {"authorization": f"Bearer {token}"}
    try:
        async with httpx2.AsyncClient(timeout=httpx2.Timeout(600.0, connect=10.0)) as client:
            answer = await client.post(f"{url.rstrip('/')}/poll_tick", headers=headers)
            body = answer.json()
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise SettingsError(f"no poll_tick answers at FUNCTIONS_URL ({type(error).__name__})") from None
    return body if isinstance(body, dict) else {"error": "the answer is not a report"}


def _is_good(report: Mapping[str, Any]) -> bool:
    if "drains" not in report:
        return False
    items = [item for drain in report["drains"] for item in drain["items"]]
    return (
        all(drain["end"] in _GOOD_ENDS and not drain["alarms"] for drain in report["drains"])
        and all(item["end"] in _GOOD_ITEMS for item in items)
        and not any(each["alarms"] or each["needs_interrupt"] for each in report["reconciled"])
        and all(action["done"] for each in report["reconciled"] for action in each["actions"])
    )
