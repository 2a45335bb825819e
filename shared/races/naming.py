"""Names of the sandboxes of a race: `<prefix>-<environment tag>-r<race id>-<index or b>-<dead man>`.

A race keeps no record anywhere. Its sandboxes say by their names whose they are and from when on nobody can want them
any more (the dead-man time, whole seconds since the epoch, in base 36), so that whatever a race that died with its
process left behind is found in a list and ended. No such name is ever taken for a session's (naming.parse_sandbox_name
wants `s` or `x` in the place of `r` and no further hyphen; tests/shared/races/test_naming.py).
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Final

from shared.names import BadName, check_prefix, environment_tag, to_base36

RACE_ID_LENGTH: Final = 12  # digits of base 36: 62 bits, so that two races never meet
PRISTINE: Final = 999  # the index of the child that a workspace promotion compares the winner with
_BASE: Final = "b"
_LATEST: Final = 36**8 - 1  # keeps a name within 57 characters
_RACE_ID: Final = re.compile(rf"[0-9a-z]{{{RACE_ID_LENGTH}}}")


@dataclass(frozen=True, slots=True)
class RaceName:
    """A name taken apart. `index` is None for the base sandbox, where the set-up runs; `dead_man` in epoch seconds."""

    prefix: str
    environment_tag: str
    race_id: str
    index: int | None
    dead_man: int


def new_race_id() -> str:
    """Random, 12 digits of base 36."""
    return to_base36(secrets.randbelow(36**RACE_ID_LENGTH)).rjust(RACE_ID_LENGTH, "0")


def race_sandbox_name(prefix: str, environment_id: str, race_id: str, index: int | None, dead_man: int) -> str:
    """At most 57 characters, `^[a-z][a-z0-9-]*[a-z0-9]$`. Raises BadName for what no name can hold."""
    if not _RACE_ID.fullmatch(race_id):
        raise BadName(f"a race id has {RACE_ID_LENGTH} digits of base 36")
    if index is not None and not 0 <= index <= 999:
        raise BadName("a branch's index is between 0 and 999")
    if not 0 <= dead_man <= _LATEST:
        raise BadName("a dead-man time is in seconds since the epoch")
    place = _BASE if index is None else str(index)
    return f"{check_prefix(prefix)}-{environment_tag(environment_id)}-r{race_id}-{place}-{to_base36(dead_man)}"


def kept_snapshot_name(prefix: str, environment_id: str, race_id: str, dead_man: int) -> str:
    """What a winner's sandbox is called from when its snapshot is the caller's: `<prefix>-<tag>-k<race id>-<dead man>`.

    Snapshots of a race's sandboxes are deleted some time after it (reconcile/plan.py); those of this name are not. It
    is no race's name and no session's, and it still says from when on nobody wants the sandbox itself.
    """
    if not _RACE_ID.fullmatch(race_id):
        raise BadName(f"a race id has {RACE_ID_LENGTH} digits of base 36")
    return f"{check_prefix(prefix)}-{environment_tag(environment_id)}-k{race_id}-{to_base36(dead_man)}"


def parse_kept_snapshot_name(prefix: str, name: str) -> RaceName | None:
    """None for a name that kept_snapshot_name has not made; the index says nothing."""
    match = re.fullmatch(
        rf"{re.escape(prefix)}-([0-9a-z]{{8}})-k([0-9a-z]{{{RACE_ID_LENGTH}}})-([0-9a-z]{{1,8}})", name
    )
    return None if match is None else RaceName(prefix, match[1], match[2], None, int(match[3], 36))


def parse_race_name(prefix: str, name: str) -> RaceName | None:
    """None for a name that no race of this prefix gave."""
    match = re.fullmatch(
        rf"{re.escape(prefix)}-([0-9a-z]{{8}})-r([0-9a-z]{{{RACE_ID_LENGTH}}})-(b|0|[1-9][0-9]{{0,2}})-([0-9a-z]{{1,8}})",
        name,
    )
    if match is None:
        return None
    tag, race_id, place, code = match.groups()
    dead_man = int(code, 36)
    if to_base36(dead_man) != code:
        return None
    return RaceName(prefix, tag, race_id, None if place == _BASE else int(place), dead_man)
