"""Names of race sandboxes are found again, read back, and never taken for a session's."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.names import (
    LONGEST_NAME,
    BadName,
    ForeignName,
    KeptSnapshotSandbox,
    RaceSandbox,
    SessionSandbox,
    environment_tag,
    kept_snapshot_name,
    new_race_id,
    parse,
    race_sandbox_name,
    sandbox_name,
    snapshot_tag,
)

prefixes = st.from_regex(r"[a-z][a-z0-9]{0,7}", fullmatch=True)
race_ids = st.from_regex(r"[0-9a-z]{12}", fullmatch=True)
places = st.none() | st.integers(0, 999)
moments = st.integers(0, 36**8 - 1)


@given(prefixes, st.text(min_size=1), race_ids, places, moments, st.none() | st.text(min_size=1))
def test_a_name_is_read_back_and_fits(
    prefix: str, environment: str, race_id: str, index: int | None, dead_man: int, snapshot: str | None
) -> None:
    name = race_sandbox_name(prefix, environment, race_id, index, dead_man, snapshot)
    assert len(name) <= LONGEST_NAME
    assert re.fullmatch(r"[a-z][a-z0-9-]*[a-z0-9]", name)
    parsed = parse(prefix, name)
    assert isinstance(parsed, RaceSandbox)
    assert (parsed.race_id, parsed.index, parsed.dead_man) == (race_id, index, dead_man)
    assert parsed.snapshot_tag == (None if snapshot is None else snapshot_tag(snapshot))
    assert (parsed.prefix, parsed.environment_tag) == (prefix, environment_tag(environment))


@given(prefixes, st.text(min_size=1), race_ids, moments)
def test_the_name_of_a_kept_snapshots_sandbox_is_neither_a_races_nor_a_sessions(
    prefix: str, environment: str, race_id: str, dead_man: int
) -> None:
    name = kept_snapshot_name(prefix, environment, race_id, dead_man)
    assert len(name) <= LONGEST_NAME
    assert re.fullmatch(r"[a-z][a-z0-9-]*[a-z0-9]", name)
    parsed = parse(prefix, name)
    assert isinstance(parsed, KeptSnapshotSandbox)
    assert (parsed.race_id, parsed.dead_man, parsed.environment_tag) == (
        race_id,
        dead_man,
        environment_tag(environment),
    )


@given(prefixes, race_ids, places, moments, prefixes)
def test_no_race_name_is_a_sessions(prefix: str, race_id: str, index: int | None, dead_man: int, other: str) -> None:
    name = race_sandbox_name(prefix, "env_1", race_id, index, dead_man)
    assert not isinstance(parse(prefix, name), SessionSandbox)
    assert not isinstance(parse(other, name), SessionSandbox)


@given(prefixes, st.from_regex(r"sesn_[0-9A-Za-z]{1,30}", fullmatch=True) | st.text(min_size=1).map("sesn_{}".format))
def test_no_sessions_name_is_a_races(prefix: str, session_id: str) -> None:
    assert isinstance(parse(prefix, sandbox_name(prefix, "env_1", session_id)), SessionSandbox)


@pytest.mark.parametrize(
    "name",
    ["", "hands", "hands-00000000-r0123456789ab-01-1", "hands-00000000-r0123456789ab-1-01", "hands-00000000-rxyz-1-1"],
)
def test_what_no_race_wrote_is_not_read(name: str) -> None:
    assert parse("hands", name) == ForeignName()


def test_another_prefix_is_not_ours() -> None:
    name = race_sandbox_name("hands", "env_1", "0123456789ab", 1, 99)
    assert parse("other", name) == ForeignName()


@pytest.mark.parametrize(("race_id", "index", "dead_man"), [("short", 1, 1), ("0" * 12, 1000, 1), ("0" * 12, 1, -1)])
def test_what_no_name_can_hold_is_refused(race_id: str, index: int, dead_man: int) -> None:
    with pytest.raises(BadName):
        race_sandbox_name("hands", "env_1", race_id, index, dead_man)


def test_race_ids_are_new_each_time() -> None:
    assert len({new_race_id() for _ in range(100)}) == 100
