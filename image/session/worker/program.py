"""One run of the worker, in the order of the claim protocol (docs/claim-protocol.md#step-3-hand-over):

claim -> stop listener -> identity -> lock (or the claim is passed to its holder) -> first answered heartbeat ->
`ready` -> lease -> SDK -> serve -> end.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from image.session.claim import STATE_DIRECTORY, STATE_VARIABLE, Claim, ClaimError, Ended, Exit, Word
from image.session.worker import identity
from image.session.worker.call_notes import CallNotes
from image.session.worker.claim_registry import ClaimRegistry
from image.session.worker.claim_socket import ClaimSocket
from image.session.worker.credentials import token_of
from image.session.worker.lock import Lock, take_lock
from image.session.worker.output import NoticeWriter, Redactor, WorkerOutputs, configure_logging
from image.session.worker.setup_mark import SetupMark
from image.session.worker.shutdown import Shutdown
from image.session.worker.state_directory import StateDirectory

log = logging.getLogger(__name__)


def run(text: str, *, archive: str, open_points: Sequence[str] = (), private: socket.socket | None = None) -> NoReturn:
    """Serves the claim in `text` and ends the process with its `Exit`. `private`: who runs the operator's private tools
    (tool_processes.py)."""
    os.umask(0o022)
    redactor = Redactor()
    outputs = WorkerOutputs()
    configure_logging(redactor, outputs.log)
    for point in open_points:
        log.warning("hiding.incomplete %s", point)
    try:
        claim = Claim.from_json(text)
    except ClaimError as error:
        notices = NoticeWriter("", archive, outputs.notices)
        _leave(notices, redactor, Ended(Exit.BAD_CLAIM, str(error)))
    notices = NoticeWriter(claim.work_id, archive, outputs.notices, claim.nonce)
    lock: Lock | None = None
    try:
        redactor.add(claim.secret)
        # Before anything that can block: whoever wants this worker gone must be heard from here on.
        stop = Shutdown(last_resort=lambda status, detail: _leave(notices, redactor, Ended(status, detail)))
        stop.listen(claim.lifetime, claim.start_limit)
        state = StateDirectory(os.path.abspath(os.environ.pop(STATE_VARIABLE, STATE_DIRECTORY)))
        lock = Lock(state)
        if claim.prepares:
            from image.session.worker.preparation import prepare

            os.chdir(_workdir(claim))
            ended = prepare(claim, state, lock, notices, redactor, stop)
        else:
            ended = _work(claim, state, lock, notices, redactor, stop, archive, private)
    except Ended as end:
        ended = end
    except BaseException as error:  # the process's edge: whatever it was becomes an exit status and one line
        log.exception("worker.failed")
        ended = Ended(Exit.FAILED, f"{type(error).__name__}: {error}")
    if lock is not None:
        lock.free()
    _leave(notices, redactor, ended)


def _work(
    claim: Claim,
    state: StateDirectory,
    lock: Lock,
    notices: NoticeWriter,
    redactor: Redactor,
    stop: Shutdown,
    archive: str,
    private: socket.socket | None,
) -> Ended:
    redactor.add(token_of(claim.secret))
    for secret in (claim.tool_secrets or {}).values():
        redactor.add(secret)
    redactor.add(claim.capability_token)
    if not notices.sdk:
        raise Ended(Exit.FAILED, "the anthropic package is not installed here")
    identity.settle(state, claim.session_id)
    state.enter()
    take_lock(claim, lock, notices, stop)

    def take(newer: Claim) -> None:
        redactor.add(newer.secret)
        redactor.add(token_of(newer.secret))
        redactor.add(newer.capability_token)
        stop.nudge()

    registry = ClaimRegistry(claim, on_claim=take)
    claim_socket = ClaimSocket(state, registry, claim.session_key)
    try:
        notes = CallNotes(state, claim.session_key)
        os.chdir(_workdir(claim))
        return _hold(claim, registry, notes, stop, notices, state, redactor, archive, private)
    finally:
        claim_socket.close()


def _hold(
    claim: Claim,
    registry: ClaimRegistry,
    notes: CallNotes,
    stop: Shutdown,
    notices: NoticeWriter,
    state: StateDirectory,
    redactor: Redactor,
    archive: str,
    private: socket.socket | None,
) -> Ended:
    """With the lock held. What it imports is too slow to be imported before the lock is."""
    from image.session.worker.http_client import WorkItemClient
    from image.session.worker.lease import Lease
    from image.session.worker.lease_acquisition import LeaseKeeper, acquire_lease

    try:
        calls = WorkItemClient(claim.base_url, claim.environment_id, claim.work_id)
    except ValueError as error:
        raise Ended(Exit.BAD_CLAIM, str(error)) from None
    lease = Lease()
    remarks = [each for each in (notes.last_death, SetupMark.read(state).remark) if each]
    announcer = _Announcer(claim, registry, "; ".join(remarks), stop, notices)
    secret = acquire_lease(lease, calls, registry, stop, announcer, reach=claim.reach)
    notices.say(Word.LEASED)
    lease_keeper = LeaseKeeper(lease, calls, secret)
    gc.disable()  # what the SDK is made of stays: to collect among it is a sixth of its import
    from image.session.worker.new_workspace import NewWorkspace
    from image.session.worker.sdk_worker import serve
    from image.session.worker.session_setup import setup_of
    from image.session.worker.tool_processes import OperatorTools

    gc.freeze()
    gc.enable()
    setup = setup_of(claim, state, redactor, lambda said: notices.say(Word.SETUP, redactor.apply(said)))
    lease_keeper.hand_over()
    calls.close()
    stop.check()
    workspace = NewWorkspace(state, claim.workdir)
    return serve(claim, secret, lease, notes, workspace, stop, setup, OperatorTools(archive, private))


class _Announcer:
    """Tells the dispatcher, and the processes that pass their claims on, how the first heartbeats fare."""

    def __init__(
        self, claim: Claim, registry: ClaimRegistry, remark: str, stop: Shutdown, notices: NoticeWriter
    ) -> None:
        """`remark` goes with `ready`."""
        self._claim = claim
        self._registry = registry
        self._remark = remark
        self._stop = stop
        self._notices = notices

    def ready(self) -> None:
        self._stop.started()
        # Before anybody says it on our behalf: who gives this process up believes its own output alone.
        self._notices.say(Word.READY, self._remark)
        # The dispatcher acks once it has read this, so the time for that ack begins here.
        self._registry.announced(self._claim.gate)

    def waiting(self, reason: str) -> None:
        self._notices.say(Word.WAITING, f"the service does not answer: {reason}")


def _workdir(claim: Claim) -> str:
    workdir = os.path.abspath(claim.workdir)
    try:
        os.makedirs(workdir, exist_ok=True)
    except OSError as error:
        raise Ended(Exit.FAILED, f"no workdir at {workdir}: {error.strerror}") from None
    return workdir


_leaving = threading.Lock()


def _leave(notices: NoticeWriter, redactor: Redactor, ended: Ended) -> NoReturn:
    """Says the last word and is gone: an interpreter's own way out would wait for threads (and for 0.4 s of an SDK's
    clean-up). Whoever comes first decides, so that nothing is said twice."""
    _leaving.acquire()
    notices.ended(ended.exit_status, redactor.apply(ended.detail))
    log.info("worker.ended exit=%s detail=%s", ended.exit_status.name, ended.detail)
    sys.stderr.flush()
    os._exit(ended.exit_status)
