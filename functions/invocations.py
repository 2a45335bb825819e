"""A wake-up as a message: what one function tells another to do, and how it gets there.

`{"do": "tick"}`, `{"do": "drain", "at": 1761000000.5}` or `{"do": "session_over", "session_id": "sesn_..."}`; `{}`,
which a schedule sends that was told nothing, is a tick. `at` is the Unix time at which the wake-up was made, so that a
drain that began later may stand for it.

DRAIN_MODE=enqueue sends wake-ups to ENQUEUE_TO, `aws-lambda:NAME-OR-ARN`: an invocation that nobody waits for. A
message that is lost costs no work: the item is still on the queue, and the schedule's next tick takes it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from shared.errors import HandsError

Kind = Literal["tick", "drain", "session_over"]


class BadInvocation(HandsError):
    """The message is none of the three. The text quotes nothing of it."""


class NotEnqueued(HandsError):
    """The message was not taken. The text is the kind of error alone."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """`at` in seconds since 1970; None where the sender does not say."""

    do: Kind
    session_id: str = ""
    at: float | None = None

    @classmethod
    def read(cls, message: object) -> Invocation:
        """Raises BadInvocation."""
        if not isinstance(message, Mapping):
            raise BadInvocation("the message must be a JSON object")
        at = message.get("at")
        if at is not None and (isinstance(at, bool) or not isinstance(at, int | float)):
            raise BadInvocation("at: must be a number of seconds")
        from shared import names

        session_id = message.get("session_id", "")
        match message.get("do", "tick" if not message else None):
            case "tick":
                return cls("tick", at=at)
            case "drain":
                return cls("drain", at=at)
            case "session_over" if isinstance(session_id, str) and names.is_session_id(session_id):
                return cls("session_over", session_id, at)
            case "session_over":
                raise BadInvocation("session_id: must be the id of a session")
            case _:
                raise BadInvocation("do: must be tick, drain or session_over")  # also where it is missing

    def message(self) -> bytes:
        import orjson

        fields = {name: value for name, value in asdict(self).items() if value not in (None, "")}
        return orjson.dumps(fields)


def drain_now() -> Invocation:
    return Invocation("drain", at=time.time())


async def enqueue(target: str, invocation: Invocation) -> None:
    """Has the message taken, or raises NotEnqueued. `target` is Settings.enqueue_to."""
    await send(target, invocation.message())


async def send(target: str, message: bytes) -> None:
    """Has the function `target` (`aws-lambda:NAME-OR-ARN`) invoked with this message, waiting for no answer of its, or
    raises NotEnqueued: then it may be invoked all the same. At most about twenty seconds."""
    name = target.removeprefix("aws-lambda:")
    try:
        await asyncio.to_thread(_invoke, name, message)
    except Exception as error:  # the library's errors are many, and all mean the same here
        raise NotEnqueued(type(error).__name__) from None


def _invoke(name: str, payload: bytes) -> None:
    import botocore.session  # comes with Lambda's runtime
    from botocore.config import Config

    config = Config(connect_timeout=3, read_timeout=5, retries={"mode": "standard", "max_attempts": 2})
    parts = name.split(":")
    region = parts[3] if parts[0] == "arn" and len(parts) > 3 else None
    client = botocore.session.get_session().create_client("lambda", region_name=region, config=config)
    client.invoke(FunctionName=name, InvocationType="Event", Payload=payload)
