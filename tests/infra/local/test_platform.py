"""The offline platform as one thing: started, used, stopped, killed; and its commands, `make up` and `make demo`."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx2
import pytest

from infra.local import discovery
from infra.local.admin_client import AdminClient
from infra.local.platform import TENSORLAKE_ADMIN, Options, Platform
from infra.local.process import RunningService, ServiceStartError
from shared.settings import Settings
from tests.support.checkout import ROOT, copy_checkout
from tests.support.demos import play_demo
from tests.support.preloaded import Preloaded, forked_service
from tests.support.waiting import PATIENCE, until

CLAUDE, SANDBOXES = "ANTHROPIC_BASE_URL", "TENSORLAKE_API_URL"


def answers(url: str) -> bool:
    try:
        httpx2.get(url, timeout=2.0, trust_env=False)
    except httpx2.HTTPError:
        return False
    return True


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform(start_service=forked_service) as running:
        yield running


def test_its_variables_are_complete_settings_and_point_at_this_machine(platform: Platform) -> None:
    settings = Settings.from_environ(platform.environ)
    assert (settings.anthropic_url, settings.tensorlake_url) == platform.urls
    assert len(settings.environments) == len(settings.signing_keys) == 1
    assert settings.functions_token is not None
    assert all(url.startswith("http://127.0.0.1:") for url in platform.urls)


def test_every_start_has_keys_of_its_own(platform: Platform) -> None:
    with Platform(Options(build_image=False), forked_service) as other:
        secret = {name for name in other.environ if name.endswith(("_KEY", "_TOKEN"))}
        assert len(secret) == 7
        assert [name for name in secret if other.environ[name] == platform.environ[name]] == []
        assert set(other.urls).isdisjoint(platform.urls)
        used_elsewhere = httpx2.get(
            f"{other.urls[0]}/v1/agents",
            headers={"authorization": f"Bearer {platform.keys.api}", "anthropic-beta": "managed-agents-2026-04-01"},
            trust_env=False,
        )
        assert used_elsewhere.status_code == 401


def test_the_session_image_is_registered_and_holds_the_worker(platform: Platform) -> None:
    import tensorlake.sandbox as sdk

    options = {"api_url": platform.urls[1], "api_key": platform.keys.sandboxes}
    with sdk.Sandbox.create(image=platform.environ["SANDBOX_IMAGE_NAME"], **options) as sandbox:
        found = sandbox.run("sh", ["-c", "ls /opt/hands/worker-*.pyz && id -un && pwd"])
    assert found.exit_code == 0
    assert found.stdout.split()[1:] == ["agent", "/workspace"]


def test_a_stopped_platform_leaves_no_service_and_stops_only_once() -> None:
    with Platform(Options(build_image=False), forked_service) as running:
        pids = [service.pid for service in running._services]
        urls = running.urls
        assert running.alive()
    running.stop()
    assert not running.alive()
    assert not [url for url in urls if answers(url)]
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize("side", ["claude_port", "tensorlake_port"])
def test_a_taken_port_is_a_clear_error_and_nothing_is_started(side: str) -> None:
    def start(*_: object) -> RunningService:
        raise AssertionError("a service is started")

    with taken_port() as port, pytest.raises(ServiceStartError, match=f"port {port} is in use"):
        Platform(Options(**{side: port}), start).__enter__()  # type: ignore[arg-type]


def test_a_service_that_cannot_start_takes_the_other_one_along(tmp_path: Path) -> None:
    started: list[RunningService] = []

    def start(*arguments: Any) -> RunningService:
        started.append(forked_service(*arguments))
        return started[-1]

    with pytest.raises(ServiceStartError, match="nowhere"):
        Platform(Options(image_root=tmp_path / "nowhere", build_image=False), start).__enter__()
    (claude,) = started
    assert claude.returncode is not None and not answers(claude.url)


def test_options_reach_the_services() -> None:
    options = Options(
        build_image=False,
        lease_ttl=7.0,
        startup_lease=3.0,
        claude={"think_seconds": 0.25},
        tensorlake={"create_seconds": 0.5},
        latency=0.01,
        reclaim=6.0,
        stranded=9.0,
        isolation="plain",
    )
    with Platform(options, forked_service) as running:
        claude = running.claude.get("settings")
        assert (claude["lease_ttl"], claude["startup_lease"], claude["think_seconds"]) == (7.0, 3.0, 0.25)
        assert running.tensorlake.get("settings")["create_seconds"] == 0.5
        assert running.claude.get("latency")["rules"][0]["seconds"] == 0.01
        assert running.tensorlake.get("latency")["rules"][0]["seconds"] == 0.01
        assert running.isolation["level"] == "plain" and not running.isolation["isolated"]
        times = Settings.from_environ({**running.environ, "DRAIN_DEADLINE_SECONDS": "20"}).times
        assert (times.reclaim, times.stranded) == (6.0, 9.0)


# ------------------------------------------------------------------------------------------------ the two commands


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of its own, so that `make up` here never meets one that the developer runs."""
    return copy_checkout(tmp_path)


class Up:
    """`python -m infra.local` in a checkout."""

    def __init__(self, checkout: Path, *args: str) -> None:
        self.process = Preloaded(
            ["-m", "infra.local", *args],
            cwd=checkout,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.said: list[str] = []
        self._errors: str | None = None
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self.said.append(line)

    @property
    def text(self) -> str:
        return "".join(self.said)

    def started(self) -> bool:
        return until(lambda: "make session PROMPT" in self.text or self.process.poll() is not None)

    def url(self, variable: str) -> str:
        side = {CLAUDE: "Claude Managed Agents side", SANDBOXES: "Tensorlake sandboxes side"}[variable]
        return next(line.split()[-1] for line in self.said if side in line)

    def end(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self._reader.join(5)
        if self._errors is None:
            assert self.process.stderr is not None
            with self.process.stderr as stream:
                self._errors = stream.read()
        return code, self._errors


@contextlib.contextmanager
def up(checkout: Path, *args: str) -> Iterator[Up]:
    command = Up(checkout, *args)
    try:
        yield command
    finally:
        command.end(signal.SIGKILL)


def children_of(parent: int, *words: str) -> list[int]:
    """Live processes whose parent is this one and whose command line has all these words."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if int(status[1]) == parent and status[0] != "Z" and all(word in command for word in words):
                found.append(int(entry.name))
    return found


@dataclass(frozen=True)
class Copies:
    """Two that ran side by side until ctrl-C: as one likes, and with plain processes."""

    usual: Up
    plain: Up
    variables: Mapping[str, Mapping[str, str]]  # while both ran, by file
    modes: Collection[int]
    knobs: Mapping[str, Any]  # of the usual one's sandboxes
    ends: Collection[tuple[int, str]]
    left: Collection[Path]


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Copies:
    checkout = copy_checkout(tmp_path_factory.mktemp("copies"))
    with up(checkout) as usual, up(checkout, "--isolation", "plain") as plain:
        assert usual.started() and plain.started()
        files = [*discovery.default_file(checkout).parent.iterdir()]
        variables = {path.name: discovery.read_if_running(path) or {} for path in files}
        modes = {path.stat().st_mode & 0o777 for path in files}
        (admin,) = (each[TENSORLAKE_ADMIN] for each in variables.values() if each[SANDBOXES] == usual.url(SANDBOXES))
        knobs = AdminClient(usual.url(SANDBOXES), admin).get("settings")
        ends = [usual.end(), plain.end()]
        return Copies(usual, plain, variables, modes, knobs, ends, [*files[0].parent.iterdir()])


def test_up_says_where_it_is_and_ctrl_c_ends_everything_with_a_calm_line(copies: Copies) -> None:
    assert copies.modes == {0o600}
    said = copies.usual.text
    urls = {name: copies.usual.url(name) for name in (CLAUDE, SANDBOXES)}
    (variables,) = (each for each in copies.variables.values() if each.items() >= urls.items())
    assert not [key for name, key in variables.items() if name.endswith("_KEY") and key in said]
    assert "separate root" in said or "NOT ISOLATED" in said
    assert copies.knobs["build_log_seconds"] > 0  # whoever builds an image is told what is not executed
    assert [*copies.ends] == [(0, "")] * 2
    assert copies.usual.said[-1].startswith("Stopping the offline platform")
    assert [*copies.left] == []
    assert not [url for url in urls.values() if answers(url)]


def test_plain_processes_are_called_not_isolated_in_capitals(copies: Copies) -> None:
    assert "*** NOT ISOLATED ***" in copies.plain.text


def test_two_copies_run_side_by_side_each_with_its_file(copies: Copies) -> None:
    assert sorted(copies.variables) == ["offline-2.env", "offline.env"]
    assert len({each["ANTHROPIC_BASE_URL"] for each in copies.variables.values()}) == 2
    pair = (copies.usual, copies.plain)
    assert sum("HANDS_OFFLINE_ENV=.hands/offline-2.env" in each.text for each in pair) == 1
    files = {re.findall(r"^  HANDS_OFFLINE_ENV=(/\S+)", each.text, re.MULTILINE)[0] for each in pair}
    assert {Path(each).name for each in files} == copies.variables.keys()


def test_a_killed_up_takes_its_services_with_it_and_its_file_counts_for_nothing(checkout: Path) -> None:
    with up(checkout) as command:
        assert command.started()
        services = children_of(command.process.pid, "infra.local")
        assert len(services) == 2
        command.end(signal.SIGKILL)
        until(lambda: not [pid for pid in services if Path(f"/proc/{pid}").exists()])
    assert discovery.find_running(checkout) is None


@pytest.mark.parametrize("side", ["--claude-port", "--tensorlake-port"])
def test_up_with_a_taken_port_says_so_and_exits_with_2(checkout: Path, side: str) -> None:
    with taken_port() as port, up(checkout, side, str(port)) as command:
        command.process.wait(PATIENCE)
        code, errors = command.end()
    assert code == 2
    assert f"port {port} is in use" in errors and "Traceback" not in errors


def test_a_service_that_dies_ends_up_with_an_error(checkout: Path) -> None:
    with up(checkout) as command:
        assert command.started()
        (claude,) = children_of(command.process.pid, "infra.local.claude")
        os.kill(claude, signal.SIGKILL)
        until(lambda: command.process.poll() is not None)
        code, errors = command.end()
    assert code == 1
    assert "ended by itself" in errors


def test_the_demo_shows_a_session_from_start_to_end_and_leaves_nothing() -> None:
    def left() -> set[Path]:
        return {*discovery.default_file(ROOT).parent.glob("*")}

    before = left()
    other = {"ANTHROPIC_API_KEY": "sk-ant-not-used", "ENVIRONMENTS_FILE": "/nowhere", "NO_COLOR": "1"}
    done = play_demo("session", environ={**os.environ, **other})
    assert done.exit_code == 0, done.stderr
    lines = iter(done.stdout.splitlines())
    for wanted in ("· running", "· thinking", "→ write  hello.txt", "→ read  hello.txt", "← hi", "· done", "Shown: "):
        assert any(line.startswith(wanted) for line in lines), f"{wanted!r} is missing or out of order"
    assert "\x1b" not in done.stdout
    assert left() == before
