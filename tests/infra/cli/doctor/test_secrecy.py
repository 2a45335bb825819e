"""No character of a secret leaves doctor, wherever the secret was put."""

from __future__ import annotations

import asyncio
import contextlib
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.cli.doctor import command
from infra.cli.doctor.command import DoctorOptions
from infra.cli.doctor.redaction import ReportRedactor
from infra.cli.environ import Loaded
from tests.infra.cli.doctor.bench import bad
from tests.support.world import Place

# Without vowels: hypothesis also tries words of the source, which a text of doctor's may well have.
_BODY = st.text("BCDFGHJKLMNPQRSTVWXZbcdfghjklmnpqrstvwxz0123456789", min_size=16, max_size=40)
_KEYS = st.builds(
    lambda shape, body: shape + body,
    st.sampled_from(("sk-ant-api03-", "sk-ant-oat01-", "whsec_", "tl_apiKey_1", "sk-ant-new-")),
    _BODY,
)
_SECRETS = (
    *("ANTHROPIC_API_KEY", "ANTHROPIC_ENVIRONMENT_KEY", "TENSORLAKE_API_KEY"),
    *("ANTHROPIC_WEBHOOK_SIGNING_KEY", "FUNCTIONS_TOKEN"),
)
_PLACES = (
    *_SECRETS,
    *("ANTHROPIC_ENVIRONMENT_ID", "ANTHROPIC_BASE_URL", "TENSORLAKE_API_URL", "SANDBOX_IMAGE_NAME", "SANDBOX_CPUS"),
    *("DRAIN_MODE", "WEBHOOK_URL", "SANDBOX_ALLOW_OUT", "SANDBOX_PREFIX", "ANTHROPIC_AGENT_ID"),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(st.sampled_from(_PLACES), _KEYS, min_size=2, max_size=len(_PLACES)))
def test_swapped_keys_are_never_shown(values: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "checks", lambda context, options: iter(()))  # the network has tests of its own
    monkeypatch.setattr("infra.cli.environ.apply", lambda *_: None)
    anything = {"ANTHROPIC_API_KEY": "sk-ant-api03-of-no-real-account"}  # so that the real services are meant
    for as_json in (False, True):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            command.run({**anything, **values}, DoctorOptions(json=as_json, probe=False), tmp_path)
        shown = out.getvalue() + err.getvalue()
        assert "HANDS1" in shown
        for value in values.values():
            body = value[-16:]
            assert not any(body[at : at + 6] in shown for at in range(len(body) - 5)), shown


def test_with_a_key_in_the_wrong_place_nothing_is_sent_to_anybody(place: Place) -> None:
    swapped = {**place.environ, "TENSORLAKE_API_KEY": place.environ["ANTHROPIC_ENVIRONMENT_KEY"]}
    findings = asyncio.run(command.examine(Loaded(swapped, Path("offline.env")), DoctorOptions()))
    assert set(bad(findings)) == {"HANDS102"}
    assert {each.code[:6] for each in findings} == {"HANDS0", "HANDS1"}


def test_a_services_own_words_are_cleaned_too() -> None:
    redactor = ReportRedactor.of(
        {"TENSORLAKE_API_KEY": "plain-old-secret", "HOME": "/home/somebody"}, ["read from a file"]
    )
    text = redactor.clean(
        "refused: plain-old-secret, Bearer abcdef123456, whsec_aGVsbG8gd29ybGQ=, read from a file\x1b[1m"
    )
    assert text == "refused: [hidden], [hidden], [hidden], [hidden] [1m"
    assert redactor.clean("in /home/somebody") == "in /home/somebody"
