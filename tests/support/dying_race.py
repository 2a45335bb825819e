"""A race that is killed by SIGKILL at a named point.

    python -m tests.support.dying_race before|after METHOD COUNT REQUEST

METHOD is one of ports.SandboxHost, COUNT says which call of it, REQUEST is the race's JSON. Settings come from the
environment. `after` means: the service has answered, and nothing was made of the answer.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

from shared.races.limits import environment_for
from shared.races.race import run_race
from shared.races.request import RaceRequest
from shared.service import Service
from shared.settings import Settings


class DyingHost:
    """Stands before a host and kills this process at one call of one method."""

    def __init__(self, host: Any, when: str, method: str, count: int) -> None:
        self._host = host
        self._when = when
        self._method = method
        self._left = count

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._host, name)
        if name != self._method:
            return method

        async def deadly(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left == 0 and self._when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            now = self._left == 0
            answer = await method(*args, **kwargs)
            if now:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return deadly


async def main() -> None:
    when, method, count, asked = sys.argv[1:]
    settings = Settings.from_environ(os.environ)
    service = Service(settings)
    request = RaceRequest.model_validate_json(asked)
    host: Any = DyingHost(service.host, when, method, int(count))
    await run_race(request, host=host, settings=settings, environment=environment_for(request, settings))
    await service.aclose()


if __name__ == "__main__":
    asyncio.run(main())
