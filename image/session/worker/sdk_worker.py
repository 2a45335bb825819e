"""The work item is served by Anthropic's own EnvironmentWorker; this module starts it, with a shell of ours and a
guard around each call, and reads off how it ended, which its return does not say
(docs/wire/anthropic.md#44-when-it-ends)."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import anyio
import httpx2
from anthropic import DEFAULT_CONNECTION_LIMITS, AsyncAnthropic, DefaultAsyncHttpxClient
from anthropic.lib.environments import EnvironmentWorker
from anthropic.lib.tools import agent_toolset

from image.session.claim import Claim, Ended, Exit
from image.session.worker.call_notes import CallNotes
from image.session.worker.credentials import token_of
from image.session.worker.fork_tool import with_fork
from image.session.worker.history import read_again
from image.session.worker.http_client import proxy_for
from image.session.worker.lease import Lease, Verdict
from image.session.worker.lease_transport import LeaseTransport
from image.session.worker.memory_stores import set_aside
from image.session.worker.new_workspace import NewWorkspace
from image.session.worker.operator_tools import with_operator_tools
from image.session.worker.session_setup import SessionSetup
from image.session.worker.shell import Shell
from image.session.worker.shutdown import Shutdown
from image.session.worker.spans import Spans
from image.session.worker.tool_calls import guarded
from image.session.worker.tool_processes import OperatorTools, ToolSettings

# Seconds. The SDK's own read time-out of ten minutes, three times over, outlives every lease
# (docs/wire/anthropic.md#t22).
_TIMEOUT: Final = httpx2.Timeout(30.0, connect=5.0)
_RETRIES: Final = 2
_LOOK: Final = 1.0  # seconds between two looks at the lease while a call waits for the set-up
_STOPPED: Final = "the command was ended: the session's work was stopped"
_INTERRUPTED: Final = "the command was ended: its turn was interrupted"

log = logging.getLogger(__name__)


def serve(
    claim: Claim,
    secret: str,
    lease: Lease,
    notes: CallNotes,
    workspace: NewWorkspace,
    stop: Shutdown,
    setup: SessionSetup | None = None,
    own: OperatorTools | None = None,
) -> Ended:
    """Serves until the session is idle, the lease is gone, or somebody asks to stop. The event loop is left as it
    is: the process ends right after, and closing the loop could wait for threads.

    setup: what is done beside the SDK's own preparations, and waited for by the first call."""
    agent_toolset.BashSession = Shell  # type: ignore[misc] # the SDK's tool looks its shell up there
    spans = Spans(claim)
    serving = _serve(claim, secret, lease, notes, workspace, stop, setup, own, spans)
    ended = asyncio.new_event_loop().run_until_complete(serving)
    spans.close(ended.exit_status.name.lower())
    return ended


async def _serve(
    claim: Claim,
    secret: str,
    lease: Lease,
    notes: CallNotes,
    workspace: NewWorkspace,
    stop: Shutdown,
    setup: SessionSetup | None,
    own: OperatorTools | None,
    spans: Spans,
) -> Ended:
    watching: set[asyncio.Task[None]] = set()

    def on_session(body: bytes) -> None:
        set_aside(body, claim.workdir)
        if setup is not None:
            setup.begin(body)
            if not watching:
                watching.add(asyncio.create_task(_watched(setup, spans)))

    async def not_ready() -> str:
        """Waits for the set-up; why it leaves no tool to run."""
        if setup is None:
            workspace.settle()
            return ""
        while not await setup.over(_LOOK):
            if transport.verdict in (Verdict.LOST, Verdict.STOPPED, Verdict.REFUSED):
                setup.abort("the session's work was stopped or given to another worker")
        Shell.variables = setup.variables
        workspace.settle()
        return setup.failure

    transport = LeaseTransport(
        httpx2.AsyncHTTPTransport(limits=DEFAULT_CONNECTION_LIMITS, proxy=proxy_for(claim.base_url)),
        lease,
        environment_id=claim.environment_id,
        work_id=claim.work_id,
        session_id=claim.session_id,
        on_session=on_session,
        on_stopped=lambda: Shell.end(_STOPPED),
        on_interrupt=lambda: Shell.break_off(_INTERRUPTED),
        on_history=workspace.look if workspace.in_question else None,
    )
    client = AsyncAnthropic(
        auth_token=token_of(secret),
        base_url=claim.base_url,
        http_client=DefaultAsyncHttpxClient(transport=transport),
        timeout=_TIMEOUT,
        max_retries=_RETRIES,
    )
    tools = with_fork(claim.fork_url, claim.capability_token)
    if own is not None:
        tools = with_operator_tools(tools, ToolSettings.of(claim), own, lambda: Shell.variables)
    worker = EnvironmentWorker(client, tools=tools, workdir=claim.workdir, max_idle=claim.max_idle)
    loop = asyncio.get_running_loop()
    # A scope, not the task, is cancelled: that respects what the SDK shields, the tool in flight before all.
    with anyio.CancelScope() as scope, guarded(notes, spans, not_ready), read_again():

        def wind_down() -> None:
            if setup is not None:
                setup.abort("the worker was asked to end")
            scope.cancel()

        stop.on_request(lambda: loop.call_soon_threadsafe(wind_down))

        def ordered() -> None:
            Shell.end(_STOPPED)
            # An SDK that is ended before its first heartbeat leaves the item to lapse; that heartbeat tells it as well.
            if transport.verdict is not None:
                stop.request(Exit.STOPPED, _STOPPED)

        stop.on_order(lambda: loop.call_soon_threadsafe(ordered))
        try:
            await worker.handle_item(
                work_id=claim.work_id,
                environment_id=claim.environment_id,
                session_id=claim.session_id,
                work_secret=secret,
            )
        except Exception as error:
            causes = _causes(error)
            log.exception("serving.failed")
            return _end(transport, stop, causes)
        finally:
            if setup is not None:
                with anyio.CancelScope(shield=True):
                    await setup.aclose()
                    await asyncio.gather(*watching)
    ended = _end(transport, stop, None)
    if ended.exit_status is Exit.SERVED and setup is not None and setup.reason:
        return Ended(Exit.SETUP_FAILED, setup.reason)
    return ended


async def _watched(setup: SessionSetup, spans: Spans) -> None:
    with spans.span("set-up", {}) as told:
        while not await setup.over(_LOOK):
            pass
        if setup.failure:
            told["error.type"] = "setup_failed"


def _end(transport: LeaseTransport, stop: Shutdown, failure: str | None) -> Ended:
    """How it ended, by what weighs most: who has the item now, then who asked to stop, then what went wrong."""
    match transport.verdict:
        case Verdict.LOST:
            return Ended(Exit.LEASE_LOST, "a heartbeat met another state of the item")
        case Verdict.STOPPED if not (stop.reason or failure):
            return Ended(Exit.STOPPED, "the item was stopped")
        case Verdict.REFUSED:
            return Ended(Exit.REFUSED, "the service refuses the work item's credential")
    if stop.reason is not None:
        return Ended(*stop.reason)
    if failure is not None:
        return Ended(Exit.FAILED, failure)
    if transport.rejected is not None:
        return Ended(Exit.FAILED, f"a heartbeat was answered {transport.rejected}")
    if transport.refused is not None:
        return Ended(Exit.REFUSED, f"the session's events answered {transport.refused}")
    if not transport.stop_sent:
        # The SDK leaves an item alone only if it takes its lease for lost: here, after a whole TTL unanswered.
        return Ended(Exit.LEASE_LOST, "no heartbeat was answered for a whole lease")
    return Ended(Exit.SERVED)


def _causes(error: BaseException) -> str:
    """The failures inside an exception group, whose own text says nothing."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_causes(inner) for inner in error.exceptions)
    return f"{type(error).__name__}: {error}"
