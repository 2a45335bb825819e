"""Rule I2 begins with names: two sessions never share one."""

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
    parsed = names.parse_sandbox_name("hands", name_of(f"sesn_{suffix}"))
    assert parsed is not None
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
    parsed = names.parse_sandbox_name("hands", name_of("sesn_" + "z" * 24))
    assert parsed is not None
    assert parsed.session_id == "sesn_" + "z" * 24


def test_an_id_too_long_to_encode_is_hashed_and_says_so() -> None:
    parsed = names.parse_sandbox_name("hands", name_of("sesn_" + "z" * 60))
    assert parsed is not None
    assert parsed.session_id is None


@pytest.mark.parametrize("name", ["", "hands", "hands-", "hands-00000000-s", "other-00000000-s1a", "hands-0-s1a"])
def test_a_foreign_name_is_not_taken_for_ours(name: str) -> None:
    assert names.parse_sandbox_name("hands", name) is None


@pytest.mark.parametrize("session_id", ["", "sesn_", "work_1", "01H2"])
def test_what_is_not_a_session_id_is_refused(session_id: str) -> None:
    with pytest.raises(names.BadName):
        name_of(session_id)


@pytest.mark.parametrize("prefix", ["", "Hands", "1a", "a-b", "ninechars"])
def test_a_prefix_that_breaks_names_is_refused(prefix: str) -> None:
    with pytest.raises(names.BadName):
        names.sandbox_name(prefix, ENVIRONMENT, "sesn_1")
