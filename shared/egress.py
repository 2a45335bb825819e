"""What a sandbox may reach. Apart from ports.py, of which a cold start needs nothing else."""

from __future__ import annotations

from typing import NamedTuple


class EgressPolicy(NamedTuple):
    """What a sandbox may reach: everything but `deny`, or with a non-empty `allow` nothing but that.

    `internet` false and an empty `allow` block everything; with `allow` it only takes away the resolver, so that host
    names in `allow` no longer work (the SDK's NetworkConfig).
    """

    internet: bool = True
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
