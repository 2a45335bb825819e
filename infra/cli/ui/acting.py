"""What the page may do where it was started with `--act`: each action is a POST with a token of its own, which is good
once, for this action on this session and for an hour. An action that loses something asks first, and the answer to the
question has a token of its own, too. tests/infra/cli/ui/test_acting.py
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final
from urllib.parse import parse_qs

from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.requests import Request
from starlette.responses import Response

from infra.cli.environ import Loaded
from infra.cli.fleet import actions, confirm
from infra.cli.fleet.target import NotCarriedOut, Target, target
from infra.cli.session.confirmations import ConfirmationAnswer
from infra.cli.session.follow import FeedBroken, FeedRefused
from infra.cli.ui.drawing import Readable, drawn
from shared.errors import HandsError
from shared.texts import printable

ACTS: Final[Mapping[str, actions.Act]] = {
    "interrupt": actions.interrupt,
    "stop": actions.stop,
    "suspend": actions.suspend,
    "resume": actions.resume,
    "archive": actions.archive,
}
LONGEST_REASON: Final = 500  # characters
_ANSWERS: Final = ("allow", "deny")
_ACT_SECONDS: Final = 3600
_LARGEST_FORM: Final = 16_384
_MOST_USED: Final = 10_000
_LONGEST_INPUT: Final = 20_000
_ONLY_READS: Final = "This page only reads. To act: hands ui --act"
_OLD: Final = "The button is old, or was used before. Look at the page again, and press it there."


class ActionTokens:
    """Each is for exactly these words, and good once."""

    def __init__(self) -> None:
        self._signer = URLSafeTimedSerializer(secrets.token_hex(32), salt="action")
        self._used: dict[str, None] = {}

    def issue(self, *words: str) -> str:
        return self._signer.dumps([*words, secrets.token_hex(8)])

    def redeem(self, token: str, *words: str) -> bool:
        """Whoever sends it again must look again."""
        try:
            said = self._signer.loads(token, max_age=_ACT_SECONDS)
        except BadSignature:
            return False
        if said[:-1] != [*words] or token in self._used:
            return False
        self._used[token] = None
        if len(self._used) > _MOST_USED:
            del self._used[next(iter(self._used))]
        return True


class Acting:
    """The routes that change something, and the page on which a call is answered."""

    def __init__(self, loaded: Loaded, *, allowed: bool) -> None:
        self._loaded = loaded
        self._allowed = allowed
        self._tokens = ActionTokens()

    def tokens_for(self, session_id: str) -> Mapping[str, str]:
        """One for each button of a session's page; none where the page only reads."""
        return {name: self._tokens.issue(name, session_id) for name in ACTS} if self._allowed else {}

    def aim(self, session_id: str) -> AbstractAsyncContextManager[Target]:
        return target(self._loaded, session_id)

    async def do(self, request: Request) -> Response:
        session_id, name = request.path_params["session"], request.path_params["action"]
        if not self._allowed or name not in ACTS:
            return _refused(request, _ONLY_READS)
        token = (await form_of(request)).get("token", "")
        sure = self._tokens.redeem(token, name, session_id, "sure")
        if not sure and not self._tokens.redeem(token, name, session_id):
            return _refused(request, _OLD)
        asked: list[str] = []

        def answer(what: str) -> bool:
            asked.append(what)
            return sure

        back = f"sessions/{session_id}"
        try:
            async with self.aim(session_id) as aim:
                said = await ACTS[name](aim, answer)
        except (NotCarriedOut, FeedBroken, FeedRefused, HandsError) as error:
            return drawn(request, "message.html.j2", 409, title="Not done", text=str(error), back=back)
        if said is None:
            again = self._tokens.issue(name, session_id, "sure")
            return drawn(request, "sure.html.j2", 200, name=name, text=" ".join(asked), token=again, back=back)
        return drawn(request, "message.html.j2", 200, title="Done", text=said, back=back)

    async def call(self, request: Request) -> Response:
        """A call that waits for a person, with all that it would be run with."""
        session_id, call_id = request.path_params["session"], request.path_params["call"]
        back = f"sessions/{session_id}"
        try:
            async with self.aim(session_id) as aim:
                found = await confirm.waiting(aim, call_id)
        except (NotCarriedOut, FeedBroken, FeedRefused, HandsError) as error:
            return drawn(request, "message.html.j2", 502, title="Not seen", text=str(error), back=back)
        if not found:
            text = "It waits for nobody: it was answered, or its turn is over."
            return drawn(request, "message.html.j2", 404, title="Not there", text=text, back=back)
        tokens = {word: self._tokens.issue(word, session_id, call_id) for word in _ANSWERS} if self._allowed else {}
        given = json.dumps(found[0].input, indent=2, ensure_ascii=False)
        shown = {"given": Readable(printable(given, _LONGEST_INPUT, keep="\n")), "whole": len(given) <= _LONGEST_INPUT}
        facts = {"session": session_id, "call": found[0], "tokens": tokens, "longest": LONGEST_REASON}
        return drawn(request, "call.html.j2", 200, **shown, **facts)

    async def answer(self, request: Request) -> Response:
        session_id, call_id = request.path_params["session"], request.path_params["call"]
        word = request.path_params["answer"]
        if not self._allowed or word not in _ANSWERS:
            return _refused(request, _ONLY_READS)
        form = await form_of(request)
        if not self._tokens.redeem(form.get("token", ""), word, session_id, call_id):
            return _refused(request, _OLD)
        back = f"sessions/{session_id}"
        try:
            async with self.aim(session_id) as aim:
                if not (found := await confirm.waiting(aim, call_id)):
                    raise NotCarriedOut("It waits for nobody any more: it was answered, or its turn is over.")
                reason = form.get("reason", "").strip()[:LONGEST_REASON]
                said = await confirm.answered(aim, found[0], ConfirmationAnswer(word == "allow", reason))
        except (NotCarriedOut, FeedBroken, FeedRefused, HandsError) as error:
            return drawn(request, "message.html.j2", 409, title="Not done", text=str(error), back=back)
        return drawn(request, "message.html.j2", 200, title="Done", text=said, back=back)


def _refused(request: Request, text: str) -> Response:
    return drawn(request, "message.html.j2", 403, title="Not done", text=text)


async def form_of(request: Request) -> Mapping[str, str]:
    """Empty for one that is too large."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LARGEST_FORM:
            return {}
    return {name: values[0] for name, values in parse_qs(body.decode(errors="replace")).items()}
