"""Assumptions about the work queue and sessions (docs/wire/anthropic.md): those that cost a turn of the model first."""

from __future__ import annotations

from typing import Final

from infra.cli.certify import answer_checks, claim_checks, key_checks, lease_checks, stream_checks, turn_checks

CHECKS: Final = (
    *turn_checks.CHECKS,
    *lease_checks.CHECKS,
    *stream_checks.CHECKS,
    *claim_checks.CHECKS,
    *key_checks.CHECKS,
    *answer_checks.CHECKS,
)
