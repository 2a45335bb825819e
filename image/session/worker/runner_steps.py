"""Ours around the private steps of the SDK's session runner."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from anthropic.lib.tools._beta_session_runner import SessionToolRunner

log = logging.getLogger(__name__)


@contextlib.contextmanager
def wrapped(step: str, wrap: Callable[[Any], Any], lacking: str) -> Iterator[None]:
    """Within, the runner takes what `wrap` makes of its own `step`. One that has none serves as it is, and the log
    says `lacking`; that its SDK has another version than the functions' one is reported, too."""
    own: Any = getattr(SessionToolRunner, step, None)
    if own is None:
        log.warning("%s: this SDK's runner has no %s", lacking, step)
        yield
        return
    setattr(SessionToolRunner, step, wrap(own))
    try:
        yield
    finally:
        setattr(SessionToolRunner, step, own)
