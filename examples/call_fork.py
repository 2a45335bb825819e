"""Ask for a race from Python, and show what happens while it runs. Needs the standard library only.

FUNCTIONS_URL=http://127.0.0.1:5051 FUNCTIONS_TOKEN=... python examples/call_fork.py
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

RACE = {
    "source": {"image": "agent-cli"},
    "n": 3,
    "script": "echo $((BRANCH_INDEX * BRANCH_INDEX)) > score.txt",
    "judge": {"type": "command", "script": "cat score.txt"},
    "deadline": 120,
}


def events(url: str, token: str, race: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One object for each thing that happens; the last one is the report or an error."""
    request = urllib.request.Request(
        f"{url.rstrip('/')}/fork_best_of_n",
        data=json.dumps(race).encode(),
        headers={"authorization": f"Bearer {token}", "accept": "application/x-ndjson"},
    )
    with urllib.request.urlopen(request, timeout=race.get("deadline", 900) + 60) as answer:
        for line in answer:
            if line.strip():  # an empty line keeps the connection alive
                yield json.loads(line)


def main() -> int:
    """0 with a winner, 1 without one."""
    try:
        for event in events(os.environ["FUNCTIONS_URL"], os.environ["FUNCTIONS_TOKEN"], RACE):
            match event:
                case {"event": "report", "report": report}:
                    print(f"winner: {report['winner']}")
                    return 0 if report["winner"] else 1
                case {"event": "error", "error": error}:
                    print(f"error: {error['message']}", file=sys.stderr)
                    return 1
                case {"event": kind}:
                    print(kind, event.get("phase") or event.get("branch", {}))
    except urllib.error.HTTPError as refusal:
        print(json.loads(refusal.read())["error"]["message"], file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
