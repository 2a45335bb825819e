"""Ids and names: how they look, and who holds a name (docs/wire/tensorlake.md#4-statuses,
docs/wire/tensorlake.md#52-names)."""

from __future__ import annotations

import re
import secrets
import string

from infra.local.tensorlake.errors import bad_request, conflict

ID_LENGTH = 21
LONGEST_NAME = 63
_ID_ALPHABET = string.ascii_lowercase + string.digits
_NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")


def new_id() -> str:
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(ID_LENGTH))


def check_name(name: object) -> str:
    """The name, or a 400 that says what is wrong with it.

    The service's own rule is undocumented; this is the strictest that is known to be accepted everywhere: one DNS
    label of lower-case letters, digits and hyphens that starts with a letter and does not end with a hyphen.
    """
    if not isinstance(name, str) or not name:
        raise bad_request("sandbox name must be a non-empty string")
    if len(name) > LONGEST_NAME:
        raise bad_request(f"sandbox name is {len(name)} characters long; at most {LONGEST_NAME} are allowed")
    if not _NAME.fullmatch(name):
        raise bad_request(
            f"sandbox name {name!r} is not valid: use lower-case letters, digits and hyphens, "
            "start with a letter, end with a letter or digit"
        )
    return name


class NameIndex:
    """Which sandbox holds which name. Plain synchronous methods on one event loop: every step is atomic."""

    def __init__(self) -> None:
        self._holders: dict[tuple[str, str], str] = {}

    def take(self, namespace: str, name: str, sandbox_id: str) -> None:
        """Raises a 409 if somebody else holds it."""
        holder = self._holders.setdefault((namespace, name), sandbox_id)
        if holder != sandbox_id:
            raise conflict(f"sandbox name '{name}' is already in use")

    def release(self, namespace: str, name: str | None, sandbox_id: str) -> None:
        if name is not None and self._holders.get((namespace, name)) == sandbox_id:
            del self._holders[(namespace, name)]

    def holder(self, namespace: str, name: str) -> str | None:
        return self._holders.get((namespace, name))

    def holder_anywhere(self, name: str) -> str | None:
        """For the data plane, whose requests carry no namespace: `default` first."""
        first = self._holders.get(("default", name))
        return first or next((held for (_, each), held in self._holders.items() if each == name), None)
