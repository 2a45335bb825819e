"""Rule I2 (docs/architecture.md#i2) begins with names: two sessions never share one."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared import names

ENVIRONMENT = "env_01Ab"
BASE62 = string.digits + string.ascii_letters
suffixes = st.text(BASE62, min_size=1, max_size=40) | st.text(min_size=1, max_size=80)


def name_of(session_id: str, environment: str = ENVIRONMENT) -> str:
    return names.sandbox_name("hands", environment, session_id)


@given(suffixes)
@example("0")
@example("0" * 24)
@example("z" * 24)
@example("\u0130-../ ?\n")
def test_every_name_keeps_the_services_rules(suffix: str) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9-]*[a-z0-9]", name_of(f"sesn_{suffix}"))
    assert len(name_of(f"sesn_{suffix}")) <= names.LONGEST_NAME


@given(st.text(BASE62, min_size=1, max_size=28))
@example("00")
@example("0A")
def test_i2_the_session_id_can_be_read_back_from_its_name(suffix: str) -> None:
    parsed = names.parse("hands", name_of(f"sesn_{suffix}"))
    assert isinstance(parsed, names.SessionSandbox)
    assert parsed.session_id == f"sesn_{suffix}"
    assert parsed.environment_tag == names.environment_tag(ENVIRONMENT)


@given(suffixes, suffixes)
@example("abc", "aBc")
@example("0a", "a")
@example("a" * 60, "A" * 60)
def test_i2_different_sessions_have_different_names(one: str, other: str) -> None:
    assert (name_of(f"sesn_{one}") == name_of(f"sesn_{other}")) == (one == other)


def test_i2_ids_that_differ_only_in_case_have_different_names() -> None:
    assert name_of("sesn_01H2ZzQabcdefghijklmnopq") != name_of("sesn_01h2zzqabcdefghijklmnopq")


def test_both_prefixes_of_a_session_id_mean_the_same_session() -> None:
    assert name_of("sesn_01H2ZzQ") == name_of("session_01H2ZzQ")


def test_the_same_session_id_in_two_environments_has_two_names() -> None:
    assert name_of("sesn_01H2ZzQ", "env_a") != name_of("sesn_01H2ZzQ", "env_b")


def test_a_real_id_is_encoded_and_not_hashed() -> None:
    parsed = names.parse("hands", name_of("sesn_" + "z" * 24))
    assert isinstance(parsed, names.SessionSandbox)
    assert parsed.session_id == "sesn_" + "z" * 24


def test_an_id_too_long_to_encode_is_hashed_and_says_so() -> None:
    parsed = names.parse("hands", name_of("sesn_" + "z" * 60))
    assert isinstance(parsed, names.SessionSandbox)
    assert parsed.session_id is None


@pytest.mark.parametrize("name", ["", "hands", "hands-", "hands-00000000-s", "other-00000000-s1a", "hands-0-s1a"])
def test_a_foreign_name_is_not_taken_for_ours(name: str) -> None:
    assert names.parse("hands", name) == names.ForeignName()


@pytest.mark.parametrize("session_id", ["", "sesn_", "work_1", "01H2"])
def test_what_is_not_a_session_id_is_refused(session_id: str) -> None:
    with pytest.raises(names.BadName):
        name_of(session_id)


@pytest.mark.parametrize("prefix", ["", "Hands", "1a", "a-b", "ninechars"])
def test_a_prefix_that_breaks_names_is_refused(prefix: str) -> None:
    with pytest.raises(names.BadName):
        names.sandbox_name(prefix, ENVIRONMENT, "sesn_1")


@given(st.text(max_size=60) | st.from_regex(r"[a-z0-9-]{1,57}", fullmatch=True) | st.none())
def test_every_text_is_some_name_and_only_a_tagged_one_belongs_to_an_environment(name: str | None) -> None:
    parsed = names.parse("hands", name)
    owned = names.belongs_to(parsed, ENVIRONMENT)
    assert not owned or names.environment_tag(ENVIRONMENT) in (name or "")


@pytest.mark.parametrize("prefix", ["hands", "keep", "gone", "a"])
def test_no_prefix_makes_one_kind_of_name_look_like_another(prefix: str) -> None:
    of_a_session = names.sandbox_name(prefix, ENVIRONMENT, "sesn_01H2ZzQ")
    mark = names.gone_name(of_a_session, prefix, 1_800_000_000)
    of_a_race = names.race_sandbox_name(prefix, ENVIRONMENT, "0123456789ab", None, 1_800_000_000)
    kept = names.kept_snapshot_name(prefix, ENVIRONMENT, "0123456789ab", 1_800_000_000)
    tag = names.environment_tag(ENVIRONMENT)
    gone = names.parse(prefix, mark)
    assert names.parse(prefix, of_a_session) == names.SessionSandbox(prefix, tag, "sesn_01H2ZzQ")
    assert isinstance(gone, names.GoneSandbox)
    assert (gone.proper, gone.marked_at) == (of_a_session, 1_800_000_000)
    assert names.parse(prefix, of_a_race) == names.RaceSandbox(prefix, tag, "0123456789ab", None, 1_800_000_000)
    assert names.parse(prefix, kept) == names.KeptSnapshotSandbox(prefix, tag, "0123456789ab", 1_800_000_000)
    record = names.race_record_name(prefix, ENVIRONMENT, "0123456789ab")
    assert names.parse(prefix, record) == names.RaceRecordSandbox(prefix, tag, "0123456789ab")
    assert names.parse(prefix, names.new_server_name(prefix)) == names.ServerSandbox(prefix)
    assert names.parse("hands", "keep-mine") == names.KeptSandbox()


def test_a_derived_race_id_is_the_same_everywhere_and_another_one_for_other_texts() -> None:
    one = names.derived_race_id("env_1", "operator", "key")
    assert one == names.derived_race_id("env_1", "operator", "key") and names.is_race_id(one)
    others = [("env_2", "operator", "key"), ("env_1", "agent sesn_1", "key"), ("env_1", "operatorkey", "")]
    assert one not in [names.derived_race_id(*other) for other in others]
