"""A Linux root in a folder: programs run in it by chroot, in mount and pid namespaces of their own.

Needs root. Nothing here keeps a program in: what runs is the project's own Dockerfiles and worker.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from infra.local.tensorlake.layers import DEFAULT_PATH
from shared.texts import printable

_NEEDED: Final = ("unshare", "chroot", "mount", "cp")
_CERTIFICATES: Final = "/run/image-check-certificates.pem"
_PASSED_ON: Final = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_DEFAULT_TIMEOUT")
_PROXIES: Final = ("http_proxy", "https_proxy", "no_proxy")
_ENTER: Final = """
set -e
mount --make-rprivate /
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
root=$1 user=$2 folder=$3
shift 3
exec chroot --userspec="$user" "$root" /bin/sh -c 'cd "$0" && exec "$@"' "$folder" "$@"
"""


_PIP_ALONE: Final = """
set -e
python3 -m venv /tmp/alone
/tmp/alone/bin/pip download --quiet --no-deps --dest /tmp/alone pip
"""


class CannotCheck(Exception):
    """This machine does not let anybody do it; the text says why."""


def require() -> None:
    """Raises CannotCheck."""
    if os.geteuid() != 0:
        raise CannotCheck("it needs root: chroot, mounts and files of other users")
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        raise CannotCheck(f"these programs are missing: {', '.join(missing)}")
    tried = subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True)
    if tried.returncode != 0:
        raise CannotCheck(f"no mount and pid namespaces here: {tried.stderr.strip()}")


def bootstrap(target: Path, suite: str, mirror: str) -> None:
    """A small Debian with its own Python stands in for the base image, which a registry has. Raises CannotCheck."""
    if shutil.which("mmdebstrap") is None:
        raise CannotCheck("mmdebstrap is missing (apt-get install mmdebstrap), and no --base was given")
    packages = "--include=python3,python3-venv,ca-certificates"
    made = subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", packages, suite, str(target), mirror],
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    if made.returncode != 0:
        raise CannotCheck(f"no {suite} came from {mirror} (--mirror names another): {printable(made.stderr[-300:])}")


@dataclass(frozen=True, slots=True)
class Root:
    """directory: an absolute path without a link in it."""

    directory: Path

    @classmethod
    def copied(cls, base: Path, target: Path) -> Root:
        subprocess.run(["cp", "-a", "--reflink=auto", "--", str(base), str(target)], check=True)
        for name in ("resolv.conf", "hosts"):
            if Path("/etc", name).exists():
                shutil.copyfile(Path("/etc", name), target / "etc" / name)
        python = target / "usr/local/bin/python"
        if not python.is_symlink() and not python.exists():
            python.symlink_to("/usr/bin/python3")  # as the images of Python have it
        return cls(target)

    def kept(self, target: Path) -> None:
        """A copy that stays."""
        subprocess.run(["cp", "-a", "--reflink=auto", "--", str(self.directory), str(target)], check=True)

    def command(self, argv: Sequence[str], *, user: str = "root", folder: str = "/") -> list[str]:
        """What runs `argv` in here. It ends with whoever started it."""
        enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c", _ENTER, "enter"]
        return [*enter, str(self.directory), user, folder, *argv]

    def run(
        self, argv: Sequence[str], *, env: Mapping[str, str], user: str = "root", folder: str = "/", **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Both outputs together, as text. The time is bounded by the caller."""
        return subprocess.run(
            self.command(argv, user=user, folder=folder),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            **options,
        )

    def ids(self, owner: str) -> tuple[int, int]:
        """User and group of `user:group` by this root's own tables; of `user`, the user's group."""
        user, _, group = owner.partition(":")
        users = {line.split(":")[0]: line.split(":") for line in self._table("passwd")}
        groups = {line.split(":")[0]: line.split(":") for line in self._table("group")}
        uid = int(user) if user.isdigit() else int(users[user][2])
        if not group:
            return uid, int(users[user][3]) if user in users else uid
        return uid, int(group) if group.isdigit() else int(groups[group][2])

    def within(self, path: str) -> Path:
        return self.directory / path.lstrip("/")

    def ways_out(self) -> dict[str, str]:
        """Variables by which pip finds this machine's index, as the caller's environment says. No image keeps them."""
        found = {name: os.environ[name] for name in _PASSED_ON if os.environ.get(name)}
        for name in _PROXIES:
            found.update({each: os.environ[each] for each in (name, name.upper()) if os.environ.get(each)})
        certificates = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
        if certificates and Path(certificates).is_file():
            shutil.copyfile(certificates, self.within(_CERTIFICATES))
            found["PIP_CERT"] = _CERTIFICATES
        return found

    def _table(self, name: str) -> list[str]:
        return self.within(f"/etc/{name}").read_text().splitlines()


def require_packages(base: Path, place: Path) -> None:
    """Raises CannotCheck where pip in such a root finds no index: each step that installs would fail for this machine's
    sake alone."""
    root = Root.copied(base, place / "alone")
    try:
        tried = root.run(["/bin/sh", "-c", _PIP_ALONE], env={"PATH": DEFAULT_PATH, "HOME": "/root", **root.ways_out()})
    finally:
        shutil.rmtree(root.directory)
    if tried.returncode != 0:
        raise CannotCheck(f"pip finds no index from inside a root (PIP_*): {printable(tried.stdout[-300:])}")
