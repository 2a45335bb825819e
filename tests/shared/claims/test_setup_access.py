"""What the functions add to a claim so that a set-up may read what is not public."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from shared.claims.setup_access import SetupAccess, setup_access
from shared.environment_settings import Environment
from shared.errors import SettingsError
from shared.ports import Doubtful, SessionRecord, SessionStatus
from shared.settings import Settings
from tests.shared.test_settings import PLAIN

METADATA = {"repo": "https://git.example/team/app", "files": "s3://data/in/a.csv s3://other/b.csv"}


class SessionQueue:
    """As much of the queue as is asked."""

    def __init__(self, answer: SessionRecord | Doubtful) -> None:
        self.answer = answer
        self.asked = 0

    async def session(self, session_id: str) -> SessionRecord | Doubtful:
        self.asked += 1
        return self.answer


def environment(**variables: str) -> Environment:
    (only,) = Settings.from_environ({**PLAIN, "SANDBOX_ALLOW_OUT": "*", **variables}).environments.values()
    return only


def access(queue: SessionQueue, **variables: str) -> SetupAccess:
    unlike_a_queue: Any = queue
    return asyncio.run(setup_access(environment(**variables), unlike_a_queue, "sesn_1"))


def session(metadata: dict[str, str]) -> SessionRecord:
    return SessionRecord("sesn_1", SessionStatus.RUNNING, False, None, metadata)


def good(repository: str) -> tuple[str, str] | None:
    return ("name", "word") if "git.example" in repository else None


def bad(repository: str) -> tuple[str, str]:
    raise RuntimeError("SECRET")


def test_without_the_settings_nobody_is_asked() -> None:
    queue = SessionQueue(session(METADATA))
    assert access(queue) == SetupAccess() and queue.asked == 0


def test_objects_below_the_operators_prefixes_are_signed_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of-nobody")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    signed = access(SessionQueue(session(METADATA)), SETUP_STORES="s3://data/in/").signed
    assert signed is not None and list(signed) == ["s3://data/in/a.csv"]
    parts = urlsplit(signed["s3://data/in/a.csv"])
    assert parts.scheme == "https" and parts.path.endswith("/in/a.csv") and "data" in f"{parts.netloc}{parts.path}"
    assert any(name.lower().endswith("signature") for name in parse_qs(parts.query))


def test_the_operators_function_gives_the_credential_and_its_failure_is_told_without_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    given = access(SessionQueue(session(METADATA)), SETUP_CREDENTIALS=f"{__name__}:good")
    assert given.credential == {"username": "name", "password": "word"} and "word" not in repr(given)
    elsewhere = session({"repo": "https://elsewhere.example/a"})
    assert access(SessionQueue(elsewhere), SETUP_CREDENTIALS=f"{__name__}:good").credential is None
    assert access(SessionQueue(session(METADATA)), SETUP_CREDENTIALS=f"{__name__}:bad") == SetupAccess()
    assert access(SessionQueue(session(METADATA)), SETUP_CREDENTIALS="no_such_module:f") == SetupAccess()
    assert access(SessionQueue(Doubtful("HTTP 500")), SETUP_CREDENTIALS=f"{__name__}:good") == SetupAccess()
    assert access(SessionQueue(session({"repo": "x"})), SETUP_CREDENTIALS=f"{__name__}:good") == SetupAccess()
    assert len(caplog.records) == 3 and "SECRET" not in caplog.text


def test_the_function_may_be_an_entry_point_of_a_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    about = tmp_path / "handsprobe-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: handsprobe\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[serverless_hands.credentials]\nour-forge = {__name__}:good\n")
    monkeypatch.syspath_prepend(tmp_path)
    given = access(SessionQueue(session(METADATA)), SETUP_CREDENTIALS="entry-point:our-forge")
    assert given.credential == {"username": "name", "password": "word"}
    assert access(SessionQueue(session(METADATA)), SETUP_CREDENTIALS="entry-point:another-forge") == SetupAccess()
    assert "ValueError" in caplog.text


@pytest.mark.parametrize(
    ("variable", "value"), [("SETUP_STORES", "s3://bucket/prefix"), ("SETUP_CREDENTIALS", "module.function")]
)
def test_what_would_never_work_is_refused_at_start(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=variable.lower()):
        environment(**{variable: value})
