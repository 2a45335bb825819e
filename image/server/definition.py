"""The image of a server that lives in a sandbox: the bundle, its pinned dependencies, byte code of both, no secret.

Code and dependencies are root's; the server runs as a user of its own, who owns one folder. Newer code is brought
there by whoever starts the server (infra/sandbox), so an image is built anew only for new dependencies.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from image import locks
from image.server.code import code_digest, source_files
from image.session.base_images import pinned
from image.session.definition import DEFAULT_BASE, Recipe, register

DEFAULT_NAME: Final = "hands-server"
SERVER_USER: Final = "server"
PYTHON: Final = "/opt/hands/venv/bin/python"
BAKED: Final = "/opt/hands"
"""Where the image has its code, in `bundle-<digest>`."""
BROUGHT: Final = "/var/lib/hands"
"""Where newer code is brought to, in folders of the same names. The server's user owns it."""
LOCK_COPY: Final = "/opt/hands/runtime.lock"


def server_recipe(name: str = DEFAULT_NAME, base_image: str = DEFAULT_BASE) -> Recipe:
    """Raises BadRecipe."""
    return Recipe(name, base_image)


def folder_name(digest: str) -> str:
    return f"bundle-{digest[:16]}"


def lock() -> bytes:
    """What the image installs: the run-time lock and OpenTelemetry, which the server's variables switch on."""
    return locks.requirements(extras=[locks.TELEMETRY]).encode()


def dockerfile(recipe: Recipe, digest: str) -> str:
    folder = f"{BAKED}/{folder_name(digest)}"
    return f"""FROM {pinned(recipe.base_image)}
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
RUN id {SERVER_USER} || useradd --create-home --shell /usr/sbin/nologin {SERVER_USER}
RUN install --directory --mode=0700 --owner={SERVER_USER} --group={SERVER_USER} {BROUGHT}
COPY --chown=root:root runtime.lock {LOCK_COPY}
RUN python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' \\
 && python3 -m venv {BAKED}/venv \\
 && {PYTHON} -m pip install --no-cache-dir --only-binary :all: --require-hashes --requirement {LOCK_COPY}
COPY --chown=root:root bundle/ {folder}/
RUN {PYTHON} -m compileall -q -j 0 {folder}
WORKDIR {BROUGHT}
USER {SERVER_USER}
"""


def stage(recipe: Recipe, directory: Path, more: Mapping[str, bytes] | None = None, requirements: bytes = b"") -> Path:
    """Fills an empty directory with everything the image is built from; returns its Dockerfile. `more`: files beside
    ours; `requirements`: another lock than ours alone."""
    files = {**(more or {}), **source_files()}
    for name, content in files.items():
        target = directory / "bundle" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    (directory / "runtime.lock").write_bytes(requirements or lock())
    path = directory / "Dockerfile"
    path.write_text(dockerfile(recipe, code_digest(files)), encoding="utf-8")
    return path


def build(
    recipe: Recipe,
    *,
    api_key: str,
    api_url: str | None = None,
    more: Mapping[str, bytes] | None = None,
    requirements: bytes = b"",
    timeout: float = 1800.0,
    emit: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Builds and registers the image; returns its record. `timeout` in seconds. Raises tensorlake's
    `ImageBuildError`s."""
    with tempfile.TemporaryDirectory(prefix="server-image-") as directory:
        path = stage(recipe, Path(directory), more, requirements)
        return register(path, recipe.name, api_key=api_key, api_url=api_url, timeout=timeout, emit=emit)
