"""A dispatcher that is killed by SIGKILL at a named point of the claim protocol.

    python -m tests.support.crashing before|after METHOD-OF-A-PORT

Settings come from the environment. It drains once and prints the report, if it lives to see one. `after` means: the
service has answered, and nothing was made of the answer.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import os
import signal
import sys
from collections.abc import AsyncGenerator
from typing import Any

from shared.ports import Empty
from shared.reports import to_json
from shared.service import Service
from shared.settings import Settings


class Killer:
    """Stands before a port and kills this process at one of its methods."""

    def __init__(self, port: Any, when: str, method: str) -> None:
        self._port = port
        self._when = when
        self._method = method

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        if name != self._method:
            return method
        if inspect.isasyncgenfunction(method):
            return self._deadly_stream(method)

        async def deadly(*args: Any, **kwargs: Any) -> Any:
            if self._when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            answer = await method(*args, **kwargs)
            if not isinstance(answer, Empty):
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return deadly

    def _deadly_stream(self, method: Any) -> Any:
        async def deadly(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
            if self._when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            async for answer in method(*args, **kwargs):
                os.kill(os.getpid(), signal.SIGKILL)
                yield answer

        return deadly


async def main() -> None:
    when, method = sys.argv[1:]
    settings = Settings.from_environ(os.environ)
    service = Service(settings)
    (environment,) = settings.environments.values()
    whole = service.dispatcher(environment)
    deadly = dataclasses.replace(whole, queue=Killer(whole.queue, when, method), host=Killer(whole.host, when, method))
    print(to_json(await deadly.drain()).decode())
    await service.aclose()


if __name__ == "__main__":
    asyncio.run(main())
