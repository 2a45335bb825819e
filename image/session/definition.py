"""The image that session sandboxes are made from.

`build` registers it with the service through `tensorlake.image`: from a context directory that this module fills,
with a Dockerfile in it, since `tensorlake.Image` knows no USER step and tools must not run as root by default.
`session_image` gives the same steps, USER apart, as an `Image` to build on.

In the image: the worker at a path that its content names and its Python environment from a hashed lock, both
root's; a user `agent` with a home, for the worker and the tools; the workdir, optionally with a repository in it; the
state directory and a place for memory stores, both the agent's.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

from image.session.archive import build_archive, digest
from image.session.claim import AGENT_USER, DEFAULT_WORKDIR, STATE_DIRECTORY, WORKER_DIRECTORY, worker_path

if TYPE_CHECKING:
    from tensorlake.image import Image

DEFAULT_BASE: Final = "python:3.13-slim-trixie"  # any Debian or Ubuntu with Python 3.11 or newer will do
DEFAULT_NAME: Final = "agent-cli"
MEMORY_DIRECTORY: Final = "/mnt/memory"

_BASE_VARIABLE: Final = "SANDBOX_IMAGE_BASE"
_REPOSITORY_VARIABLE: Final = "SANDBOX_SEED_REPOSITORY"
_REVISION_VARIABLE: Final = "SANDBOX_SEED_REVISION"

_PACKAGES: Final = ("bash", "ca-certificates", "curl", "git", "procps", "ripgrep", "unzip")
_LOCK: Final = Path(__file__).resolve().parents[2] / "requirements" / "worker.lock"
_CLONE_LIMIT: Final = 300.0  # seconds

_NAME: Final = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*(?:/[a-z0-9]+(?:[._-][a-z0-9]+)*)*(?::[a-z0-9_][a-z0-9._-]*)?")
_RESERVED: Final = ("sandbox_template_", "image_", "cas-v1:")
_REFERENCE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")
_REVISION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_REPOSITORY: Final = re.compile(r"[A-Za-z0-9._~:/@%+-]+")


_Step = tuple[Literal["RUN", "WORKDIR"], str] | tuple[Literal["COPY"], str, str, str]  # COPY: source, target, owner


class BadRecipe(ValueError):
    """A setting of the image that cannot be used. The text names it."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What may differ between images. Raises BadRecipe.

    `name` is the registered name: lower-case words joined by one of `._-`, at most 255 characters (contract
    tensorlake 10). `seed_repository` is an https, ssh or file URL that git on the building machine can clone without
    asking anybody; `seed_revision` a branch or tag of it.
    """

    name: str
    base_image: str = DEFAULT_BASE
    seed_repository: str | None = None
    seed_revision: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or len(self.name) > 255 or re.fullmatch(r"[0-9a-f]{64}", self.name):
            raise BadRecipe(
                f"image name {self.name!r}: only lower-case letters and digits, in words joined by one of . _ - "
                "(or / between parts, and :tag at the end), and no bare digest"
            )
        if self.name.startswith(_RESERVED):
            raise BadRecipe(f"image name {self.name!r}: names that begin with {', '.join(_RESERVED)} are reserved")
        if not _REFERENCE.fullmatch(self.base_image):
            raise BadRecipe(f"base image {self.base_image!r} is not an image reference")
        if self.seed_repository is not None:
            _check_repository(self.seed_repository)
        if self.seed_revision is not None:
            if self.seed_repository is None:
                raise BadRecipe("a seed revision without a seed repository")
            if not _REVISION.fullmatch(self.seed_revision) or ".." in self.seed_revision:
                raise BadRecipe(f"seed revision {self.seed_revision!r} is not a branch or tag name")


def recipe_from(environ: Mapping[str, str]) -> Recipe:
    """What the variables of `make build` ask for; empty ones count as not set. Raises BadRecipe."""
    try:
        return Recipe(
            name=environ.get("SANDBOX_IMAGE_NAME", "").strip() or DEFAULT_NAME,
            base_image=environ.get(_BASE_VARIABLE, "").strip() or DEFAULT_BASE,
            seed_repository=environ.get(_REPOSITORY_VARIABLE, "").strip() or None,
            seed_revision=environ.get(_REVISION_VARIABLE, "").strip() or None,
        )
    except BadRecipe as error:
        raise BadRecipe(
            f"{error} (SANDBOX_IMAGE_NAME, {_BASE_VARIABLE}, {_REPOSITORY_VARIABLE}, {_REVISION_VARIABLE})"
        ) from None


def session_image(recipe: Recipe) -> Image:
    """The image as `tensorlake.image.Image`; its sources are relative to a directory that `stage` has filled. Whoever
    starts a process in it names the user, as the dispatcher does."""
    from tensorlake.image import Image

    made = Image(name=recipe.name, base_image=recipe.base_image)
    for step in _steps(recipe):
        match step:
            case ("RUN", command):
                made.run(command)
            case ("COPY", source, target, owner):
                made.copy(source, target, {"chown": owner})
            case ("WORKDIR", directory):
                made.workdir(directory)
    return made


def dockerfile(recipe: Recipe) -> str:
    lines = [f"FROM {recipe.base_image}"]
    for step in _steps(recipe):
        match step:
            case ("COPY", source, target, owner):
                lines.append(f"COPY --chown={owner} {source} {target}")
            case (instruction, text):
                lines.append(f"{instruction} {text}")
    return "\n".join([*lines, f"USER {AGENT_USER}", ""])


def stage(recipe: Recipe, directory: Path) -> Path:
    """Fills an empty directory with everything the image is built from; returns its Dockerfile.

    Raises BadRecipe where the seed repository cannot be cloned.
    """
    (directory / Path(_worker_file()).name).write_bytes(build_archive())
    shutil.copyfile(_LOCK, directory / _LOCK.name)
    if recipe.seed_repository is not None:
        _clone(recipe.seed_repository, recipe.seed_revision, directory / "seed")
    path = directory / "Dockerfile"
    path.write_text(dockerfile(recipe), encoding="utf-8")
    return path


def build(
    recipe: Recipe,
    *,
    api_key: str,
    api_url: str | None = None,
    cpus: float = 2.0,
    memory_mb: int = 4096,
    disk_mb: int | None = None,
    timeout: float = 1800.0,
    emit: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Builds and registers the image; returns its record (`id`, `name`, `snapshot_id`, ...).

    `timeout` is in seconds; `emit` gets the builder's progress events. Raises BadRecipe and tensorlake's
    `ImageBuildError`s.
    """
    with tempfile.TemporaryDirectory(prefix="session-image-") as directory:
        return register(
            stage(recipe, Path(directory)),
            recipe.name,
            api_key=api_key,
            api_url=api_url,
            cpus=cpus,
            memory_mb=memory_mb,
            disk_mb=disk_mb,
            timeout=timeout,
            emit=emit,
        )


def register(
    dockerfile: Path,
    name: str,
    *,
    api_key: str,
    api_url: str | None,
    cpus: float = 2.0,
    memory_mb: int = 4096,
    disk_mb: int | None = None,
    timeout: float,
    emit: Callable[[dict[str, Any]], None] | None,
) -> dict[str, Any]:
    """Builds what a Dockerfile and its folder describe, registers it under this name, returns its record."""
    from tensorlake.image import start_build

    with _credentials(api_key, api_url):
        handle = start_build(
            str(dockerfile), registered_name=name, cpus=cpus, memory_mb=memory_mb, disk_mb=disk_mb, emit=emit
        )
        record: dict[str, Any] = handle.wait(timeout=timeout, follow_logs=emit is not None, emit=emit)
    return record


def _steps(recipe: Recipe) -> Iterator[_Step]:
    """In the order that keeps what changes most for the end."""
    agent = f"{AGENT_USER}:{AGENT_USER}"
    yield (
        "RUN",
        "apt-get update"
        f" && apt-get install --yes --no-install-recommends {' '.join(_PACKAGES)}"
        " && rm -rf /var/lib/apt/lists/*",
    )
    yield "RUN", f"id {AGENT_USER} || useradd --create-home --shell /bin/bash {AGENT_USER}"
    owned = f"{DEFAULT_WORKDIR} {STATE_DIRECTORY} {MEMORY_DIRECTORY}"
    yield "RUN", f"install --directory --owner={AGENT_USER} --group={AGENT_USER} {owned}"
    yield "COPY", _LOCK.name, f"{WORKER_DIRECTORY}/{_LOCK.name}", "root:root"
    environment = f"{WORKER_DIRECTORY}/venv"
    yield (
        "RUN",
        "python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'"
        f" && python3 -m venv {environment}"
        f" && {environment}/bin/pip install --no-cache-dir --only-binary :all: --require-hashes"
        f" --requirement {WORKER_DIRECTORY}/{_LOCK.name}",
    )
    yield "COPY", Path(_worker_file()).name, _worker_file(), "root:root"
    if recipe.seed_repository is not None:
        yield "COPY", "seed/", f"{DEFAULT_WORKDIR}/", agent
    yield "WORKDIR", DEFAULT_WORKDIR


def _worker_file() -> str:
    return worker_path(digest(build_archive()))


def _check_repository(url: str) -> None:
    """No credential in it (the clone keeps its URL), nothing that a shell or git could take for something else."""
    parts = urlsplit(url)
    if parts.scheme not in ("https", "ssh", "file") or not _REPOSITORY.fullmatch(url) or not parts.path.strip("/"):
        raise BadRecipe("the seed repository is not a plain https://, ssh:// or file:// URL")
    if parts.scheme != "file" and not parts.hostname:
        raise BadRecipe("the seed repository's URL names no host")
    if parts.password or (parts.username and parts.scheme != "ssh"):
        raise BadRecipe("the seed repository's URL holds a credential, which every sandbox would then hold too")


def _clone(url: str, revision: str | None, target: Path) -> None:
    """By git on this machine, with whatever credential it has: none of it gets into the image."""
    branch = [] if revision is None else ["--branch", revision]
    command = ["git", "clone", "--quiet", "--depth", "1", "--template=", *branch, "--", url, str(target)]
    try:
        done = subprocess.run(
            command,
            check=False,
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "https:ssh:file"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CLONE_LIMIT,
        )
    except FileNotFoundError:
        raise BadRecipe("a seed repository needs git on this machine") from None
    except subprocess.TimeoutExpired:
        raise BadRecipe(f"cloning the seed repository took longer than {_CLONE_LIMIT:g} s") from None
    if done.returncode != 0:
        raise BadRecipe(f"the seed repository could not be cloned: {done.stderr.strip()[-500:]}")


@contextlib.contextmanager
def _credentials(api_key: str, api_url: str | None) -> Iterator[None]:
    """The image functions of tensorlake read their credentials from the environment alone, when called."""
    wanted: Mapping[str, str | None] = {"TENSORLAKE_API_KEY": api_key, "TENSORLAKE_API_URL": api_url}
    before = {name: os.environ.get(name) for name in wanted}
    try:
        _set(wanted)
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
