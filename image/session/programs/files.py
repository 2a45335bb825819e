"""Lists, sends and takes files of a sandbox; runs in it, as the agent's user.

It travels as text (`python -I -S -c`), so it imports the standard library only and keeps to what Python 3.8 knows; who
copies uses the same functions for the files on their own machine (infra/cli/fleet/copy.py). Paths below the root are
joined by slashes; no symbolic link on them is followed. The operations, with their arguments:

    kind ROOT              "file", "folder", "other" or "none"
    list ROOT MOST HOW     what is below ROOT, one JSON row a line, at most MOST: ["f", path, size, mode, mtime in ns,
                           sha256 or ""], ["d", path, mode], ["l", path, target], ["x", path, why it is left out]. A
                           ROOT that is a file has the path "". The last row is ["end", whether all was listed]. HOW is
                           `hashed`, `plain`, or `flat`: plain, and of ROOT's own entries alone.
    send ROOT PIECES       PIECES is a JSON list of [path, offset, length]; their bytes as base64, one after the other
    have ROOT STAGE        STAGE is a file with a JSON list of [path, size, sha256]; a JSON list of how many bytes of
                           each are there: all where the hash is right, else those of an earlier copy's part
    take ROOT STAGE        STAGE begins with a line of JSON, a list of [path, offset, length, size, sha256, mode]; the
                           bytes follow, and are added to the files' parts; a part that is complete becomes its file
    finish ROOT STAGE      STAGE is a JSON object of `folders`: [[path, mode]] and `links`: [[path, target]]; makes them

Each prints {"error": ...} as its last line where it fails, and ends with 1.
"""

# ruff: noqa: PTH103, PTH112, PTH113, PTH115, PTH116, PTH118, PTH123

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any

LINE = 49_152  # bytes: a line of base64 is a third longer
CHUNK = 1 << 20
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class FileFailed(Exception):
    pass


def say(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")


@contextlib.contextmanager
def folder(root: str, path: str, make: bool = False) -> Iterator[tuple[int, str]]:
    """The open folder that holds the path's last part, and that part."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise FileFailed("a path that leads elsewhere: " + repr(path))
    if make:
        os.makedirs(root, exist_ok=True)
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=here)
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = below
        yield here, parts[-1]
    finally:
        os.close(here)


def opened(root: str, path: str) -> int:
    """A descriptor of the regular file, for reading."""
    if path == "":
        descriptor = os.open(root, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    else:
        with folder(root, path) as (here, name):
            descriptor = os.open(name, READ, dir_fd=here)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileFailed(repr(path) + " is no regular file")
    return descriptor


def hash_of(descriptor: int) -> str:
    digest = hashlib.sha256()
    while True:
        data = os.read(descriptor, CHUNK)
        if not data:
            return digest.hexdigest()
        digest.update(data)


def kind(root: str) -> str:
    if os.path.isdir(root):
        return "folder"
    if os.path.isfile(root):
        return "file"
    return "other" if os.path.lexists(root) else "none"


def rows(root: str, most: int, how: str) -> Iterator[list[Any]]:
    hashed = how == "hashed"
    if os.path.isfile(root):
        yield row(root, "", os.stat(root), hashed)
        yield ["end", True]
        return
    pending, seen = [""], 0
    while pending:
        here = pending.pop()
        try:
            with os.scandir(os.path.join(root, here) if here else root) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            if here == "":
                raise
            yield ["x", here, str(error.strerror)]
            continue
        below = []
        for entry in entries:
            seen += 1
            if seen > most:
                yield ["end", False]
                return
            path = here + "/" + entry.name if here else entry.name
            try:
                path.encode("utf-8")
            except UnicodeEncodeError:
                yield ["x", os.fsencode(path).decode("utf-8", "backslashreplace"), "its name is not UTF-8"]
                continue
            try:
                known = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(known.st_mode):
                    below.append(path)
                    yield ["d", path, stat.S_IMODE(known.st_mode)]
                elif stat.S_ISLNK(known.st_mode):
                    yield ["l", path, os.readlink(os.path.join(root, path))]
                elif stat.S_ISREG(known.st_mode):
                    yield row(root, path, known, hashed)
                else:
                    yield ["x", path, "it is neither file nor folder nor link"]
            except (OSError, FileFailed) as error:
                yield ["x", path, str(error)]
        pending += reversed(below) if how != "flat" else []
    yield ["end", True]


def row(root: str, path: str, known: os.stat_result, hashed: bool) -> list[Any]:
    digest = ""
    if hashed:
        descriptor = opened(root, path)
        try:
            digest = hash_of(descriptor)
        finally:
            os.close(descriptor)
    return ["f", path, known.st_size, stat.S_IMODE(known.st_mode), known.st_mtime_ns, digest]


def send(root: str, pieces: list[Any]) -> None:
    held = b""
    for path, offset, length in pieces:
        descriptor = opened(root, path)
        at, end = offset, offset + length
        try:
            while at < end:
                data = os.pread(descriptor, min(end - at, CHUNK), at)
                if not data:
                    raise FileFailed(repr(path) + " has become shorter")
                held, at = held + data, at + len(data)
                whole = len(held) - len(held) % LINE
                for start in range(0, whole, LINE):
                    sys.stdout.write(base64.b64encode(held[start : start + LINE]).decode() + "\n")
                held = held[whole:]
        finally:
            os.close(descriptor)
    if held:
        sys.stdout.write(base64.b64encode(held).decode() + "\n")


def part_name(name: str, digest: str) -> str:
    return "." + name[:180] + "." + digest[:16] + ".part"


def have(root: str, wanted: list[Any]) -> list[int]:
    return [present(root, *each) for each in wanted]


def present(root: str, path: str, size: int, digest: str) -> int:
    try:
        with folder(root, path) as (here, name):
            try:
                descriptor = os.open(name, READ, dir_fd=here)
            except FileNotFoundError:
                pass
            else:
                try:
                    if os.fstat(descriptor).st_size == size and hash_of(descriptor) == digest:
                        return size
                finally:
                    os.close(descriptor)
            part = os.stat(part_name(name, digest), dir_fd=here, follow_symlinks=False)
            return part.st_size if stat.S_ISREG(part.st_mode) and part.st_size < size else 0
    except OSError:
        return 0


def take(root: str, stage: str) -> None:
    with open(stage, "rb") as file:
        for path, offset, length, size, digest, mode in json.loads(file.readline()):
            add(root, path, offset, file.read(length), size, digest, mode)


def add(root: str, path: str, offset: int, data: bytes, size: int, digest: str, mode: int) -> None:
    """Adds to a file's part; where that is complete and right it becomes the file."""
    with folder(root, path, make=True) as (here, name):
        part = part_name(name, digest)
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=here)
        try:
            os.ftruncate(descriptor, offset)
            os.lseek(descriptor, offset, os.SEEK_SET)
            written = 0
            while written < len(data):
                written += os.write(descriptor, data[written:])
            if os.fstat(descriptor).st_size < size:
                return
            os.lseek(descriptor, 0, os.SEEK_SET)
            if hash_of(descriptor) != digest:
                os.unlink(part, dir_fd=here)
                raise FileFailed(repr(path) + " did not arrive as it was sent, or changed meanwhile")
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(part, name, src_dir_fd=here, dst_dir_fd=here)


def finish(root: str, wanted: dict[str, Any]) -> None:
    os.makedirs(root, exist_ok=True)
    for path, mode in wanted["folders"]:
        with folder(root, path, make=True) as (here, name):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=here)
            descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            try:
                os.fchmod(descriptor, mode)
            finally:
                os.close(descriptor)
    for path, target in wanted["links"]:
        with folder(root, path, make=True) as (here, name):
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(name, dir_fd=here) == target:
                    continue
                os.unlink(name, dir_fd=here)
            os.symlink(target, name, dir_fd=here)


def main() -> None:
    operation, root = sys.argv[1:3]
    try:
        if operation == "kind":
            say(kind(root))
        elif operation == "list":
            for each in rows(root, int(sys.argv[3]), sys.argv[4]):
                say(each)
        elif operation == "send":
            send(root, json.loads(sys.argv[3]))
        elif operation == "have":
            with open(sys.argv[3], encoding="utf-8") as file:
                say(have(root, json.load(file)))
        elif operation == "take":
            take(root, sys.argv[3])
        elif operation == "finish":
            with open(sys.argv[3], encoding="utf-8") as file:
                finish(root, json.load(file))
    except OSError as error:
        say({"error": f"{error.filename or root}: {error.strerror}"})
        sys.exit(1)
    except FileFailed as error:
        say({"error": str(error)})
        sys.exit(1)


if __name__ == "__main__":
    main()
