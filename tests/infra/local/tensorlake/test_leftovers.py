"""Whatever ends the platform, nothing of it stays behind; and who may run it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import pytest
from tensorlake.sandbox import Sandbox

from infra.local.process import RunningService, ServiceStartError
from tests.infra.local.tensorlake.conftest import KEY, Services, service_of
from tests.support.checkout import ROOT
from tests.support.preloaded import forked_service
from tests.support.waiting import until

LEVELS = ["overlay", "copy", "plain"]


def processes_with(marker: str) -> list[str]:
    """Command lines on this machine that carry a marker (sandboxes are visible from outside)."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit() and int(directory.name) != os.getpid():
            try:
                line = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if marker in line:
                found.append(line)
    return found


def busy(service: RunningService, marker: str) -> None:
    """Sandboxes with processes of every kind: plain, in another session, frozen, ignoring signals."""
    sdk: dict[str, Any] = {"api_url": service.url, "api_key": KEY}
    for number in range(2):
        sandbox = Sandbox.create(name=f"busy-{number}", **sdk)
        script = f"trap '' TERM HUP INT; (setsid sleep {marker} &); sleep {marker}; sleep {marker}"
        sandbox.start_process("sh", ["-c", script])
        until(lambda: len(processes_with(f"sleep {marker}")) >= 3)
    sandbox.suspend()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at /proc")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_nothing_outlives_the_platform(services: Services, level: str, how: str, tmp_path: Path) -> None:
    service_of(services, level)
    marker = str(9_000_000 + os.getpid() * 10 + LEVELS.index(level))
    service = forked_service("infra.local.tensorlake", ["--isolation", level, "--data-dir", str(tmp_path)])
    try:
        busy(service, marker)
    finally:
        code = service.stop() if how == "stop" else service.kill()
    until(lambda: processes_with(marker) == [], "its processes live on")
    if how == "stop":
        assert code == 0 and list(tmp_path.iterdir()) == []
        return
    # A kill leaves the directory, and the next start on it sweeps it up.
    assert len(list(tmp_path.iterdir())) == 1
    with forked_service("infra.local.tensorlake", ["--isolation", level, "--data-dir", str(tmp_path)]):
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


def test_two_platforms_share_a_data_directory_in_peace(tmp_path: Path) -> None:
    arguments = ["--data-dir", str(tmp_path)]
    with forked_service("infra.local.tensorlake", arguments) as one:
        with forked_service("infra.local.tensorlake", arguments):
            assert len(list(tmp_path.iterdir())) == 2
        sandbox = Sandbox.create(api_url=one.url, api_key=KEY)
        assert sandbox.run("echo", ["still here"]).stdout == "still here"


def test_a_restricted_platform_takes_only_its_key() -> None:
    with forked_service("infra.local.tensorlake", env={"OFFLINE_TENSORLAKE_API_KEY": KEY}) as service:
        assert list(Sandbox.list(api_url=service.url, api_key=KEY)) == []
        with pytest.raises(Exception, match="401"):
            Sandbox.list(api_url=service.url, api_key="another")


def test_a_taken_port_is_a_clear_error(services: Services) -> None:
    port = services("auto").url.rpartition(":")[2]
    with pytest.raises(ServiceStartError, match=f"port {port} is in use"):
        forked_service("infra.local.tensorlake", ["--port", port])


def test_a_folder_that_cannot_be_used_is_one_line_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "below"
    with pytest.raises(ServiceStartError, match=rf"cannot live in {folder}: .*--data-dir") as caught:
        forked_service("infra.local.tensorlake", ["--data-dir", str(folder)])
    assert "Traceback" not in str(caught.value)


def test_the_plain_level_says_that_it_is_not_isolated(services: Services) -> None:
    report = services("plain").ready["isolation"]
    assert report["isolated"] is False and "not isolated" in report["summary"]


SCRIPT = """
import sys
from pathlib import Path
from infra.local.process import start_service
from tensorlake.sandbox import Sandbox
for level in sys.argv[2:]:
    with start_service("infra.local.tensorlake", ["--isolation", level, "--data-dir", sys.argv[1]]) as service:
        sdk = dict(api_url=service.url, api_key="k")
        sandbox = Sandbox.create(name="mine", **sdk)
        sandbox.write_file("/workspace/f", b"x")
        snapshot = sandbox.checkpoint(poll_interval=0.05)
        child = Sandbox.create(name="child", snapshot_id=snapshot.snapshot_id, **sdk)
        print(child.run("sh", ["-c", "cat f; rm f; mkdir d; echo; id -u"]).stdout.split())
    print(list(Path(sys.argv[1]).iterdir()))
"""


@pytest.fixture(scope="module")
def said(services: Services) -> dict[str, list[str]]:
    """What the script says of each level that works here, run by an ordinary user."""
    root = str(ROOT)
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    python = reachable_python(become)
    if python is None:
        pytest.skip("no interpreter here can be run by another user")
    if subprocess.run([*become, "ls", root], capture_output=True, check=False).returncode:
        pytest.skip("another user cannot read this checkout")
    levels = []
    for level in ("overlay", "copy"):
        with contextlib.suppress(pytest.skip.Exception):
            service_of(services, level)
            levels.append(level)
    with tempfile.TemporaryDirectory() as data:
        os.chown(data, 65534, 65534)
        done = subprocess.run(
            [*become, python, "-c", SCRIPT, data, *levels],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=root,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": f"{root}:{sysconfig.get_path('purelib')}",
                "HOME": data,
            },
        )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return {level: lines[2 * number : 2 * number + 2] for number, level in enumerate(levels)}


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="needs root to become somebody else")
@pytest.mark.parametrize("level", ["overlay", "copy"])
def test_an_ordinary_user_can_run_it(services: Services, said: dict[str, list[str]], level: str) -> None:
    service_of(services, level)
    assert said[level] == ["['x', '1000']", "[]"]


def reachable_python(become: list[str]) -> str | None:
    """This interpreter or the machine's of the same version, whichever the other user can start."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, shutil.which(version, path="/usr/bin:/usr/local/bin")):
        if python is not None:
            code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'pass'], check=True)"
            if subprocess.run([*become, python, "-c", code], capture_output=True, check=False).returncode == 0:
                return python
    return None
