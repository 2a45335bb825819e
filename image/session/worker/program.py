"""One run of the worker, in the order of the claim protocol (design, step 3):

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

from image.session.claim import STATE_DIRECTORY, STATE_VARIABLE, Claim, ClaimError, Exit, Word
from image.session.worker import entry, identity
from image.session.worker.desk import Desk
from image.session.worker.ending import Ended
from image.session.worker.passing import Counter
from image.session.worker.stopping import Stop
from image.session.worker.tokens import token_of
from image.session.worker.voice import Masks, Voice, configure_logging

log = logging.getLogger(__name__)


def run(text: str, *, archive: str, open_points: Sequence[str] = ()) -> NoReturn:
    """Serves the claim in `text` and ends the process with its `Exit`."""
    os.umask(0o022)
    masks = Masks()
    configure_logging(masks)
    for point in open_points:
        log.warning("hiding.incomplete %s", point)
    try:
        claim = Claim.from_json(text)
    except ClaimError as error:
        voice = Voice("", archive)
        _leave(voice, masks, Ended(Exit.BAD_CLAIM, str(error)))
    voice = Voice(claim.work_id, archive)
    lock: entry.Lock | None = None
    try:
        masks.add(claim.secret)
        state = _state_directory()
        lock = entry.Lock(state)
        ended = _work(claim, state, lock, voice, masks)
    except Ended as end:
        ended = end
    except BaseException as error:  # the process's edge: whatever it was becomes an exit status and one line
        log.exception("worker.failed")
        ended = Ended(Exit.FAILED, f"{type(error).__name__}: {error}")
    if lock is not None:
        lock.free()
    _leave(voice, masks, ended)


def _work(claim: Claim, state: Path, lock: entry.Lock, voice: Voice, masks: Masks) -> Ended:
    masks.add(token_of(claim.secret))
    masks.add(claim.capability_token)
    if not voice.sdk:
        raise Ended(Exit.FAILED, "the anthropic package is not installed here")
    identity.settle(state, claim.session_id)
    stop = Stop(last_resort=lambda status, detail: _leave(voice, masks, Ended(status, detail)))
    stop.listen(claim.lifetime)
    os.chdir(state)
    entry.enter(claim, lock, voice, stop)

    def take(newer: Claim) -> None:
        masks.add(newer.secret)
        masks.add(token_of(newer.secret))
        masks.add(newer.capability_token)
        stop.nudge()

    desk = Desk(claim, on_claim=take)
    counter = Counter(state, desk)
    try:
        os.chdir(_workdir(claim))
        voice.say(Word.READY)
        desk.announced(claim.gate)
        return _hold(claim, desk, stop, voice)
    finally:
        counter.close()


def _hold(claim: Claim, desk: Desk, stop: Stop, voice: Voice) -> Ended:
    """From `ready` on. What it imports is too slow to be imported before."""
    from image.session.worker.calls import Calls
    from image.session.worker.gate import Keeper, pass_gate
    from image.session.worker.lease import Lease

    try:
        calls = Calls(claim.base_url, claim.environment_id, claim.work_id)
    except ValueError as error:
        raise Ended(Exit.BAD_CLAIM, str(error)) from None
    lease = Lease()
    secret = pass_gate(lease, calls, desk, stop)
    voice.say(Word.LEASED)
    keeper = Keeper(lease, calls, secret)
    from image.session.worker.serving import serve

    keeper.hand_over()
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


def _leave(voice: Voice, masks: Masks, ended: Ended) -> NoReturn:
    """Says the last word and is gone: an interpreter's own way out would wait for threads (and for 0.4 s of an SDK's
    clean-up). Whoever comes first decides, so that nothing is said twice."""
    _leaving.acquire()
    voice.ended(ended.exit_status, masks.apply(ended.detail))
    log.info("worker.ended exit=%s detail=%s", ended.exit_status.name, ended.detail)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ended.exit_status)
