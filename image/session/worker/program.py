"""One run of the worker, in the order of the claim protocol (docs/claim-protocol.md#step-3-hand-over):

claim -> identity -> lock (or the claim is passed to its holder) -> `ready` -> lease -> SDK -> serve -> end.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from image.session.claim import STATE_DIRECTORY, STATE_VARIABLE, Claim, ClaimError, Ended, Exit, Word
from image.session.worker import identity
from image.session.worker.claim_registry import ClaimRegistry
from image.session.worker.claim_socket import ClaimSocket
from image.session.worker.credentials import token_of
from image.session.worker.lock import Lock, take_lock
from image.session.worker.output import NoticeWriter, Redactor, configure_logging
from image.session.worker.shutdown import Shutdown

log = logging.getLogger(__name__)


def run(text: str, *, archive: str, open_points: Sequence[str] = ()) -> NoReturn:
    """Serves the claim in `text` and ends the process with its `Exit`."""
    os.umask(0o022)
    redactor = Redactor()
    configure_logging(redactor)
    for point in open_points:
        log.warning("hiding.incomplete %s", point)
    try:
        claim = Claim.from_json(text)
    except ClaimError as error:
        notices = NoticeWriter("", archive)
        _leave(notices, redactor, Ended(Exit.BAD_CLAIM, str(error)))
    notices = NoticeWriter(claim.work_id, archive)
    lock: Lock | None = None
    try:
        redactor.add(claim.secret)
        state = _state_directory()
        lock = Lock(state)
        ended = _work(claim, state, lock, notices, redactor)
    except Ended as end:
        ended = end
    except BaseException as error:  # the process's edge: whatever it was becomes an exit status and one line
        log.exception("worker.failed")
        ended = Ended(Exit.FAILED, f"{type(error).__name__}: {error}")
    if lock is not None:
        lock.free()
    _leave(notices, redactor, ended)


def _work(claim: Claim, state: Path, lock: Lock, notices: NoticeWriter, redactor: Redactor) -> Ended:
    redactor.add(token_of(claim.secret))
    redactor.add(claim.capability_token)
    if not notices.sdk:
        raise Ended(Exit.FAILED, "the anthropic package is not installed here")
    identity.settle(state, claim.session_id)
    stop = Shutdown(last_resort=lambda status, detail: _leave(notices, redactor, Ended(status, detail)))
    stop.listen(claim.lifetime)
    os.chdir(state)
    take_lock(claim, lock, notices, stop)

    def take(newer: Claim) -> None:
        redactor.add(newer.secret)
        redactor.add(token_of(newer.secret))
        redactor.add(newer.capability_token)
        stop.nudge()

    registry = ClaimRegistry(claim, on_claim=take)
    claim_socket = ClaimSocket(state, registry)
    try:
        os.chdir(_workdir(claim))
        notices.say(Word.READY)
        registry.announced(claim.gate)
        return _hold(claim, registry, stop, notices)
    finally:
        claim_socket.close()


def _hold(claim: Claim, registry: ClaimRegistry, stop: Shutdown, notices: NoticeWriter) -> Ended:
    """From `ready` on. What it imports is too slow to be imported before."""
    from image.session.worker.http_client import WorkItemClient
    from image.session.worker.lease import Lease
    from image.session.worker.lease_acquisition import LeaseKeeper, acquire_lease

    try:
        calls = WorkItemClient(claim.base_url, claim.environment_id, claim.work_id)
    except ValueError as error:
        raise Ended(Exit.BAD_CLAIM, str(error)) from None
    lease = Lease()
    secret = acquire_lease(lease, calls, registry, stop)
    notices.say(Word.LEASED)
    lease_keeper = LeaseKeeper(lease, calls, secret)
    from image.session.worker.sdk_worker import serve

    lease_keeper.hand_over()
    calls.close()
    stop.check()
    return serve(claim, secret, lease, stop)


def _state_directory() -> Path:
    """Where lock, socket and identity live. The tools need not know."""
    state = Path(os.environ.pop(STATE_VARIABLE, STATE_DIRECTORY)).absolute()
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Ended(Exit.FAILED, f"no state directory at {state}: {error.strerror}") from None
    if not os.access(state, os.W_OK | os.X_OK):
        raise Ended(Exit.FAILED, f"the state directory {state} belongs to another user")
    return state


def _workdir(claim: Claim) -> Path:
    workdir = Path(claim.workdir).absolute()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
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
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ended.exit_status)
