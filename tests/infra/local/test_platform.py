"""The offline platform as one thing: started, used, stopped, killed; and its commands, `make up` and `make demo`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import httpx2
import pytest

from infra.local import discovery
from infra.local.admin_client import AdminClient
from infra.local.platform import TENSORLAKE_ADMIN, Options, Platform
from infra.local.process import ServiceStartError
from shared.settings import Settings
from tests.support.checkout import ROOT, copy_checkout
from tests.support.demos import play_demo
from tests.support.preloaded import Preloaded, forked_service
from tests.support.waiting import PATIENCE, until


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
    with Platform(Options(build_image=False)) as running:
        pids = [service.pid for service in running._services]
        urls = running.urls
        assert running.alive()
    running.stop()
    assert not running.alive()
    assert not [url for url in urls if answers(url)]
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_a_taken_port_is_a_clear_error_and_the_other_service_ends_too(tmp_path: Path) -> None:
    with taken_port() as port, pytest.raises(ServiceStartError, match=f"port {port} is in use"):
        Platform(Options(tensorlake_port=port, data_dir=tmp_path, build_image=False)).__enter__()
    assert children_of(os.getpid(), "infra.local.claude", str(tmp_path)) == []


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

    def url(self, side: str) -> str:
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


def test_up_says_where_it_is_and_ctrl_c_ends_everything_with_a_calm_line(checkout: Path) -> None:
    with up(checkout) as command:
        assert command.started()
        file = discovery.default_file(checkout)
        assert file.stat().st_mode & 0o777 == 0o600
        variables = discovery.read_if_running(file)
        assert variables is not None
        claude, tensorlake = command.url("Claude Managed Agents side"), command.url("Tensorlake sandboxes side")
        assert (variables["ANTHROPIC_BASE_URL"], variables["TENSORLAKE_API_URL"]) == (claude, tensorlake)
        assert not [key for name, key in variables.items() if name.endswith("_KEY") and key in command.text]
        assert "separate root" in command.text or "NOT ISOLATED" in command.text
        knobs = AdminClient(tensorlake, variables[TENSORLAKE_ADMIN]).get("settings")
        assert knobs["build_log_seconds"] > 0  # whoever builds an image is told what is not executed
        code, errors = command.end()
    assert (code, errors) == (0, "")
    assert command.said[-1].startswith("Stopping the offline platform")
    assert not file.exists()
    assert not answers(claude) and not answers(tensorlake)


def test_plain_processes_are_called_not_isolated_in_capitals(checkout: Path) -> None:
    with up(checkout, "--isolation", "plain") as command:
        assert command.started()
        assert "*** NOT ISOLATED ***" in command.text


def test_a_killed_up_takes_its_services_with_it_and_its_file_counts_for_nothing(checkout: Path) -> None:
    with up(checkout) as command:
        assert command.started()
        services = children_of(command.process.pid, "infra.local")
        assert len(services) == 2
        command.end(signal.SIGKILL)
        until(lambda: not [pid for pid in services if Path(f"/proc/{pid}").exists()])
    assert discovery.find_running(checkout) is None


def test_two_copies_run_side_by_side_each_with_its_file(checkout: Path) -> None:
    with up(checkout) as first, up(checkout) as second:
        assert first.started() and second.started()
        folder = discovery.default_file(checkout).parent
        assert sorted(path.name for path in folder.iterdir()) == ["offline-2.env", "offline.env"]
        both = [discovery.read_if_running(path) for path in folder.iterdir()]
        assert len({(found or {}).get("ANTHROPIC_BASE_URL") for found in both}) == 2
        assert sum("HANDS_OFFLINE_ENV=.hands/offline-2.env" in command.text for command in (first, second)) == 1
        assert first.end()[0] == second.end()[0] == 0
    assert list(folder.iterdir()) == []


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
