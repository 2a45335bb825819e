"""Session id <-> sandbox name: the name is the whole record of which sandbox belongs to which session.

A name is unique per Tensorlake project, so creating one is an atomic claim (docs/wire/tensorlake.md#52-names). It is
made of a prefix, a tag of the environment and the session id in base 36. Session ids are case-significant and come with
two prefixes, `sesn_` and `session_`, that mean the same (docs/wire/anthropic.md#2-environments); names know lower case
only. The encoding is
injective: two ids never share a name, and the id can be read back from the name (tests/shared/test_names.py).
"""

from __future__ import annotations

import functools
import hashlib
import re
import secrets
import string
from dataclasses import dataclass
from typing import Final

LONGEST_NAME: Final = 57  # "65535-" + name must still be one DNS label of 63 characters
KEEP: Final = "keep-"  # a sandbox that a person renamed so is not touched
LONGEST_PREFIX: Final = 8

_DIGITS62: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_DIGITS36: Final = string.digits + string.ascii_lowercase
_SESSION_ID: Final = re.compile(r"(?:sesn|session)_(?P<suffix>.+)", re.DOTALL)
_PREFIX: Final = re.compile(r"[a-z][a-z0-9]{0,7}")
_NAMES_AT_HAND: Final = 32_768  # each tick reads the same ones again
_TAG_LENGTH: Final = 8
_MOMENT_LENGTH: Final = 7
_LONGEST_CODE: Final = 34  # so that a mark (gone_name) stays within LONGEST_NAME, whatever the prefix
_HASH_LENGTH: Final = 25  # digits of base 36 that hold 128 bits
_SERVER_LENGTH: Final = 16
RACE_ID_LENGTH: Final = 12  # digits of base 36: 62 bits, so that two races never meet
PRISTINE: Final = 999  # the index of the child that a workspace promotion compares the winner with
_BASE: Final = "b"
_LATEST: Final = 36**8 - 1  # keeps a name within 57 characters
_RACE_ID: Final = re.compile(rf"[0-9a-z]{{{RACE_ID_LENGTH}}}")
_SNAPSHOT_LENGTH: Final = 10  # digits of base 36 that stand for a snapshot's id
_RACE: Final = re.compile(
    rf"r([0-9a-z]{{{RACE_ID_LENGTH}}})-(b|0|[1-9][0-9]{{0,2}})-([0-9a-z]{{1,8}})(?:-([0-9a-z]{{{_SNAPSHOT_LENGTH}}}))?"
)
_RECORD: Final = re.compile(rf"q([0-9a-z]{{{RACE_ID_LENGTH}}})")
_LEDGER: Final = re.compile(rf"d([0-9a-z]{{{_HASH_LENGTH}}})")
_KEPT_SNAPSHOT: Final = re.compile(rf"k([0-9a-z]{{{RACE_ID_LENGTH}}})-([0-9a-z]{{1,8}})")
_RECIPE_LENGTH: Final = 14  # digits of base 36: 72 bits
_PREPARED: Final = re.compile(rf"p([0-9a-z]{{{_RECIPE_LENGTH}}})-([0-9a-z]{{1,8}})")
_GONE: Final = re.compile(rf"gone-([0-9a-z]{{{_MOMENT_LENGTH}}})-([0-9a-z]{{{_TAG_LENGTH}}})-([sx][0-9a-z]+)")


class BadName(ValueError):
    """An id or prefix that no name can be made of."""


@dataclass(frozen=True, slots=True)
class SessionSandbox:
    """The one sandbox of a session. `session_id` is None where the name holds only a hash of it."""

    prefix: str
    environment_tag: str
    session_id: str | None


@dataclass(frozen=True, slots=True)
class GoneSandbox:
    """A session's sandbox that was marked for its end. `marked_at` is in whole seconds since the epoch."""

    prefix: str
    environment_tag: str
    code: str
    marked_at: int

    @property
    def proper(self) -> str:
        """The name that it had as its session's sandbox."""
        return f"{self.prefix}-{self.environment_tag}-{self.code}"


@dataclass(frozen=True, slots=True)
class RaceSandbox:
    """A sandbox of a race. `index` is None for the base, where the set-up runs; `dead_man` in epoch seconds.
    `snapshot_tag` stands for the snapshot that the race took of its source, where it took one."""

    prefix: str
    environment_tag: str
    race_id: str
    index: int | None
    dead_man: int
    snapshot_tag: str | None = None


@dataclass(frozen=True, slots=True)
class KeptSnapshotSandbox:
    """A race's winner whose snapshot is the caller's. The sandbox itself may go after `dead_man` (epoch seconds)."""

    prefix: str
    environment_tag: str
    race_id: str
    dead_man: int


@dataclass(frozen=True, slots=True)
class RaceRecordSandbox:
    """A sandbox in which nothing runs: its name is the claim of one race, its files say how that race fares
    (shared/races/records.py). It goes some time after it was made (RACE_RECORD_SECONDS)."""

    prefix: str
    environment_tag: str
    race_id: str


@dataclass(frozen=True, slots=True)
class PreparedSandbox:
    """What sessions of an environment are started from: its snapshots are the prepared start of a recipe, for the time
    that begins at `since` (epoch seconds)."""

    prefix: str
    environment_tag: str
    recipe: str
    since: int


@dataclass(frozen=True, slots=True)
class RaceLedgerSandbox:
    """A sandbox in which nothing runs: what one session's own races cost in a day (shared/races/ledger.py). `code` is a
    hash of the session's id. One that was made on an earlier day is nobody's."""

    prefix: str
    environment_tag: str
    code: str


@dataclass(frozen=True, slots=True)
class KeptSandbox:
    """A sandbox that a person, or a race for a person, called `keep-...`: never touched."""


@dataclass(frozen=True, slots=True)
class ServerSandbox:
    """A sandbox that serves the bundle."""

    prefix: str


@dataclass(frozen=True, slots=True)
class ForeignName:
    """No name that this project gave under this prefix."""


SandboxName = (
    SessionSandbox
    | GoneSandbox
    | RaceSandbox
    | KeptSnapshotSandbox
    | RaceRecordSandbox
    | PreparedSandbox
    | RaceLedgerSandbox
    | KeptSandbox
    | ServerSandbox
    | ForeignName
)


@functools.lru_cache(maxsize=_NAMES_AT_HAND)
def parse(prefix: str, name: str | None) -> SandboxName:
    """What a sandbox of this name is to a deployment with this prefix. Total: whatever it does not know is foreign."""
    tagged = re.fullmatch(rf"{re.escape(prefix)}-([0-9a-z]{{{_TAG_LENGTH}}})-([0-9a-z-]+)", name or "")
    if tagged is not None:
        ours = _parse_tagged(prefix, *tagged.groups())
        if ours is not None:
            return ours
    if gone := _GONE.fullmatch(name or ""):
        moment, tag, code = gone.groups()
        return GoneSandbox(prefix, tag, code, int(moment, 36))
    if re.fullmatch(rf"{re.escape(prefix)}-server-[0-9a-z]{{{_SERVER_LENGTH}}}", name or ""):
        return ServerSandbox(prefix)
    return KeptSandbox() if (name or "").startswith(KEEP) else ForeignName()


def belongs_to(name: SandboxName, environment_id: str) -> bool:
    """Whether the name was given for this environment."""
    match name:
        case KeptSandbox() | ServerSandbox() | ForeignName():
            return False
        case _:
            return name.environment_tag == environment_tag(environment_id)


def given_under(name: str | None, environment_id: str) -> str | None:
    """The prefix under which a sandbox of this environment got its name, whatever this deployment's own is; None for a
    name that has none."""
    tagged = re.match(rf"({_PREFIX.pattern})-{environment_tag(environment_id)}-", name or "")
    if tagged is None or isinstance(parse(tagged[1], name), ForeignName):
        return None
    return tagged[1]


def _parse_tagged(prefix: str, tag: str, rest: str) -> SandboxName | None:
    if session := re.fullmatch(r"([sx])([0-9a-z]+)", rest):
        kind, code = session.groups()
        suffix = _decode(code) if kind == "s" else None
        if kind == "x" or suffix is not None:
            return SessionSandbox(prefix, tag, None if suffix is None else f"sesn_{suffix}")
    if race := _RACE.fullmatch(rest):
        race_id, place, code, snapshot = race.groups()
        if to_base36(int(code, 36)) == code:
            return RaceSandbox(prefix, tag, race_id, None if place == _BASE else int(place), int(code, 36), snapshot)
    if kept := _KEPT_SNAPSHOT.fullmatch(rest):
        return KeptSnapshotSandbox(prefix, tag, kept[1], int(kept[2], 36))
    if record := _RECORD.fullmatch(rest):
        return RaceRecordSandbox(prefix, tag, record[1])
    if (prepared := _PREPARED.fullmatch(rest)) and to_base36(int(prepared[2], 36)) == prepared[2]:
        return PreparedSandbox(prefix, tag, prepared[1], int(prepared[2], 36))
    if ledger := _LEDGER.fullmatch(rest):
        return RaceLedgerSandbox(prefix, tag, ledger[1])
    return None


def gone_name(name: str, prefix: str, marked_at: int) -> str:
    """The mark of a session's sandbox: it frees the session's name and shows in a list since when it is marked.

    Raises BadName for a name that is no session's.
    """
    if not isinstance(parse(prefix, name), SessionSandbox):
        raise BadName("only a session's sandbox is marked")
    return f"gone-{to_base36(marked_at).rjust(_MOMENT_LENGTH, '0')}-{name.removeprefix(prefix + '-')}"


def kept_name(name: str, prefix: str, moment: int) -> str:
    """What a session's sandbox that cannot serve again is called from then on: it frees the session's name, and nothing
    ends it. `moment` in whole seconds since the epoch.

    Raises BadName for a name that is no session's.
    """
    return KEEP + gone_name(name, prefix, moment).removeprefix("gone-")


def new_server_name(prefix: str) -> str:
    """Ends in 16 random characters, which nobody can guess: who knows the name knows where the webhook is."""
    alphabet = string.ascii_lowercase + string.digits
    return f"{prefix}-server-{''.join(secrets.choice(alphabet) for _ in range(_SERVER_LENGTH))}"


def check_prefix(prefix: str) -> str:
    """Returns the prefix; raises BadName where it is not 1 to 8 lower-case letters and digits, a letter first."""
    if not _PREFIX.fullmatch(prefix):
        raise BadName(f"a sandbox prefix has 1 to {LONGEST_PREFIX} lower-case letters or digits, a letter first")
    return prefix


@functools.lru_cache(maxsize=64)  # it is part of every sandbox's name
def environment_tag(environment_id: str) -> str:
    """Eight base-36 digits that stand for an environment in sandbox names."""
    return _hash(environment_id, _TAG_LENGTH)


def is_session_id(text: str) -> bool:
    return len(text) <= 200 and text.isprintable() and _SESSION_ID.fullmatch(text) is not None


def canonical_session_id(session_id: str) -> str:
    """The id with the prefix `sesn_`, whichever of its two prefixes it came with."""
    match = _SESSION_ID.fullmatch(session_id)
    if match is None:
        raise BadName("a session id begins with sesn_ or session_ and has something after it")
    return f"sesn_{match['suffix']}"


@functools.lru_cache(maxsize=_NAMES_AT_HAND)
def sandbox_name(prefix: str, environment_id: str, session_id: str) -> str:
    """The name of the one sandbox of this session. At most 57 characters, `^[a-z][a-z0-9-]*[a-z0-9]$`."""
    suffix = canonical_session_id(session_id).removeprefix("sesn_")
    head = f"{check_prefix(prefix)}-{environment_tag(environment_id)}-"
    encoded = _encode(suffix)
    if encoded is not None and len(encoded) <= _LONGEST_CODE:
        return f"{head}s{encoded}"
    return f"{head}x{_hash(suffix, _HASH_LENGTH)}"


def to_base36(number: int) -> str:
    """Digits 0-9a-z of a whole number that is not negative."""
    digits = ""
    while True:
        number, rest = divmod(number, 36)
        digits = _DIGITS36[rest] + digits
        if not number:
            return digits


def _encode(suffix: str) -> str | None:
    """Base 62 read as one number with a leading 1, so that leading zeros and the length survive."""
    number = 1
    for character in suffix:
        digit = _DIGITS62.find(character)
        if digit < 0:
            return None
        number = number * 62 + digit
    return to_base36(number)


def _decode(code: str) -> str | None:
    number = int(code, 36)
    if to_base36(number) != code or number < 1:
        return None
    suffix = ""
    while number >= 62:
        number, digit = divmod(number, 62)
        suffix = _DIGITS62[digit] + suffix
    return suffix if number == 1 and suffix else None


def _hash(text: str, digits: int) -> str:
    number = int.from_bytes(hashlib.sha256(text.encode()).digest(), "big") % 36**digits
    return to_base36(number).rjust(digits, "0")


def new_race_id() -> str:
    """Random, 12 digits of base 36."""
    return to_base36(secrets.randbelow(36**RACE_ID_LENGTH)).rjust(RACE_ID_LENGTH, "0")


def derived_race_id(*parts: str) -> str:
    """The id of the race that these texts name: the same ones give the same id in every copy of the functions."""
    return _hash("\0".join(("race", *(part.replace("\0", "") for part in parts))), RACE_ID_LENGTH)


def is_race_id(text: str) -> bool:
    return _RACE_ID.fullmatch(text) is not None


def race_record_name(prefix: str, environment_id: str, race_id: str) -> str:
    """`<prefix>-<tag>-q<race id>`. Creating it is the claim of the race. Raises BadName for what is no race id."""
    if not _RACE_ID.fullmatch(race_id):
        raise BadName(f"a race id has {RACE_ID_LENGTH} digits of base 36")
    return f"{check_prefix(prefix)}-{environment_tag(environment_id)}-q{race_id}"


def race_ledger_name(prefix: str, environment_id: str, session_id: str) -> str:
    """`<prefix>-<tag>-d<hash>`. Raises BadName for what is no session's id."""
    suffix = canonical_session_id(session_id).removeprefix("sesn_")
    return f"{check_prefix(prefix)}-{environment_tag(environment_id)}-d{_hash(suffix, _HASH_LENGTH)}"


def snapshot_tag(snapshot_id: str) -> str:
    """Ten base-36 digits that stand for a snapshot in the names of the sandboxes that a race makes of it: a snapshot
    has no name, and these prove that it is the race's and nobody else's."""
    return _hash(snapshot_id, _SNAPSHOT_LENGTH)


def race_sandbox_name(
    prefix: str, environment_id: str, race_id: str, index: int | None, dead_man: int, snapshot_id: str | None = None
) -> str:
    """At most 57 characters, `^[a-z][a-z0-9-]*[a-z0-9]$`. `snapshot_id` is what the race took of its source. Raises
    BadName for what no name can hold."""
    if not _RACE_ID.fullmatch(race_id):
        raise BadName(f"a race id has {RACE_ID_LENGTH} digits of base 36")
    if index is not None and not 0 <= index <= 999:
        raise BadName("a branch's index is between 0 and 999")
    if not 0 <= dead_man <= _LATEST:
        raise BadName("a dead-man time is in seconds since the epoch")
    place = _BASE if index is None else str(index)
    name = f"{check_prefix(prefix)}-{environment_tag(environment_id)}-r{race_id}-{place}-{to_base36(dead_man)}"
    return name if snapshot_id is None else f"{name}-{snapshot_tag(snapshot_id)}"


def kept_snapshot_name(prefix: str, environment_id: str, race_id: str, dead_man: int) -> str:
    """What a winner's sandbox is called from when its snapshot is the caller's: `<prefix>-<tag>-k<race id>-<dead man>`.

    Snapshots of a race's sandboxes are deleted some time after it (reconcile/plan.py); those of this name are not. It
    is no race's name and no session's, and it still says from when on nobody wants the sandbox itself.
    """
    if not _RACE_ID.fullmatch(race_id):
        raise BadName(f"a race id has {RACE_ID_LENGTH} digits of base 36")
    return f"{check_prefix(prefix)}-{environment_tag(environment_id)}-k{race_id}-{to_base36(dead_man)}"


def recipe_code(recipe: str) -> str:
    """14 base-36 digits that stand for what a prepared start is made of."""
    return _hash(recipe, _RECIPE_LENGTH)


def prepared_name(prefix: str, environment_id: str, recipe: str, since: int) -> str:
    """Of the sandbox that a prepared start is made in: whoever creates it prepares. `recipe` is a `recipe_code`,
    `since` in seconds since the epoch. At most 42 characters."""
    return f"{check_prefix(prefix)}-{environment_tag(environment_id)}-p{recipe}-{to_base36(since)}"
