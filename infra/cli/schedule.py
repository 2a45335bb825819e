"""The pace of a schedule, and what a person should read of a tick: one implementation, which the functions have."""

from __future__ import annotations

from functions.server.scheduler import EVERY_SECONDS, remarks

__all__ = ["EVERY_SECONDS", "remarks"]
