"""Network policies for two names that are there to try them (docs/wire/tensorlake.md#51-create).

Sandboxes share this machine's network, so a policy holds nothing back in earnest. It decides what its sandbox's hosts
file says of `TRIAL_HOSTS`: this machine, or nowhere. Not at the level without isolation, whose sandboxes have no such
file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from infra.local.tensorlake import trees
from infra.local.tensorlake.box import Box
from infra.local.tensorlake.inside.files import write_atomically
from infra.local.tensorlake.records import NetworkPolicy
from infra.local.tensorlake.settings import TensorlakeSettings

TRIAL_HOSTS: Final = ("trial.one.test", "trial.two.test")
"""In domains of their own, so that `*.one.test` opens the first alone. Nobody else has such names (RFC 6761)."""
_HERE: Final = "127.0.0.1"
_NOWHERE: Final = "255.255.255.255"
"""A connection to it fails at once, and no resolver is asked."""
_HOSTS: Final = "/etc/hosts"


def enforce(box: Box, policy: NetworkPolicy | None, settings: TensorlakeSettings) -> None:
    """What is inside sees it at once."""
    if not box.level.isolated:
        return
    file = trees.within(box.root, _HOSTS)
    own = file.read_text(errors="surrogateescape").splitlines() if file.is_file() else []
    lines = [line for line in own if not line.endswith(TRIAL_HOSTS)]
    lines += [f"{_HERE if is_open(host, policy, settings) else _NOWHERE} {host}" for host in TRIAL_HOSTS]
    if lines != own:
        write_atomically(str(file), iter(["".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")]))


def is_open(host: str, policy: NetworkPolicy | None, settings: TensorlakeSettings) -> bool:
    """docs/wire/tensorlake.md#51-create: without a list everything, with one its names alone. Without internet access
    no name resolves."""
    if policy is None or not settings.egress_enforced:
        return True
    if not policy.allow_internet_access or _is_listed(host, policy.deny_out, settings):
        return False
    return not policy.allow_out or _is_listed(host, policy.allow_out, settings)


def _is_listed(host: str, entries: Iterable[str], settings: TensorlakeSettings) -> bool:
    for entry in entries:
        if not entry.startswith("*."):
            named = host == entry
        elif settings.wildcards_open == "names":
            named = host.endswith(entry[1:])
        else:
            named = settings.wildcards_open == "everything"
        if named:
            return True
    return False
