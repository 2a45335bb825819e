"""`confirm`: answers the tool calls of a session that wait for a person."""

from __future__ import annotations

import sys

from infra.cli.environ import Loaded
from infra.cli.fleet.survey import open_calls
from infra.cli.fleet.target import NotCarriedOut, Target, target
from infra.cli.session.confirmations import ConfirmationAnswer, question, read_answer
from infra.cli.session.follow import Call
from infra.cli.session.render import clean, summarise

_EVENTS = 200


async def run(loaded: Loaded, session_id: str, call_id: str, answer: ConfirmationAnswer | None) -> int:
    """Answer `call_id`, or each call that waits; `answer` None asks at the terminal.

    0 answered, or nothing waits; 1 not answered. Raises SettingsError, FeedRefused, FeedBroken.
    """
    try:
        async with target(loaded, session_id) as aim:
            found = await waiting(aim, call_id)
            if not found:
                print(f"{call_id or session_id} waits for nobody.", file=sys.stderr)
                return 1 if call_id else 0
            for call in found:
                print(await answered(aim, call, answer or _ask(call, session_id)))
    except NotCarriedOut as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Watch it go on: make session SESSION={session_id}")
    return 0


async def waiting(aim: Target, call_id: str = "") -> list[Call]:
    """The calls that wait for a person, or this one of them. Raises FeedRefused, FeedBroken."""
    events = await aim.people.last_events(aim.session.id, _EVENTS)
    return [call for call in open_calls(events) if call.asks and call_id in ("", call.id)]


async def answered(aim: Target, call: Call, answer: ConfirmationAnswer) -> str:
    """What was done, in words. Raises FeedRefused, FeedBroken."""
    await aim.people.confirm(aim.session.id, call.id, allow=answer.allow, reason=answer.reason)
    return f"{'Allowed' if answer.allow else 'Denied'}: {clean(call.name)}  {summarise(call.input)}"


def _ask(call: Call, session_id: str) -> ConfirmationAnswer:
    if not sys.stdin.isatty():
        raise NotCarriedOut(
            f"{clean(call.name)}  {summarise(call.input)} waits. Nobody is here to ask: say --allow or --deny REASON "
            f"(hands confirm {session_id})"
        )
    while True:
        print(question(call), end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise NotCarriedOut("nothing was answered")
        answer = read_answer(line)
        if answer is not None:
            return answer
