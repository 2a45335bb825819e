"""What checks stand on: both services as the settings have them, and a ledger of all that must be taken away again.

Sandboxes bear names of races with a dead-man time (shared/names.py), so that a tick ends what a killed certify leaves.
Sessions bear that time in their metadata. Both bear the run's name (runs.py), and the next certify ends them
(left_behind.py).
At most two of them live at once: the shared one, and one of the check that runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit, urlunsplit

from infra.cli.certify import runs
from infra.cli.certify.observation import NotTried
from infra.cli.certify.unbroken import to_its_end, unbroken
from infra.cli.doctor.context import DAEMON_PORT, DoctorContext, http_client
from infra.local.admin_client import AdminClient
from infra.local.platform import CLAUDE_ADMIN, TENSORLAKE_ADMIN
from shared import names
from shared.errors import SecretUnavailable
from shared.ports import Absent, Created, SandboxHost, SandboxRecord, SandboxSpec, SandboxStatus
from shared.secret import Secret
from shared.setting_kinds import LOOPBACK

if TYPE_CHECKING:
    import httpx2

BETA: Final = "managed-agents-2026-04-01"
VERSION: Final = "2026-10-21"
_TIMEOUT_SECONDS: Final = 660
"""Not the service's own 600, so that a copy shows whether it has its source's."""
_UNTIL: Final = "certify_until"
"""Key of a session's metadata: the time in seconds of Unix from which on no certify uses the session."""
_RUN: Final = "certify_run"
"""Key of a session's metadata: the run that made it (runs.py)."""
_END_TRIES: Final = 3
_MOST_PAGES: Final = 50
_CLOCKS_DIFFER: Final = timedelta(minutes=5)
_PATIENCE: Final = 20.0
"""Seconds that something is waited for which should be there at once."""

_Seen = TypeVar("_Seen")
CleanUp = Callable[[], Awaitable[None]]


@dataclass
class Ground:
    """`idle_seconds`: the idle time-out of the sandbox that is left alone. The first environment of the settings is
    used. A context manager: left, everything that was made is gone, whatever happened."""

    context: DoctorContext
    idle_seconds: int = 60
    quota: int = 0
    """How many sandboxes the account may have at once, as far as somebody knows."""
    create_seconds: list[float] = field(default_factory=list)
    """What each create took."""
    left_over: list[str] = field(default_factory=list)
    """What could not be taken away, for people."""
    run: str = field(default_factory=runs.new_run)
    runs_folder: Path = runs.FOLDER
    _ledger: dict[str, CleanUp] = field(default_factory=dict)
    _shared: SandboxRecord | None = None
    _numbers: Iterator[int] = field(default_factory=count)
    _seen: dict[Any, Any] = field(default_factory=dict)
    _handed_out: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Items that a poll for another session of this run had: by session, as the poll gave them."""

    def __post_init__(self) -> None:
        self._began = datetime.fromtimestamp(self.context.now(), UTC) - _CLOCKS_DIFFER
        settings = self.context.settings
        self.environment = next(iter(settings.environments.values()))
        environ = self.context.environ
        self._keys = {
            "environment": self.environment.key,
            "api": Secret("ANTHROPIC_API_KEY", environ.get("ANTHROPIC_API_KEY", "").strip()),
        }
        self.agent_id = environ.get("ANTHROPIC_AGENT_ID", "").strip()
        self._claude = http_client(settings.anthropic_url)
        self._lifecycle = http_client(settings.tensorlake_url)
        token = environ.get(CLAUDE_ADMIN, "")
        self._admin = AdminClient(settings.anthropic_url, token) if self.context.offline and token else None
        token = environ.get(TENSORLAKE_ADMIN, "")
        self._idle_admin = AdminClient(settings.tensorlake_url, token) if self.context.offline and token else None

    async def __aenter__(self) -> Ground:
        return self

    async def __aexit__(self, *_: object) -> None:
        await to_its_end(self._end())

    async def _end(self) -> None:
        try:
            await self._clean()
        finally:
            await self._claude.aclose()
            await self._lifecycle.aclose()
            await self.context.aclose()

    # What is taken away again

    def owe(self, what: str, clean_up: CleanUp) -> None:
        self._ledger[what] = clean_up

    @property
    def owed(self) -> list[str]:
        """What is to be taken away still."""
        return list(self._ledger)

    async def _clean(self, since: int = 0) -> None:
        """The newest first; each is tried though another failed."""
        for what, clean_up in reversed(list(self._ledger.items())[since:]):
            try:
                await clean_up()
            except Exception as error:  # the edge: what is left is told
                self.left_over.append(f"{what} ({type(error).__name__})")
            del self._ledger[what]

    @contextlib.asynccontextmanager
    async def own_things(self) -> AsyncIterator[None]:
        """What is made inside the block is gone after it, but for the shared sandbox."""
        before = set(self._ledger)
        try:
            yield
        finally:
            shared = "" if self._shared is None else str(self._shared.name)
            kept = {name: entry for name, entry in self._ledger.items() if name in before or name == shared}
            own = {name: entry for name, entry in self._ledger.items() if name not in kept}
            self._ledger = {**kept, **own}
            await to_its_end(self._clean(since=len(kept)))

    async def once(self, look: Callable[[Ground], Awaitable[_Seen]]) -> _Seen:
        """What several checks read: looked at by the first of them. Where that failed, the next one tries again."""
        if look not in self._seen:
            self._seen[look] = await look(self)
        seen: _Seen = self._seen[look]
        return seen

    # The control plane, as plain requests: a check looks at statuses and fields that SDKs smooth over

    async def claude(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        key: str = "environment",
        token: str = "",
        beta: bool = True,
        version: str = VERSION,
        **params: Any,
    ) -> httpx2.Response:
        """One request with the key of that kind, or with `token`. Raises NotTried where there is none, or no answer
        comes."""
        headers = self.headers(token or self.key(key), version)
        if not beta:
            del headers["anthropic-beta"]
        return await _answered(self._claude, method, self.context.settings.anthropic_url + path, headers, body, params)

    def headers(self, key: str, version: str = VERSION) -> dict[str, str]:
        return {"authorization": f"Bearer {key}", "anthropic-version": version, "anthropic-beta": BETA}

    def key(self, kind: str) -> str:
        """Raises NotTried."""
        try:
            value = self._keys[kind].reveal()
        except SecretUnavailable as problem:
            raise NotTried(str(problem)) from None
        if not value:
            raise NotTried("it needs ANTHROPIC_API_KEY, to make sessions of its own")
        return value

    async def work(self, method: str, path: str, body: Mapping[str, Any] | None = None, **more: Any) -> httpx2.Response:
        return await self.claude(method, f"/v1/environments/{self.environment.id}/work{path}", body, **more)

    async def session(self, prompt: str = "", environment_id: str = "") -> str:
        """A new session's id, with the prompt as its first message if there is one; in the environment of the
        settings, or in another one of this run."""
        if not self.agent_id:
            raise NotTried("it needs ANTHROPIC_AGENT_ID, to make sessions of its own")
        await self._alone()
        wanted: dict[str, Any] = {
            **{"agent": self.agent_id, "environment_id": environment_id or self.environment.id, "title": "certify"},
            "metadata": self.mark(),
        }
        if prompt:
            wanted["initial_events"] = [_message(prompt)]
        answer = await self.claude("POST", "/v1/sessions", wanted, key="api")
        if answer.status_code >= 300:
            raise NotTried(f"a session could not be made: HTTP {answer.status_code}")
        session_id = names.canonical_session_id(str(answer.json()["id"]))
        self.owe(session_id, lambda: self.end_session(session_id))
        return session_id

    def mark(self) -> dict[str, str]:
        """Metadata by which the next certify knows what a killed one left."""
        return {_UNTIL: f"{self.context.now() + runs.DEAD_MAN:.0f}", _RUN: self.run}

    def is_over(self, metadata: Mapping[str, Any] | None) -> bool:
        """Whether it is the mark of a run that is dead."""
        mark = metadata or {}
        until = str(mark.get(_UNTIL, ""))
        return until.isdecimal() and self.is_dead(str(mark.get(_RUN, "")), int(until))

    def is_dead(self, run: str, until: float) -> bool:
        """Whether what that run made can be ended (`runs.is_dead`)."""
        return run != self.run and runs.is_dead(run, until, self.context.now(), self.runs_folder)

    async def _alone(self) -> None:
        """A check polls, and a poll claims whatever waits: nobody else may work on this environment."""
        stats = (await self.work("GET", "/stats")).json()
        if stats.get("workers_polling"):
            raise NotTried("somebody polls this environment: pause the functions, or name one of its own")
        waiting = (stats.get("depth") or 0) + (stats.get("pending") or 0)
        if waiting > sum(
            item["state"] == "queued" and self.session_of(item) in self._ledger for item in await self.items()
        ):
            raise NotTried("other sessions wait in this environment: name one of its own")

    async def items(self) -> list[dict[str, Any]]:
        """The queue, its items of this run among them: where the newest come first, no page from before it is read."""
        rows: list[dict[str, Any]] = []
        page = None
        for _ in range(_MOST_PAGES):
            answer = await self.work("GET", "", limit=100, page=page)
            if answer.status_code != 200:
                raise NotTried(f"the queue cannot be listed: HTTP {answer.status_code}")
            body = answer.json()
            rows += body["data"]
            page = body.get("next_page")
            times = [datetime.fromisoformat(item["created_at"]) for item in body["data"]]
            if page is None or (times and times[0] > times[-1] and times[-1] < self._began):
                break
        return rows

    async def live_item(self, session_id: str, patience: float = _PATIENCE) -> dict[str, Any] | None:
        """The session's item that is not stopped, waited for."""
        end = time.monotonic() + patience
        while True:
            for item in await self.items():
                if self.session_of(item) == session_id and item["state"] != "stopped":
                    return item
            if time.monotonic() > end:
                return None
            await asyncio.sleep(0.2)

    async def offered(self) -> dict[str, Any]:
        """The item of a new session, which no poll has handed out."""
        session_id = await self.session()
        item = await self.live_item(session_id, 5.0)
        if item is None:
            await self.say(session_id, "Say ok.")
            item = await self.live_item(session_id)
        if item is None:
            raise NotTried("the session was not queued")
        return item

    async def claimed(self) -> dict[str, Any]:
        """The item of a new session, as a poll handed it out."""
        return await self.claim(self.session_of(await self.offered()))

    async def claim(self, session_id: str) -> dict[str, Any]:
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            if session_id in self._handed_out:
                return self._handed_out.pop(session_id)
            if await self.polled() is None:
                await asyncio.sleep(0.2)
        raise NotTried("no poll handed out the session's item")

    async def polled(self, reclaim_seconds: float | None = None) -> dict[str, Any] | None:
        """What a poll hands out of this run, kept for the one that claims it. Without a window it is the product's.
        Raises NotTried for an item of somebody else."""
        window = self.context.settings.times.reclaim if reclaim_seconds is None else reclaim_seconds
        answer = await self.work("GET", "/poll", reclaim_older_than_ms=int(window * 1000))
        item = answer.json() if answer.status_code == 200 else None
        if not isinstance(item, dict):
            return None
        if self.session_of(item) not in self._ledger:
            raise NotTried("a poll handed out another session's item: it is offered again after the reclaim window")
        self._handed_out[self.session_of(item)] = item
        return item

    async def started(self) -> dict[str, Any]:
        """A claimed item that is acknowledged."""
        item = await self.claimed()
        answer = await self.work("POST", f"/{item['id']}/ack")
        if answer.status_code != 200:
            raise NotTried(f"the item could not be acknowledged: HTTP {answer.status_code}")
        return item

    async def item(self, work_id: str) -> dict[str, Any]:
        """The item now; only an API key may ask."""
        answer = await self.work("GET", f"/{work_id}", key="api")
        if answer.status_code != 200:
            raise NotTried(f"the item could not be read: HTTP {answer.status_code}")
        return dict(answer.json())

    async def say(self, session_id: str, text: str) -> None:
        await self.claude("POST", f"/v1/sessions/{session_id}/events", {"events": [_message(text)]}, key="api")

    async def pass_time(self, work_id: str, seconds: float) -> None:
        """Wait; the offline platform lets time pass for the one item at once."""
        if self._admin is None:
            await asyncio.sleep(seconds)
        else:
            await asyncio.to_thread(self._admin.post, f"work/{work_id}/age", {"seconds": seconds})

    @staticmethod
    def session_of(item: Mapping[str, Any]) -> str:
        return names.canonical_session_id(str(item["data"]["id"]))

    async def _stop_items(self, session_id: str) -> None:
        for item in await self.items():
            if self.session_of(item) == session_id and item["state"] != "stopped":
                await self.work("POST", f"/{item['id']}/stop", {"force": True})

    async def end_session(self, session_id: str) -> None:
        for _ in range(_END_TRIES):
            await self._stop_items(session_id)
            answer = await self.claude("DELETE", f"/v1/sessions/{session_id}", key="api")
            if answer.status_code < 300 or answer.status_code == 404:
                await self._stop_items(session_id)  # a stop may have queued it anew
                return
            interrupt = {"events": [{"type": "user.interrupt"}]}
            await self.claude("POST", f"/v1/sessions/{session_id}/events", interrupt, key="api")
            await asyncio.sleep(0.5)
        raise NotTried(session_id)

    # The sandboxes, by the port that the product itself uses, and as plain requests

    @property
    def host(self) -> SandboxHost:
        return unbroken(self.context.service.host)

    @property
    def daemon_port(self) -> int:
        """Offline, one port has all: a program inside that knows it asks there as it would ask a daemon."""
        port = urlsplit(self.context.settings.tensorlake_url).port
        return port if self.context.offline and port else DAEMON_PORT

    def new_name(self) -> str:
        """One that nobody has, and that a tick knows as a leftover once certify must be over."""
        dead_man = int(self.context.now() + runs.DEAD_MAN)
        return names.race_sandbox_name(
            self.context.settings.prefix, self.environment.id, self.run, next(self._numbers), dead_man
        )

    def spec(self, name: str, **changes: Any) -> SandboxSpec:
        """One processor and the least memory, as it is paid by the second."""
        sizes = {"cpus": 1.0, "memory_mb": 1024, "timeout_seconds": _TIMEOUT_SECONDS}
        wanted = {**sizes, "egress": self.environment.egress, **changes}
        return SandboxSpec(name=name, image=self.environment.image, **wanted)

    async def sandbox(self, **changes: Any) -> SandboxRecord:
        name = self.new_name()
        self.owe(name, lambda: self.end_sandbox(name))
        began = time.monotonic()
        made = await self.host.create(self.spec(name, **changes))
        if not isinstance(made, Created):
            raise NotTried(f"a sandbox could not be made: {getattr(made, 'reason', 'its name is taken')}")
        self.create_seconds.append(time.monotonic() - began)
        return made.sandbox

    @property
    def has_shared(self) -> bool:
        return self._shared is not None

    async def shared(self) -> SandboxRecord:
        """A running sandbox that several checks look at, one after the other."""
        if self._shared is not None:
            found = await self.host.find(self._shared.id)
            if isinstance(found, SandboxRecord) and found.status is SandboxStatus.RUNNING:
                return self._shared
            asleep = isinstance(found, SandboxRecord) and found.status is SandboxStatus.SUSPENDED
            if asleep and await self.host.resume(self._shared.id) is None:
                return self._shared
            await self.end_sandbox(str(self._shared.name))
        self._shared = await self.sandbox()
        return self._shared

    @property
    def hurries(self) -> bool:
        """Whether `leave_alone` lets time pass, and does not wait for it."""
        return self._idle_admin is not None

    async def leave_alone(self, sandbox: SandboxRecord, seconds: float) -> None:
        """No request for so long; the offline platform lets that time pass for the one sandbox."""
        if self._idle_admin is None:
            await asyncio.sleep(seconds)
        else:
            await asyncio.to_thread(self._idle_admin.post, f"sandboxes/{sandbox.id}/age", {"seconds": seconds})

    async def end_sandbox(self, name: str) -> None:
        """Tried again, since a sandbox costs money. Raises NotTried where it may be left."""
        for attempt in range(_END_TRIES):
            if attempt:
                await asyncio.sleep(1.0)
            found = await self.host.find(name)
            if isinstance(found, Absent):
                return
            if isinstance(found, SandboxRecord):
                if found.status is SandboxStatus.TERMINATED:
                    return
                ended = await self.host.terminate(found.id)
                if ended is None or isinstance(ended, Absent):
                    return
        raise NotTried(name)

    async def suspended(self) -> SandboxRecord:
        """The shared sandbox, asleep."""
        sandbox = await self.shared()
        refusal = await self.host.suspend(sandbox.id)
        if refusal is not None:
            raise NotTried(f"it could not be suspended: {getattr(refusal, 'reason', 'it is gone')}")
        return sandbox

    async def lifecycle(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, **params: Any
    ) -> httpx2.Response:
        """A plain request to the lifecycle plane (docs/wire/tensorlake.md#21-which-host-goes-where)."""
        settings = self.context.settings
        headers = {"authorization": f"Bearer {settings.tensorlake_key.reveal()}"}
        return await _answered(
            self._lifecycle, method, lifecycle_base(settings.tensorlake_url) + path, headers, body, params
        )

    async def daemon(self, sandbox: SandboxRecord, method: str, route: str, **params: Any) -> httpx2.Response:
        """A plain request to a running sandbox's daemon (docs/wire/tensorlake.md#22-data-plane-base)."""
        settings = self.context.settings
        base = (await self.lifecycle("GET", f"/sandboxes/{sandbox.id}")).json().get("sandbox_url")
        if not base:
            raise NotTried("its record does not say where it is reached")
        key = settings.tensorlake_key.reveal()
        headers = {"authorization": f"Bearer {key}", "x-tensorlake-sandbox-id": sandbox.id}
        return await _answered(self._lifecycle, method, base + route, headers, None, params)

    async def port(self, sandbox: SandboxRecord, port: int) -> httpx2.Response:
        """A plain request to an exposed port, without a key (docs/wire/tensorlake.md#510-ports)."""
        if self.context.offline:  # where names below localhost may not resolve
            url = f"{self.context.settings.tensorlake_url}/_ports/{sandbox.id}/{port}/"
        else:
            found = await self.lifecycle("GET", f"/sandboxes/{sandbox.id}")
            ingress = urlsplit(str(found.json().get("ingress_endpoint") or ""))
            if not ingress.hostname:
                raise NotTried("its record does not say where its ports are reached")
            url = f"{ingress.scheme}://{port}-{sandbox.id}.{ingress.netloc}/"
        return await _answered(self._lifecycle, "GET", url, {}, None, {})


def lifecycle_base(api_url: str) -> str:
    """Where the lifecycle plane of an API address is (docs/wire/tensorlake.md#21-which-host-goes-where)."""
    parts = urlsplit(api_url.rstrip("/"))
    if parts.hostname in LOOPBACK:
        return f"{api_url.rstrip('/')}/v1/namespaces/default"
    return urlunsplit(parts._replace(netloc=parts.netloc.replace("api.", "sandbox.", 1)))


def _message(text: str) -> dict[str, Any]:
    return {"type": "user.message", "content": [{"type": "text", "text": text}]}


async def _answered(
    client: httpx2.AsyncClient,
    method: str,
    url: str,
    headers: dict[str, str],
    body: Mapping[str, Any] | None,
    params: Mapping[str, Any],
) -> httpx2.Response:
    import httpx2

    content = b"" if body is None else json.dumps(body).encode()
    call = client.request(
        method,
        url,
        headers={**headers, "content-type": "application/json"},
        content=content,
        params={name: value for name, value in params.items() if value is not None},
        timeout=60.0,
    )
    try:
        return await (call if method == "GET" else to_its_end(call))
    except httpx2.HTTPError as error:
        raise NotTried(f"no answer ({type(error).__name__})") from None
