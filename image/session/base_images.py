"""Which base image is meant by a tag: requirements/base-images.lock, a line `name:tag@sha256:...` each.

A tag moves, and an image that is built anew then differs without a word. `make pin-images` writes the lock
(infra/pin_images.py); without a line of its own a tag stays one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

LOCK: Final = Path(__file__).resolve().parents[2] / "requirements" / "base-images.lock"


def pinned(reference: str) -> str:
    """The reference by its digest where the lock has one, else as it is."""
    try:
        lines = LOCK.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return reference
    return next((line for line in lines if line.startswith(f"{reference}@sha256:")), reference)
