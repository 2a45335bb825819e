"""Faults of the offline services, for as long as a block of a test lasts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from infra.local.admin_client import AdminClient


@contextlib.contextmanager
def fault(admin: AdminClient, rule: Mapping[str, object]) -> Iterator[str]:
    """This fault rule; its id."""
    rule_id: str = admin.post("faults", rule)["data"][0]["id"]
    try:
        yield rule_id
    finally:
        admin.delete(f"faults/{rule_id}")
