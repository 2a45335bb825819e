"""Each file of examples/ does what it says, as a reader would use it."""

from __future__ import annotations

import asyncio
import importlib
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jwt
import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from infra.cli.environ import Loaded
from infra.cli.fork.command import ForkOptions, run
from infra.cli.fork.request import Flags, read_request
from shared import names
from shared.service import Service
from shared.settings import Settings
from tests.infra.cli.fork.test_command import environ_of
from tests.support.checkout import ROOT
from tests.support.preloaded import Preloaded, forked_run
from tests.support.serving import TOKEN, UVICORN, serving
from tests.support.waiting import PATIENCE, until_async
from tests.support.web import make_repository, web
from tests.support.world import API_KEY, OfflineWorld, Place

EXAMPLES: Final = ROOT / "examples"
PATH: Final = os.environ["PATH"]


@pytest.fixture(scope="module")
def server(world: OfflineWorld) -> Iterator[str]:
    """The functions on a real socket."""
    with serving(world.place(), UVICORN, RUNNER_MAX_IDLE_SECONDS="1") as url:
        yield url


def raced(place: Place, file: Path, capsys: pytest.CaptureFixture[str], **environ: str) -> dict[str, Any]:
    code = asyncio.run(
        run(Loaded({**environ_of(place), **environ}, None), read_request(str(file), Flags()), ForkOptions(as_json=True))
    )
    report: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    assert code == (0 if report["winner"] else 1)
    return report


def test_the_race_file_has_a_right_winner_and_refuses_the_wrong_branch(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    report = raced(place, EXAMPLES / "race.yaml", capsys)
    assert report["winner"] in ("coreutils", "python")
    assert {branch["name"]: branch["status"] for branch in report["branches"]} == {
        "coreutils": "ok",
        "python": "ok",
        "as-text": "failed",
    }


def test_the_environments_file_is_one_that_settings_take() -> None:
    settings = Settings.from_environ(
        {
            "TENSORLAKE_API_KEY": "a-key",
            "ENVIRONMENTS_FILE": str(EXAMPLES / "environments.toml"),
            "SANDBOX_IMAGE_NAME": "common",
            "BACKEND_ENVIRONMENT_KEY": "another-key",
        }
    )
    backend, docs = settings.environments.values()
    assert (backend.image, backend.cpus, backend.timeout_seconds) == ("backend", 4.0, 3600)
    assert (docs.image, docs.cpus, docs.timeout_seconds) == ("common", 2.0, 900)


def test_the_judge_of_ones_own_prefers_the_shorter_program_that_is_python(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    race = tmp_path / "race.yaml"
    race.write_text(
        """
source: {image: agent-cli}
branches:
  - {name: long, script: "echo 'print(1 + 1)' > answer.py"}
  - {name: short, script: "echo 'print(2)' > answer.py"}
  - {name: broken, script: "echo 'pr(' > answer.py"}
judge: {type: plugin, name: shortest, options: {file: answer.py}}
higher_is_better: false
"""
    )
    report = raced(place, race, capsys, RACE_JUDGES="shortest=custom_judge:shortest")
    assert report["winner"] == "short"
    assert "answer.py is not Python" in str(report["branches"])


def test_fork_is_called_from_python(server: str) -> None:
    environ = {"PATH": PATH, "FUNCTIONS_URL": server, "FUNCTIONS_TOKEN": TOKEN}
    called = ["-I", str(EXAMPLES / "call_fork.py")]
    done = forked_run(called, env=environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].startswith("race") and done.stdout.splitlines()[-1] == "winner: b2"
    environ["FUNCTIONS_TOKEN"] = "another"
    done = forked_run(called, env=environ)
    assert done.returncode == 1 and "token" in done.stderr and "Traceback" not in done.stderr


def test_a_session_is_about_a_repository_at_a_commit(place: Place, tmp_path: Path) -> None:
    """`repository_at_a_commit.py`, up to what the agent sees in its sandbox."""
    first, _ = make_repository(tmp_path, "app")
    with web(tmp_path) as remote:
        environ = {
            "PATH": PATH,
            "ANTHROPIC_API_KEY": API_KEY,
            "ANTHROPIC_BASE_URL": place.world.claude.url,
            "ANTHROPIC_AGENT_ID": place.world.agent_id,
            "ANTHROPIC_ENVIRONMENT_ID": place.environment_id,
        }
        asked = [str(EXAMPLES / "repository_at_a_commit.py"), remote.repository("app"), first, "$ cat app/version"]
        called = Preloaded(["-I", *asked], env=environ, stdout=subprocess.PIPE, text=True)
        assert called.stdout is not None
        session_id = called.stdout.readline().strip()

        async def served() -> None:
            async with place.dispatcher() as dispatcher:
                await dispatcher.drain()

        asyncio.run(served())
        said, _ = called.communicate(timeout=PATIENCE)
    assert called.returncode == 0 and place.answers(session_id) == [said.strip()]
    assert said.startswith("bash cat app/version returned: 1\n"), said


def test_a_csv_goes_in_and_a_report_comes_out(place: Place, tmp_path: Path) -> None:
    """`csv_in_report_out.py`, with a script in the place of its prompt."""
    place = place.adjusted(OUTPUTS_TO=f"file://{tmp_path}/results", IDLE_GRACE_SECONDS="0")
    sums = "awk -F, 'NR > 1 {s[$1] += $2} END {for (r in s) print r, s[r]}' sales.csv"
    script = f"$ mkdir -p outputs && {sums} | sort > outputs/report.csv"
    with web(tmp_path) as remote:
        remote.files["/sales.csv"] = b"region,amount\nnorth,2\nsouth,5\nnorth,3\n"
        environ = {
            "PATH": PATH,
            "ANTHROPIC_API_KEY": API_KEY,
            "ANTHROPIC_BASE_URL": place.world.claude.url,
            "ANTHROPIC_AGENT_ID": place.world.agent_id,
            "ANTHROPIC_ENVIRONMENT_ID": place.environment_id,
        }
        asked = [
            str(EXAMPLES / "csv_in_report_out.py"),
            f"{remote.url}/sales.csv",
            script,
        ]
        called = forked_run(["-I", *asked], env=environ)
        session_id = called.stdout.strip()
        report = tmp_path / "results" / names.canonical_session_id(session_id) / "files" / "report.csv"

        async def served() -> None:
            service = Service(place.settings)
            try:
                await service.drain()
                await asyncio.to_thread(place.wait_done, session_id)

                async def collected() -> bool:
                    await service.tick()
                    return report.exists()

                await until_async(collected)
            finally:
                await service.aclose()

        asyncio.run(served())
    assert report.read_text() == "north 5\nsouth 5\n"


def test_a_github_apps_token_is_for_one_repository_and_for_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "app.pem").write_bytes(key.private_bytes(*form))

    def signed_by_the_app(path: str, authorization: str) -> int | None:
        claims = jwt.decode(authorization.removeprefix("Bearer "), key.public_key(), ["RS256"])
        return None if claims["iss"] == "123" else 401

    with web(tmp_path) as github:
        github.files = {
            "/repos/team/app/installation": b'{"id": 7}',
            "/app/installations/7/access_tokens": b'{"token": "ghs-of-nobody"}',
        }
        github.guard = signed_by_the_app
        monkeypatch.setenv("GITHUB_APP_ID", "123")
        monkeypatch.setenv("GITHUB_APP_KEY_FILE", str(tmp_path / "app.pem"))
        monkeypatch.syspath_prepend(EXAMPLES)
        github_app = importlib.import_module("github_app")
        monkeypatch.setattr(github_app, "API", github.url)
        assert github_app.credential("https://github.com/team/app.git") == ("x-access-token", "ghs-of-nobody")
        assert github_app.credential("https://elsewhere.example/team/app") is None
        assert github.asked == ["GET /repos/team/app/installation", "POST /app/installations/7/access_tokens"]


def shell(command: str, **environ: str) -> int:
    return subprocess.run(
        ["sh", "-c", command], env={"PATH": PATH, **environ}, capture_output=True, timeout=100
    ).returncode


def test_the_crontabs_line_ticks(server: str, tmp_path: Path) -> None:
    (entry,) = [line for line in (EXAMPLES / "cron" / "crontab").read_text().splitlines() if not line.startswith("#")]
    *when, command = entry.split(maxsplit=5)
    assert len(when) == 5 and "%" not in command  # which cron takes for the end of a line
    settings = tmp_path / ".config" / "serverless-hands.env"
    settings.parent.mkdir()
    settings.write_text(f"FUNCTIONS_URL={server}\nFUNCTIONS_TOKEN={TOKEN}\n")
    assert shell(command, HOME=str(tmp_path)) == 0
    settings.write_text(f"FUNCTIONS_URL={server}\nFUNCTIONS_TOKEN=another\n")
    assert shell(command, HOME=str(tmp_path)) != 0


def test_the_workflow_ticks(server: str) -> None:
    workflow = yaml.safe_load((EXAMPLES / "cron" / "github-actions.yaml").read_text())
    (step,) = workflow["jobs"]["tick"]["steps"]
    assert set(step["env"]) == {"FUNCTIONS_TOKEN", "FUNCTIONS_URL"}
    assert workflow[True]["schedule"] == [{"cron": "*/5 * * * *"}]  # YAML reads `on` as a truth value
    assert shell(step["run"], FUNCTIONS_URL=server, FUNCTIONS_TOKEN=TOKEN) == 0
    assert shell(step["run"], FUNCTIONS_URL=server, FUNCTIONS_TOKEN="another") != 0


def test_the_scheduler_job_is_one_call_of_gcloud(tmp_path: Path) -> None:
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$@" > "$HOME/told"\n'
        'for each; do case $each in --flags-file=*) cat "${each#*=}" > "$HOME/flags";; esac; done\n'
    )
    gcloud.chmod(stat.S_IRWXU)
    script = EXAMPLES / "cron" / "cloud-scheduler.sh"
    environ = {"GCP_REGION": "europe-west1", "FUNCTIONS_URL": "https://f.example", "FUNCTIONS_TOKEN": "a token"}
    assert (
        shell(f"sh {shlex.quote(str(script))}", **{**environ, "PATH": f"{tmp_path}:{PATH}", "HOME": str(tmp_path)}) == 0
    )
    told = (tmp_path / "told").read_text().splitlines()
    assert "--uri=https://f.example/poll_tick" in told and not [each for each in told if "a token" in each]
    assert yaml.safe_load((tmp_path / "flags").read_text()) == {"--headers": "Authorization=Bearer a token"}
    checked = subprocess.run([Path(sys.executable).with_name("shellcheck"), script], capture_output=True, timeout=60)
    assert (checked.returncode, checked.stdout) == (0, b"")


def test_every_example_is_named_in_the_readme_and_run_here() -> None:
    readme = (EXAMPLES / "README.md").read_text()
    here = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for path in EXAMPLES.rglob("*"):
        if path.is_file() and path.name != "README.md" and "__pycache__" not in path.parts:
            folders = [folder for folder in path.relative_to(EXAMPLES).parents if folder != Path()]
            assert path.name in here or path.stem in here or any(f'"{each.name}"' in here for each in folders), path
            linked = [f"({path.relative_to(EXAMPLES)})", *(f"({each}/)" for each in folders)]
            assert any(each in readme for each in linked), path
