"""docs/ui-*.png: what `make ui` shows, its races, too, at both widths: `make docs-picture`.

A platform of its own, three sessions of the scripted brain, two races, and a real Chromium.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx2

from infra.cli.environ import CHECKOUT
from infra.cli.reference.browser import browser
from infra.local.platform import Options, Platform

PICTURES: Final = {
    CHECKOUT / "docs" / "ui-phone.png": (390, 844),
    CHECKOUT / "docs" / "ui-desktop.png": (1280, 640),
    CHECKOUT / "docs" / "ui-races-phone.png": (390, 844),
    CHECKOUT / "docs" / "ui-races-desktop.png": (1280, 640),
}
_RACES: Final = "ui-races-"
_RACE: Final[Mapping[str, Any]] = {"n": 3, "script": "echo {i} > score.txt"}
_JUDGE: Final = {"type": "command", "script": "cat score.txt"}
_PROMPTS: Final = (
    ("nightly build", "$ sleep 600"),
    ("release notes", "create notes.txt with 'ready' then read it back"),
    ("report", "create report.csv with '1,2' then read it back"),
)
_HEADERS: Final = {"anthropic-version": "2023-06-01", "anthropic-beta": "managed-agents-2026-04-01"}
_SECONDS: Final = 120.0


class PictureFailed(Exception):
    """The sessions did not come as far as the picture wants them."""


def start_sessions(environ: Mapping[str, str]) -> list[str]:
    """One that works and two at rest; their ids, the working one first. Raises PictureFailed."""
    headers = {**_HEADERS, "authorization": f"Bearer {environ['ANTHROPIC_API_KEY']}"}
    with httpx2.Client(base_url=environ["ANTHROPIC_BASE_URL"], headers=headers, timeout=30) as client:
        found = []
        for title, prompt in _PROMPTS:
            message = {"type": "user.message", "content": [{"type": "text", "text": prompt}]}
            of = {"agent": environ["ANTHROPIC_AGENT_ID"], "environment_id": environ["ANTHROPIC_ENVIRONMENT_ID"]}
            body: dict[str, Any] = {**of, "title": title, "initial_events": [message]}
            found.append(str(client.post("/v1/sessions", json=body).raise_for_status().json()["id"]))
        end = time.monotonic() + _SECONDS
        while not _all_there(client, found):
            if time.monotonic() > end:
                raise PictureFailed("the sessions did not do their work")
            time.sleep(0.5)
        return found


def _all_there(client: httpx2.Client, sessions: list[str]) -> bool:
    events = [client.get(f"/v1/sessions/{each}/events", params={"limit": "50"}).json()["data"] for each in sessions]
    kinds = [[event["type"] for event in each] for each in events]
    rest = all("user.tool_result" in each and each[-1] == "session.status_idle" for each in kinds[1:])
    return rest and "agent.tool_use" in kinds[0]


def start_races(platform: Platform) -> None:
    """One that is over, with its report, and one that runs. Raises PictureFailed."""
    headers = {"authorization": f"Bearer {platform.environ['FUNCTIONS_TOKEN']}"}
    image = {"source": {"image": platform.environ["SANDBOX_IMAGE_NAME"]}}
    runs = {**_RACE, "script": "sleep 600", "deadline": 300}
    with httpx2.Client(base_url=platform.functions_url, headers=headers, timeout=_SECONDS) as client:
        for race, how in ((_RACE, {"idempotency-key": "nightly-7"}), (runs, {"prefer": "respond-async"})):
            answer = client.post("/fork_best_of_n", json={**image, **race, "judge": _JUDGE}, headers=how)
            if answer.status_code not in (200, 202):
                raise PictureFailed(f"the race was answered {answer.status_code}")


def take(folder: Mapping[Path, tuple[int, int]] = PICTURES) -> None:
    """Raises PictureFailed and BrowserFailed."""
    with Platform(Options()) as platform:
        platform.serve_functions()
        start_sessions(platform.environ)
        start_races(platform)
        command = [sys.executable, "-m", "infra.cli", "ui", "--ui-port", "0"]
        environ = {**platform.environ, "PATH": "/usr/bin:/bin", "FUNCTIONS_URL": platform.functions_url}
        with subprocess.Popen(command, cwd=CHECKOUT, env=environ, stdout=subprocess.PIPE, text=True) as page:
            try:
                address = page.stdout.readline().split()[-1] if page.stdout is not None else ""
                with browser() as tab:
                    for path, (width, height) in folder.items():
                        tab.resize(width, height)
                        tab.go(address)
                        if path.name.startswith(_RACES):
                            tab.go(f"{address.partition('?')[0]}races")
                        path.write_bytes(tab.picture())
            finally:
                page.terminate()


def main() -> int:
    take()
    for path in PICTURES:
        print(path.relative_to(CHECKOUT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
