"""What the handlers of one process share: the service, and what belongs to answering requests alone.

A server builds this when it starts and hands it over in the ASGI lifespan state; a runtime without a lifespan
(functions-framework, Lambda) gets one that is built on the first request.
"""

from __future__ import annotations

import asyncio
import logging
import os
from functools import cached_property
from typing import TYPE_CHECKING, Final

from starlette.requests import Request

from functions.requests import BodiesInFlight
from shared.deadline import Deadline
from shared.secret import SHORTEST_SECRET
from shared.service import Service
from shared.settings import Settings

if TYPE_CHECKING:
    from functions.cloud_run_iam import IngressProbe
    from functions.race_admission import CallRates, RunningRaces
    from functions.recorded_races import RecordedRaces
    from functions.signatures import SeenWebhooks, StaleWebhooks
    from shared.capability import Capability
    from shared.races.ledger import Ledger

log = logging.getLogger(__name__)

STATE: Final = "functions"
"""Key of the FunctionsState in the lifespan state."""

DEADLINE: Final = "deadline"
"""Key, beside it, of the Deadline at which the runtime ends this request, where it says so."""


class FunctionsState:
    """`background`: webhooks are answered before their drain, where the setting leaves the choice to the runtime."""

    def __init__(self, service: Service, *, background: bool) -> None:
        self.service = service
        if service.settings.weak_token:
            log.warning("functions_token.weak wanted=%d characters or more, at random", SHORTEST_SECRET)
        mode = service.settings.drain_mode
        self.background = background if mode == "auto" else mode == "background"
        self.bodies = BodiesInFlight()

    # What not every function needs is imported by the one that does: a cold start waits for the imports.

    @cached_property
    def races(self) -> RunningRaces:
        from functions.race_admission import RunningRaces

        return RunningRaces(self.settings.races.at_once)

    @cached_property
    def rates(self) -> CallRates:
        from functions.race_admission import CallRates

        return CallRates()

    @cached_property
    def seen_webhooks(self) -> SeenWebhooks:
        from functions.signatures import SeenWebhooks

        return SeenWebhooks()

    @cached_property
    def stale_webhooks(self) -> StaleWebhooks:
        from functions.signatures import StaleWebhooks

        return StaleWebhooks()

    def count_call(self, caller: Capability | None) -> None:
        """Raises HttpError 429 for a caller who calls too often: an agent by its work item, the operator as one."""
        from functions.race_admission import OPERATOR

        races = self.settings.races
        if caller is None:
            self.rates.count(OPERATOR, races.calls_per_minute)
        else:
            self.rates.count(f"{caller.session_id} {caller.work_id}", races.agent_calls_per_minute)

    @property
    def settings(self) -> Settings:
        return self.service.settings

    @cached_property
    def recorded(self) -> RecordedRaces:
        """The races of this process that have a record. Needs pydantic: see who asks for it."""
        from functions.recorded_races import RecordedRaces

        return RecordedRaces(self.service, lives_on=self.background)

    @cached_property
    def ledger(self) -> Ledger:
        """Of agents' races. Needs pydantic."""
        from shared.races.ledger import Ledger

        return Ledger(lambda: self.service.host, self.settings, now=self.service.now)

    async def stop_races(self) -> None:
        """Ends the races that run behind their answers."""
        if "recorded" in self.__dict__:
            await self.recorded.aclose()

    @cached_property
    def ingress_probe(self) -> IngressProbe:
        from functions.cloud_run_iam import IngressProbe

        return IngressProbe(self.settings.auth_own_url)


_of_this_process: tuple[asyncio.AbstractEventLoop, FunctionsState] | None = None


def state_of(request: Request) -> FunctionsState:
    """The server's state, else this process's own. Raises SettingsError where a setting is missing or wrong."""
    scope = request.scope.get("state")
    if scope is not None and STATE in scope:
        state = scope[STATE]
        if not isinstance(state, FunctionsState):
            raise TypeError(f"the lifespan state's {STATE} is not a FunctionsState")
        return state
    global _of_this_process
    loop = asyncio.get_running_loop()
    if _of_this_process is None or _of_this_process[0] is not loop:
        service = Service(Settings.from_environ(os.environ))
        _of_this_process = (loop, FunctionsState(service, background=False))
    return _of_this_process[1]


def deadline_of(request: Request) -> Deadline | None:
    """When the runtime ends this request; None where it does not say."""
    deadline = (request.scope.get("state") or {}).get(DEADLINE)
    return deadline if isinstance(deadline, Deadline) else None
