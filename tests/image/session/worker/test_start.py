"""How a worker starts and what it refuses to start with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from image.session.archive import build_archive, digest
from image.session.claim import CLAIM_VARIABLE, STATE_VARIABLE, Exit, Notice, Word
from image.session.worker import tool_environment
from tests.image.session.worker.harness import make_claim, sandbox, secret_for
from tests.image.session.worker.service import running

URL = "http://127.0.0.1:9"  # discard: nobody listens


@pytest.mark.parametrize(
    "text",
    ["", "not json", "[]", '{"protocol": 2}', '{"protocol": 1, "work_id": "work_1"}', "{" * 80_000],
)
def test_a_claim_that_cannot_be_read_ends_at_once(tmp_path: Path, text: str) -> None:
    with sandbox(tmp_path) as box:
        worker = box.start(text)
        assert worker.exit() is Exit.BAD_CLAIM
        assert worker.words() == [Word.ENDED]


def test_no_claim_at_all_is_a_bad_claim(tmp_path: Path) -> None:
    archive = tmp_path / "worker.pyz"
    archive.write_bytes(build_archive())
    done = subprocess.run([sys.executable, "-I", str(archive)], env={}, capture_output=True, text=True, timeout=20)
    assert done.returncode == Exit.BAD_CLAIM
    notice = Notice.from_line(done.stdout)
    assert notice is not None
    assert notice.word is Word.ENDED


def test_a_bad_claims_last_word_holds_no_secret(tmp_path: Path) -> None:
    with sandbox(tmp_path) as box:
        claim = json.loads(make_claim(URL, box.workdir).to_json()) | {"gate": "soon"}
        worker = box.start(json.dumps(claim))
        assert worker.exit() is Exit.BAD_CLAIM
        assert secret_for("token-of-a-test") not in "".join(worker.stdout + worker.stderr)
        assert "gate" in worker.ending()


@pytest.mark.parametrize("secret", ["%%%", "bm90IGpzb24", secret_for(""), secret_for("line\nbreak")])
def test_a_secret_without_a_usable_token_is_a_bad_claim(tmp_path: Path, secret: str) -> None:
    with sandbox(tmp_path) as box:
        worker = box.start(make_claim(URL, box.workdir, secret=secret))
        assert worker.exit() is Exit.BAD_CLAIM


@pytest.mark.parametrize("url", ["ftp://host", "nonsense", "http://"])
def test_an_address_that_is_none_is_a_bad_claim(tmp_path: Path, url: str) -> None:
    with sandbox(tmp_path) as box:
        assert box.start(make_claim(url, box.workdir)).exit() is Exit.BAD_CLAIM


def test_a_sandbox_of_another_session_is_not_used(tmp_path: Path) -> None:
    """A fork of a session's sandbox has that session's files."""
    with running() as service, sandbox(tmp_path) as box:
        assert box.start(make_claim(service.url, box.workdir, gate=0.0)).exit() is Exit.NEVER_ACKED
        other = box.start(make_claim(service.url, box.workdir, session_id="sesn_01TestABC"))  # differs in case only
        assert other.exit() is Exit.BAD_CLAIM
        assert other.words() == [Word.ENDED]
        same = box.start(make_claim(service.url, box.workdir, session_id="session_01TestAbc", gate=0.0))
        assert same.exit() is Exit.NEVER_ACKED


def test_sigterm_before_the_lease_leaves_the_item_alone(tmp_path: Path) -> None:
    with running() as service, sandbox(tmp_path) as box:
        worker = box.start(make_claim(service.url, box.workdir))
        worker.wait_for(Word.READY)
        service.wait_for("/heartbeat")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.exit(within=2) is Exit.STOPPED
        assert (service.state, service.stops()) == ("queued", 0)
        assert not (box.state / "claims.sock").exists()


def test_a_state_directory_that_cannot_be_had_is_said(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with sandbox(tmp_path) as box:
        worker = box.start(make_claim(URL, box.workdir), env={STATE_VARIABLE: str(blocked / "state")})
        assert worker.exit() is Exit.FAILED
        assert "state directory" in worker.ending()


def test_an_environment_without_the_sdk_says_so_before_it_says_ready(tmp_path: Path) -> None:
    archive = tmp_path / "worker.pyz"
    archive.write_bytes(build_archive())
    done = subprocess.run(
        [sys._base_executable, "-I", "-S", str(archive), "--claim", "0"],  # type: ignore[attr-defined] # CPython's
        input=make_claim(URL, tmp_path).to_json(),
        env={STATE_VARIABLE: str(tmp_path / "state")},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == Exit.FAILED
    assert "anthropic" in done.stdout
    assert '"ready"' not in done.stdout


def test_the_tools_get_what_the_image_sets_and_neither_ours_nor_secrets(tmp_path: Path) -> None:
    ordinary = {"PATH": "/bin", "HOME": str(tmp_path), "LANG": "C.UTF-8", "https_proxy": "http://u:p@p:1", "TZ": "UTC"}
    images = {
        "JAVA_HOME": "/opt/java",
        "CARGO_HOME": "/c",
        "PYTHONPATH": "/w",
        "npm_config_cache": "/n",
        "KEYBOARD": "de",
    }
    ours = {
        CLAIM_VARIABLE: "x",
        "HANDS_ANYTHING": "x",
        "TENSORLAKE_API_URL": "x",
        "ANTHROPIC_BASE_URL": "x",
        "TL_ID": "x",
    }
    secrets = {
        **{
            "AWS_KEY": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "GITHUB_TOKEN": "x",
            "npm_config__authToken": "x",
            "PGPASSWORD": "x",
        },
        **{
            "GOOGLE_APPLICATION_CREDENTIALS": "x",
            "DATABASE_URL": "postgres://me:mine@db/x",
            "PIP_INDEX_URL": "https://:t@h/",
        },
    }
    assert tool_environment.clean_environment(ordinary | images | ours | secrets) == ordinary | images


def test_a_home_that_does_not_exist_is_replaced_by_the_users(tmp_path: Path) -> None:
    assert Path(tool_environment.clean_environment({"HOME": str(tmp_path / "gone")})["HOME"]).is_dir()


def test_the_archive_is_the_same_from_build_to_build() -> None:
    first = build_archive()
    build_archive.cache_clear()
    assert digest(build_archive()) == digest(first)


def test_the_archive_holds_the_worker_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "worker.pyz"
    path.write_bytes(build_archive())
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert names == sorted(names)
    assert {"__main__.py", "image/session/claim.py", "image/session/worker/__main__.py"} <= set(names)
    assert not [name for name in names if "definition" in name or not name.endswith(".py")]


def test_everything_before_ready_is_standard_library(tmp_path: Path) -> None:
    """The SDK takes over a second to import, and the dispatcher waits for `ready`."""
    script = "import sys, image.session.worker.program; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(_archive(tmp_path))!r}); {script}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    loaded = set(done.stdout.split())
    assert not loaded - sys.stdlib_module_names - {"image", "__main__"} - _site_hooks()
    assert not loaded & {"ssl", "http", "asyncio", "email"}


def _archive(tmp_path: Path) -> Path:
    path = tmp_path / "worker.pyz"
    path.write_bytes(build_archive())
    return path


def _site_hooks() -> set[str]:
    """What this environment's own `.pth` files import into every program."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", "import sys; print(*{m.split('.')[0] for m in sys.modules})"],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    return set(done.stdout.split())
