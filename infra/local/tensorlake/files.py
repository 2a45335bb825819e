"""File calls: which side carries them out (docs/wire/tensorlake.md#8-files).

On the service a root daemon does. Here every process has one uid, so root's paths are read-only inside and are
written from outside, into the sandbox's own directory, where the change is visible at once. The agent's paths
are overlays that exist only inside, so the supervisor writes those. It also does all the reading.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from infra.local.tensorlake import trees
from infra.local.tensorlake.box import Box
from infra.local.tensorlake.errors import TensorlakeApiError, bad_request
from infra.local.tensorlake.host import DAEMON
from infra.local.tensorlake.inside.files import write_atomically
from infra.local.tensorlake.layers import VENV


def checked(path: str | None) -> str:
    """An absolute path without `..`; 400 or 403 otherwise. Repeated and final slashes are dropped."""
    if not path or not path.startswith("/"):
        raise bad_request("path must be absolute")
    if "\0" in path:
        raise bad_request("path must not contain a null character")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise TensorlakeApiError(403, "PATH_TRAVERSAL", f"'{path}': '..' is not allowed")
    return "/" + "/".join(parts)


def resolve(box: Box, path: str) -> str:
    """The path without symbolic links in its root-owned part, as the sandbox sees it.

    Stops where the agent's or the machine's part begins. The links met come from the image or from the file
    API: nothing inside can write there.
    """
    outside = _of_the_machine(box)
    try:
        return trees.resolve_in(box.root, path, lambda here: here in outside or box.base.runtime.owns(here))
    except OSError:
        raise TensorlakeApiError(404, "NOT_FOUND", f"'{path}': too many symbolic links") from None


def _of_the_machine(box: Box) -> tuple[str, ...]:
    binds = (*box.host.python_binds, *box.base.binds)
    return (*box.host.system_binds, "/proc", "/dev", *(there for _, there in binds))


def _from_outside(box: Box, path: str) -> Path | None:
    """Where on this machine a root-owned path lies; None if it is the agent's. 403 for the machine's own."""
    if not box.level.isolated or box.base.runtime.owns(path):
        return None
    if any(path == each or path.startswith(f"{each}/") for each in (*_of_the_machine(box), DAEMON)):
        raise TensorlakeApiError(403, "PERMISSION_DENIED", f"'{path}' is this machine's own and read-only offline")
    return trees.within(box.root, path)


async def write(box: Box, path: str, body: AsyncIterator[bytes]) -> None:
    """Replace or make a file with its parents. Raises TensorlakeApiError; then nothing has changed."""
    target = resolve(box, path)
    outside = _from_outside(box, target)
    if outside is None:
        request = {"op": "write", "path": box.file_path(target)}
        await box.link.call(request, _closed(body))
        return
    # Root's files are small (programs, settings, judge scripts), so they may be held in memory.
    data = b"".join([chunk async for chunk in body])
    try:
        await asyncio.to_thread(write_atomically, str(outside), iter([data]))
    except IsADirectoryError:
        raise TensorlakeApiError(400, "IS_DIRECTORY", f"'{path}' is a directory") from None
    except (NotADirectoryError, FileExistsError):
        raise TensorlakeApiError(400, "NOT_A_DIRECTORY", f"'{path}': a part of the path is not a directory") from None


async def _closed(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The body and the byte that says it is complete (supervisor.op_write)."""
    async for chunk in body:
        yield chunk
    yield b"\0"


async def delete(box: Box, path: str) -> None:
    # The last part is not resolved: a link is deleted itself.
    parent, _, name = path.rpartition("/")
    target = f"{resolve(box, parent or '/').rstrip('/')}/{name}"
    outside = _from_outside(box, target)
    if outside is None:
        await box.link.call({"op": "delete", "path": box.file_path(target)})
        return
    if outside.is_dir() and not outside.is_symlink():
        raise TensorlakeApiError(400, "IS_DIRECTORY", f"'{path}' is a directory")
    try:
        outside.unlink()
    except (FileNotFoundError, NotADirectoryError):
        raise TensorlakeApiError(404, "NOT_FOUND", f"'{path}' does not exist") from None


def readable(box: Box, path: str) -> str:
    """The path the supervisor opens; at the folder level the venv lies elsewhere."""
    if path == VENV or path.startswith(f"{VENV}/"):
        return box.shown_path(path)
    return box.file_path(path)
