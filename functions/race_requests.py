"""What fork_best_of_n is sent and what it answers: bounded bodies, errors with their status, events as lines.

Models are imported when a body has to be read as one: they need pydantic, and a refusal before that does not.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from functions.requests import HttpError, configuration_error, read_model
from functions.streaming import Lines
from shared.deadline import Deadline
from shared.errors import SecretUnavailable, SettingsError
from shared.races import errors
from shared.service import FOR_RACES

if TYPE_CHECKING:
    from shared.capability import Capability
    from shared.races import events
    from shared.races.report import RaceReport
    from shared.races.request import RaceRequest

log = logging.getLogger(__name__)

MOST_ELEMENTS: Final = 20_000
"""Values in a body: the largest race that the models take has 64 branches with some dozens of files and variables."""
_UNTIL_IT_BEGINS: Final = 5.0  # seconds: a cold process imports the core in between
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)

Run = Callable[..., "Coroutine[Any, Any, RaceReport]"]


def read_race(body: bytes, caller: Capability | None, spent: float, deadline: Deadline | None) -> RaceRequest:
    """The race that a body asks for, `spent` seconds after its call began. For a thread: a body of a mebibyte takes
    tens of milliseconds. Raises HttpError 400, or 403 for what an agent may not ask."""
    require_few_elements(body)
    from shared.races.request import RaceRequest

    if caller is None:
        return read_model(RaceRequest, body)
    from shared.races import agent_policy

    race = read_model(RaceRequest, agent_policy.with_own_source(body, caller))
    try:
        longest = None if deadline is None else deadline.left() * FOR_RACES - _UNTIL_IT_BEGINS
        return agent_policy.in_time(agent_policy.narrowed(race, caller), spent, longest)
    except agent_policy.NotAllowed as error:
        raise HttpError(403, "forbidden", str(error), field=error.field) from None


def require_few_elements(body: bytes) -> None:
    """Raises HttpError 400 for JSON of more than MOST_ELEMENTS values, before any of them becomes an object."""
    if _separators(body) <= MOST_ELEMENTS or _separators(_STRING.sub(b"", body)) <= MOST_ELEMENTS:
        return
    raise HttpError(400, "invalid_request", f"the body has more than {MOST_ELEMENTS} values")


def _separators(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")


@contextmanager
def errors_as_answers() -> Iterator[None]:
    try:
        yield
    except errors.RaceError as error:
        raise _refusal(error) from None
    except (SettingsError, SecretUnavailable) as error:
        raise configuration_error(error) from None


async def say_events(run: Run, lines: Lines) -> None:
    """Says the race's events as lines. Raises HttpError as long as there was none."""
    from shared.races import events

    def tell(event: events.Event) -> None:
        lines.say(events.to_line(event), spare=isinstance(event, events.OutputLine))

    try:
        await run(on_event=tell)
    except HttpError as error:
        if not lines.said:
            raise
        said = events.ErrorBody(type=error.kind, message=error.message, field=error.field)
        tell(events.RaceFailed(error=said))
    except Exception:
        if lines.said:
            tell(events.RaceFailed(error=events.ErrorBody(type="internal", message="a fault of this function")))
        raise


def _refusal(error: errors.RaceError) -> HttpError:
    match error:
        case errors.BadRace():
            return HttpError(400, "invalid_request", str(error), field=error.field)
        case errors.SourceAbsent():
            return HttpError(404, "source_not_found", str(error))
        case errors.SourceNotReady():
            return HttpError(409, "source_not_ready", str(error))
        case errors.SetupFailed():
            return HttpError(422, "setup_failed", str(error))
        case _:
            return HttpError(502, "service_unclear", str(error))
