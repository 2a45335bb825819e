"""What of this machine a sandbox sees, read-only: its programs, its libraries, the project's own Python."""

from __future__ import annotations

import os
import py_compile
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from infra.local.tensorlake import inside
from infra.local.tensorlake.layers import AGENT_UID, VENV, Runtime

DAEMON = "/.sandbox"
"""Where the supervisor's program lies in an isolated sandbox."""
SYSTEM_DIRS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_SEALED = "python"
_COPY_SECONDS = 30
_ETC_FILES = (
    "bash.bashrc", "debian_version", "gai.conf", "host.conf", "hosts", "inputrc", "ld.so.cache", "ld.so.conf",
    "localtime", "mime.types", "nsswitch.conf", "os-release", "profile", "protocols", "resolv.conf",
    "services", "shells", "timezone",
)  # fmt: skip
_ETC_DIRS = ("alternatives", "ca-certificates", "fonts", "ld.so.conf.d", "pki", "profile.d", "ssl", "terminfo")
_PYVENV = "pyvenv.cfg"
_LOGIN_PATH = "\n# PATH of this sandbox\n"
_MOUNT_POINTS = ("usr", "proc", "dev", "etc")


@dataclass(frozen=True)
class Host:
    """Read-only binds as (path here, path in the sandbox), in mounting order."""

    python: Path
    """The interpreter the supervisor runs on, without any environment."""
    prefix: Path
    program: Path
    system_binds: tuple[str, ...]
    python_binds: tuple[tuple[str, str], ...]
    tool_binds: tuple[str, ...]
    """What of this machine its own tools need, such as the `cp` that flattens layers."""

    @classmethod
    def probe(cls, data_dir: Path) -> Host:
        program = data_dir / "program"
        # Compiled once: the interpreter would otherwise compile it at every start of a sandbox.
        for module in Path(inside.__path__[0]).glob("*.py"):
            compiled = program / "inside" / f"{module.stem}.pyc"
            py_compile.compile(str(module), cfile=str(compiled), doraise=True)
        python = Path(os.path.realpath(sys.executable))
        prefixes = dict.fromkeys([sys.base_prefix, os.path.realpath(sys.base_prefix), str(python.parents[1])])
        shown = [path for path in prefixes if not _below(path, "/usr")]
        config = _open_environment(data_dir)
        machine = ("/usr", *(f"/{name}" for name in SYSTEM_DIRS if _is_real_dir(Path("/", name))))
        return cls(
            python=python,
            prefix=Path(sys.prefix),
            program=program,
            system_binds=machine,
            python_binds=(*((path, path) for path in shown), (sys.prefix, VENV), *config, *_sealed_python(data_dir)),
            tool_binds=machine,
        )

    def supervise(self, program: str, launcher: int | None = None) -> list[str]:
        """The command that runs the supervisor, whose program lies in the directory `program`. `launcher` is the
        descriptor of a connection to who starts workers."""
        code = f"import sys; sys.path.insert(0, {program!r}); from inside.supervisor import main; main({launcher})"
        return [str(self.python), "-I", "-S", "-c", code]

    def skeleton(self, root: Path) -> None:
        """The directories and links that every root begins with, before an image's own files."""
        root.mkdir(parents=True, exist_ok=True)
        for name in _MOUNT_POINTS:
            (root / name).mkdir(exist_ok=True)
        for name in SYSTEM_DIRS:
            here = Path("/", name)
            if here.is_symlink():
                (root / name).symlink_to(here.readlink())
            elif here.is_dir():
                (root / name).mkdir(exist_ok=True)

    @property
    def image_root(self) -> str | None:
        """The folder whose programs sandboxes have; None for this machine's own."""
        return None

    def path(self, runtime: Runtime) -> str:
        """PATH of an isolated sandbox: the image's, behind the environment that stands in for the one that its RUN
        steps would have made."""
        return f"{VENV}/bin:{runtime.own_path}"

    def begin(self, root: Path, runtime: Runtime) -> None:
        """What lies in the agent's paths before an image's own files come."""

    def furnish(self, root: Path, runtime: Runtime) -> tuple[tuple[str, str], ...]:
        """Complete an image's root: host settings it did not bring, its user, mount points. Returns what must be bound
        into it, read-only, as (here, there)."""
        etc = root / "etc"
        self._fill_etc(etc)
        _set_login_path(etc / "profile", self.path(runtime))
        self._write_users(etc, runtime)
        for path in (*runtime.agent_paths, *(there for _, there in self.python_binds if not there.endswith(_PYVENV))):
            (root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
        (root / DAEMON.lstrip("/")).mkdir(exist_ok=True)
        return ()

    def _fill_etc(self, etc: Path) -> None:
        for name in _ETC_FILES:
            here = Path("/etc", name)
            if here.is_file() and not (etc / name).exists():
                shutil.copyfile(here, etc / name)
        for name in _ETC_DIRS:
            if Path("/etc", name).is_dir():
                (etc / name).mkdir(exist_ok=True)

    def _write_users(self, etc: Path, runtime: Runtime) -> None:
        for name, lines in users(runtime).items():
            (etc / name).write_text("\n".join([*lines, ""]))

    def etc_binds(self, system: Path) -> list[str]:
        """Host directories below /etc, except those an image fills itself."""
        wanted = (Path("/etc", name) for name in _ETC_DIRS)
        there = [path for path in wanted if path.is_dir() and (system / "etc" / path.name).is_dir()]
        return [str(path) for path in there if not any((system / "etc" / path.name).iterdir())]


def users(runtime: Runtime) -> dict[str, list[str]]:
    """The lines of `passwd` and `group` that every sandbox has."""
    user = runtime.user
    passwd = [f"{user}:x:{AGENT_UID}:{AGENT_UID}:{user}:{runtime.home}:/bin/bash"]
    group = [f"{user}:x:{AGENT_UID}:"]
    if user != "root":
        passwd.insert(0, "root:x:0:0:root:/root:/bin/bash")
        group.insert(0, "root:x:0:")
    passwd.append("nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin")
    return {"passwd": passwd, "group": [*group, "nogroup:x:65534:"]}


def _open_environment(data_dir: Path) -> list[tuple[str, str]]:
    """The bind of a pyvenv.cfg that lets the environment see packages of the user's own: the environment itself is
    read-only in a sandbox, so `pip install` has to put them into the home directory."""
    here = Path(sys.prefix, _PYVENV)
    if not here.is_file():
        return []
    lines = [line for line in here.read_text().splitlines() if not line.startswith("include-system-site-packages")]
    data_dir.mkdir(parents=True, exist_ok=True)
    ours = data_dir / _PYVENV
    ours.write_text("\n".join([*lines, "include-system-site-packages = true", ""]))
    return [(str(ours), f"{VENV}/{_PYVENV}")]


def _sealed_python(data_dir: Path) -> list[tuple[str, str]]:
    """The bind of the environment's programs with a `python` that may be run and not read, as an image has it: Linux
    hides a process of such a program from other processes of its user, from its first instruction on. None where a
    copy of this interpreter does not run."""
    environment = data_dir / "sealed"
    programs = environment / "bin"
    shutil.rmtree(environment, ignore_errors=True)
    programs.mkdir(parents=True)
    real = os.path.realpath(sys.executable)
    sealed = programs / _SEALED
    shutil.copyfile(real, sealed)
    sealed.chmod(0o111)
    for name in ("python3", f"python3.{sys.version_info.minor}"):
        (programs / name).symlink_to(real)
    home = f"home = {Path(real).parent}\n"
    (environment / _PYVENV).write_text(home)
    try:
        subprocess.run([sealed, "-I", "-c", "import ssl"], check=True, capture_output=True, timeout=_COPY_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return []
    return [(str(programs), f"{VENV}/bin")]


def _set_login_path(profile: Path, path: str) -> None:
    """A login shell sets the distribution's PATH first and so would lose the sandbox's."""
    text = profile.read_text(errors="surrogateescape") if profile.is_file() else ""
    text = text.partition(_LOGIN_PATH)[0]  # an image's parent has had its own
    profile.unlink(missing_ok=True)
    profile.write_text(f"{text}{_LOGIN_PATH}export PATH={shlex.quote(path)}\n", errors="surrogateescape")


def _below(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top}/")


def _is_real_dir(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
