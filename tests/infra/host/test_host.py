"""Dockerfile, compose file and systemd units: as far as they can be tried without Docker and without systemd."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import pytest
import yaml

from functions.server.descriptors import ENOUGH
from tests.infra.knative.test_manifests import container
from tests.support.checkout import ROOT
from tests.support.serving import TOKEN, serving
from tests.support.signing import KEY
from tests.support.world import Place

FOLDER = ROOT / "infra" / "host"
UNITS = ("serverless-hands.service", "serverless-hands-poll.service")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def instructions(name: str) -> list[str]:
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.partition(" ")[2] for line in joined.splitlines() if line.startswith(f"{name} ")]


def test_hadolint_accepts_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_pinned_byte_compiled_and_not_roots() -> None:
    runs = " ".join(instructions("RUN"))
    assert "--require-hashes" in runs and "--compile" in runs and "compileall" in runs
    assert instructions("USER") == [
        "10001",
        "0",
        "10001",
    ]  # the stage with the page installs as 0, and runs as the other
    copied = {part for line in instructions("COPY") for part in line.split()[:-1] if not part.startswith("--from")}
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    for path in copied - {"/opt/hands/venv"}:
        assert (ROOT / path).exists(), path
        assert any(path == line[1:] or path.startswith(f"{line[1:]}/") for line in ignored if line.startswith("!")), (
            path
        )


def test_the_images_command_serves_a_session_with_exactly_the_manifests_environment(
    place: Place, tmp_path: Path
) -> None:
    for line in instructions("COPY"):
        parts = line.split()
        if len(parts) == 2 and parts[1].startswith("/opt/hands/"):
            origin, target = ROOT / parts[0], tmp_path / parts[1].removeprefix("/opt/hands/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if origin.is_dir():
                shutil.copytree(origin, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(origin, target)
    shell, flag, text = json.loads(instructions("CMD")[0])
    assert (shell, flag) == ("/bin/sh", "-c")
    words = shlex.split(text.replace("$PORT", "{port}").replace("0.0.0.0", "127.0.0.1"))
    assert words[:2] == ["exec", "/opt/hands/venv/bin/python"]
    secrets = {"ANTHROPIC_WEBHOOK_SIGNING_KEY": KEY, "FUNCTIONS_TOKEN": TOKEN, **place.environ}
    manifest = {
        entry["name"]: entry.get("value", secrets.get(entry["name"])) for entry in container("service.yaml")["env"]
    }
    offline = {name: place.environ[name] for name in place.environ if name.endswith(("_URL", "_SECONDS"))}
    environ = {**offline, **manifest, "ANTHROPIC_ENVIRONMENT_ID": place.environment_id, "PORT": "{port}"}
    with serving(place, [*words[2:], "--app-dir", str(tmp_path)], exactly=environ) as url:
        session = place.session("$ echo served by a container")
        answer = httpx2.post(
            f"{url}/poll_tick", headers={"authorization": f"Bearer {TOKEN}"}, timeout=90, trust_env=False
        )
        assert answer.status_code == 200
        place.wait_done(session)


COMPOSE: dict[str, Any] = {
    "type": "object",
    "required": ["services"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]*$"},
        "services": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "build": {"type": "object", "required": ["context"]},
                    "image": {"type": "string"},
                    "env_file": {"type": "array", "items": {"type": "object", "required": ["path"]}},
                    "environment": {"type": "object", "additionalProperties": {"type": "string"}},
                    "ports": {"type": "array", "items": {"type": "string", "pattern": r"^127\.0\.0\.1:\d+:\d+$"}},
                    "restart": {"enum": ["no", "always", "on-failure", "unless-stopped"]},
                    "stop_grace_period": {"type": "string", "pattern": r"^\d+s$"},
                    "read_only": {"type": "boolean"},
                    "tmpfs": {"type": "array"},
                    "cap_drop": {"type": "array"},
                    "security_opt": {"type": "array"},
                    "mem_limit": {"type": "string"},
                    "pids_limit": {"type": "integer"},
                    "healthcheck": {"type": "object", "required": ["test"]},
                },
            },
        },
    },
}


def test_the_compose_file_has_known_fields_and_agrees_with_the_image() -> None:
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
    jsonschema.validate(compose, COMPOSE)
    service = compose["services"]["functions"]
    assert (FOLDER / service["build"]["context"]).resolve() == ROOT
    assert (FOLDER / service["env_file"][0]["path"]).resolve() == ROOT / ".env"
    port = service["environment"]["PORT"]
    assert service["ports"][0].endswith(f":{port}")
    assert f"127.0.0.1:{port}/healthz" in service["healthcheck"]["test"][-1]
    assert service["healthcheck"]["test"][1] in DOCKERFILE


def unit(name: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # systemd's names have capitals
    parser.read(FOLDER / name, encoding="utf-8")
    return parser


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_is_confined_restarts_and_gives_a_drain_time_to_end(name: str) -> None:
    service = unit(name)["Service"]
    assert service["DynamicUser"] == "yes" and service["NoNewPrivileges"] == "yes"
    assert service["Restart"] == "always"
    assert service["EnvironmentFile"].startswith("/etc/")
    assert int(service["TimeoutStopSec"]) > 110 and service["KillMode"] == "mixed"
    text = (FOLDER / name).read_text(encoding="utf-8")
    loaded = dict(re.findall(r"^LoadCredential=([a-z-]+):(\S+)$", text, re.MULTILINE))
    given = dict(re.findall(r"^Environment=([A-Z_]*(?:KEY|TOKEN))=(.*)$", text, re.MULTILINE))
    assert given == {each.upper().replace("-", "_"): f"file:%d/{each}" for each in loaded}
    assert {"ANTHROPIC_ENVIRONMENT_KEY", "TENSORLAKE_API_KEY"} <= given.keys()
    assert len(re.findall(r"(?:KEY|TOKEN)=", text)) == len(given)
    assert service["PrivateUsers"] == "yes" and int(service["LimitNOFILE"]) > ENOUGH


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
@pytest.mark.parametrize("name", UNITS)
def test_systemds_own_measure_of_exposure_is_low(name: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", FOLDER / name],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-400:]  # fails above 1.5 of 10


@pytest.mark.parametrize("name", UNITS)
def test_a_units_command_is_one_that_there_is(name: str) -> None:
    python, *arguments = shlex.split(unit(name)["Service"]["ExecStart"])
    assert python == "/opt/serverless-hands/.venv/bin/python"
    done = subprocess.run(
        [sys.executable, *arguments, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    for option in (part for part in arguments if part.startswith("--")):
        assert option in done.stdout


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_nothing_to_say_about_a_unit(name: str, tmp_path: Path) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    (tmp_path / name).write_text(text.replace("/opt/serverless-hands/.venv/bin/python", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / name)], capture_output=True, text=True, timeout=60, check=False
    )
    assert [line for line in done.stderr.splitlines() if name in line] == []
