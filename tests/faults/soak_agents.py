"""Agents that behave badly beside the sessions that the soak counts.

They are sessions of the same environment. Nothing is asked of their turns: they must cost the others nothing, and
what they leave must be ended with the rest.
"""

from __future__ import annotations

from typing import Final

import anthropic

from tests.support.waiting import until
from tests.support.world import Place

PROMPTS: Final = {
    "floods": "$ yes flood | head -c 30000000; head -c 50000000 /dev/zero > /workspace/flood",
    "kills its worker": "$ kill -9 $PPID",
    "never ends": "$ (setsid sleep 100000 &) ; sleep 100000",
}


def begin(place: Place) -> dict[str, str]:
    """One session of each kind: its id by kind."""
    return {kind: place.session(prompt) for kind, prompt in PROMPTS.items()}


def end(place: Place, sessions: dict[str, str]) -> None:
    """Stop their work and archive them. Raises AssertionError for one that cannot be."""
    for kind, session in sessions.items():
        until(lambda session=session: _archived(place, session), f"the session that {kind} could not be archived")  # type: ignore[misc]


def _archived(place: Place, session: str) -> bool:
    """Whether it is by now. One that runs cannot be: its work is stopped and its turn interrupted first."""
    beta = place.world.api.beta
    for item in place.items(session):
        if item["state"] != "stopped":
            beta.environments.work.stop(item["id"], environment_id=place.environment_id, force=True)
    beta.sessions.events.send(session, events=[{"type": "user.interrupt"}])
    try:
        beta.sessions.archive(session)
    except anthropic.BadRequestError:
        return False
    return True
