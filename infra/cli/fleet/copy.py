"""`cp`, `ls`, `cat`: files between this machine and a session's sandbox, as the agent's user.

A copy goes in parts, each file beside its place until its hash is right; the same command again goes on where it was
broken off. What a sandbox names stays below the target: no link is followed, and one that leads out is not made.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import posixpath
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from image.session.programs import files as local
from infra.cli.environ import Loaded
from infra.cli.fleet.table import console
from infra.cli.fleet.target import NotCarriedOut, target
from infra.cli.fleet.wake import kept_awake
from infra.cli.session.command import SESSION_ID
from infra.cli.session.render import clean
from shared.errors import SettingsError
from shared.sandbox_files import (
    MOST_ENTRIES,
    FileEntry,
    FilesError,
    FileTree,
    Piece,
    SandboxFiles,
    pieces,
    stays_inside,
    tree_of,
)
from shared.texts import printable

_AT_ONCE: Final = 4  # parts that are read side by side
_STANDARD: Final = "-"
_SHOWN_LEFT_OUT: Final = 10
_MODES: Final = 0o755  # what a file's permissions may be on this machine


@dataclass(frozen=True, slots=True)
class CopyEnd:
    """A path on this machine, or with a session in its sandbox; a session alone is its workspace. `-` is standard input
    or output."""

    path: str
    session: str = ""

    @classmethod
    def read(cls, text: str) -> CopyEnd:
        """Raises SettingsError."""
        session, _, path = text.partition(":")
        if SESSION_ID.fullmatch(session):
            return cls(path or ".", session)
        if not text:
            raise SettingsError(
                "a path is empty: write sesn_...:/path for a sandbox's, and any other for this machine's"
            )
        return cls(text)


@dataclass(slots=True)
class CopyResult:
    files: int = 0
    bytes: int = 0
    there: int = 0  # files that needed nothing


async def copy(loaded: Loaded, source: str, sink: str) -> int:
    """0 copied, 1 not. Raises SettingsError, FeedRefused, FeedBroken."""
    begin, end = CopyEnd.read(source), CopyEnd.read(sink)
    if bool(begin.session) == bool(end.session):
        raise SettingsError(
            "one of both is in a sandbox (sesn_...:/path), the other on this machine: hands cp sesn_01H2...:out/r.csv ."
        )
    began = time.monotonic()
    try:
        async with _files(loaded, begin.session or end.session) as (files, workdir):
            if begin.session:
                result = await _fetch(files, posixpath.join(workdir, begin.path), end.path)
            else:
                result = await _bring(files, begin.path, end.path, workdir)
    except (NotCarriedOut, FilesError, local.FileFailed) as error:
        print(printable(str(error), keep="\n"), file=sys.stderr)
        return 1
    except OSError as error:
        print(f"on this machine: {error.filename or ''}: {error.strerror}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - began
    there = f"; {result.there} {'was' if result.there == 1 else 'were'} there already" if result.there else ""
    count = "1 file" if result.files == 1 else f"{result.files} files"
    print(f"{count}, {_size(result.bytes)} in {seconds:.1f} s{there}", file=sys.stderr)
    return 0


async def show(loaded: Loaded, place: str) -> int:
    """A file's bytes to standard output; printable text to a terminal. 0 shown, 1 not."""
    at = _remote(place)
    try:
        async with _files(loaded, at.session) as (files, workdir):
            path = posixpath.join(workdir, at.path)
            tree = await files.tree(path, how="flat")
            if not tree.is_file:
                raise NotCarriedOut(f"{place} is no file; hands ls {place}")
            await _out(files, path, tree.files[0])
    except (NotCarriedOut, FilesError) as error:
        print(printable(str(error)), file=sys.stderr)
        return 1
    return 0


async def entries(loaded: Loaded, place: str, *, as_json: bool) -> int:
    """What a folder holds, or the file itself. 0 listed, 1 not."""
    at = _remote(place)
    try:
        async with _files(loaded, at.session) as (files, workdir):
            tree = await files.tree(posixpath.join(workdir, at.path), how="flat")
    except (NotCarriedOut, FilesError) as error:
        print(printable(str(error)), file=sys.stderr)
        return 1
    rows: list[dict[str, str | float]] = [_row(file, posixpath.basename(at.path)) for file in tree.files]
    rows += [{"name": path, "kind": "folder", "mode": mode} for path, mode in tree.folders]
    rows += [{"name": path, "kind": "link", "target": goal} for path, goal in tree.links]
    rows.sort(key=lambda row: str(row["name"]))
    if as_json:
        print(json.dumps({"path": at.path, "entries": rows, "complete": tree.complete}, indent=2))
        return 0
    for row in rows:
        print(_line(row))
    _tell_left_out(tree)
    return 0


def _row(file: FileEntry, own: str) -> dict[str, str | float]:
    modified = file.modified / 1e9
    return {"name": file.path or own, "kind": "file", "mode": file.mode, "bytes": file.size, "modified": modified}


def _line(row: dict[str, str | float]) -> str:
    name = printable(str(row["name"]), 300)
    match row["kind"]:
        case "folder":
            return f"{'-':>12}  {'':16}  {name}/"
        case "link":
            return f"{'-':>12}  {'':16}  {name} -> {printable(str(row['target']), 300)}"
    try:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(float(row["modified"])))
    except (OverflowError, ValueError, OSError):
        when = ""
    return f"{row['bytes']:>12}  {when:16}  {name}"


def _remote(text: str) -> CopyEnd:
    place = CopyEnd.read(text)
    if not place.session:
        raise SettingsError(f"{text[:80]!r} is on this machine; a sandbox's path is sesn_...:/path")
    return place


@contextlib.asynccontextmanager
async def _files(loaded: Loaded, session: str) -> AsyncIterator[tuple[SandboxFiles, str]]:
    """The files of the session's sandbox, which is woken and kept awake meanwhile, and its workdir."""
    async with target(loaded, session) as aim:
        box = await aim.awake_sandbox()
        async with kept_awake(aim, box.id):
            yield SandboxFiles(aim.host, box.id, user=aim.settings.sandbox_user or None), aim.settings.workdir


# From a sandbox


async def _fetch(files: SandboxFiles, path: str, sink: str) -> CopyResult:
    if sink == _STANDARD:
        tree = await files.tree(path, how="flat")
        if not tree.is_file:
            raise NotCarriedOut("a folder cannot go to standard output; name a folder of this machine instead of -")
        return await _out(files, path, tree.files[0])
    tree = await _whole(files, path)
    root, renamed = _local_root(tree, path, sink)
    _make_room(root, tree.size)
    wanted = [(file, local.present(str(root), renamed(file), file.size, file.sha256)) for file in tree.files]
    result = CopyResult(len(tree.files), tree.size, sum(done == file.size for file, done in wanted if file.size))
    with _progress("fetching", tree.size) as advance:
        advance(sum(done for _, done in wanted))
        missing = [(file, done) for file, done in wanted if done < file.size or not file.size]
        async for piece, data in _ahead(files, path, missing):
            file, mode = piece.file, (piece.file.mode | stat.S_IRUSR | stat.S_IWUSR) & _MODES
            await asyncio.to_thread(
                local.add, str(root), renamed(file), piece.offset, data, file.size, file.sha256, mode
            )
            advance(len(data))
    if not tree.is_file:
        inside = [each for each in tree.links if stays_inside(*each)]
        folders = [(name, (mode | stat.S_IRWXU) & _MODES) for name, mode in tree.folders]
        local.finish(str(root), {"folders": folders, "links": inside})
        _tell_left_out(
            tree, [(link, "a link out of the folder") for link, goal in tree.links if (link, goal) not in inside]
        )
    return result


def _local_root(tree: FileTree, path: str, sink: str) -> tuple[Path, Callable[[FileEntry], str]]:
    """The folder to write into, and each file's path in it."""
    name = posixpath.basename(path.rstrip("/")) or "root"
    place = Path(sink)
    if not tree.is_file:
        return (place / name if sink.endswith("/") else place), lambda file: file.path
    if name in (".", ".."):
        raise NotCarriedOut("name the file to be written on this machine")
    if place.is_dir() or sink.endswith("/"):
        return place, lambda file: name
    return place.parent, lambda file: place.name


def _make_room(root: Path, size: int) -> None:
    there = next(each for each in (root, *root.absolute().parents) if each.is_dir())
    free = shutil.disk_usage(there).free
    if size > free:
        raise NotCarriedOut(f"{_size(size)} do not fit: {there} has {_size(free)} left")


async def _whole(files: SandboxFiles, path: str) -> FileTree:
    tree = await files.tree(path)
    if not tree.complete:
        raise NotCarriedOut(
            f"{path} has more than {MOST_ENTRIES} entries; copy folders of it, or pack it first (hands run)"
        )
    return tree


async def _ahead(
    files: SandboxFiles, path: str, wanted: Sequence[tuple[FileEntry, int]]
) -> AsyncIterator[tuple[Piece, bytes]]:
    """The pieces in their order, some calls ahead."""
    calls = pieces(wanted)
    under_way: list[tuple[list[Piece], asyncio.Task[list[bytes]]]] = []
    try:
        while True:
            while len(under_way) < _AT_ONCE and (call := next(calls, None)) is not None:
                under_way.append((call, asyncio.create_task(files.read(path, call))))
            if not under_way:
                return
            call, reading = under_way.pop(0)
            for each in zip(call, await reading, strict=True):
                yield each
    finally:
        for _, reading in under_way:
            reading.cancel()
        await asyncio.gather(*(reading for _, reading in under_way), return_exceptions=True)


async def _out(files: SandboxFiles, path: str, file: FileEntry) -> CopyResult:
    plain = not sys.stdout.isatty()
    async for _, data in _ahead(files, path, [(file, 0)]):
        if plain:
            sys.stdout.buffer.write(data)
        else:
            text = data.decode("utf-8", "replace")
            print(clean(text, len(text) + 1), end="")
    sys.stdout.flush()
    return CopyResult(1, file.size)


# To a sandbox


async def _bring(files: SandboxFiles, source: str, sink: str, workdir: str) -> CopyResult:
    path = posixpath.join(workdir, sink)
    if source != _STANDARD:
        return await _send(files, Path(source), path, into=sink.endswith("/"))
    if sink.endswith("/") or await files.kind(path) == "folder":
        raise NotCarriedOut("what comes from standard input needs a file's name: sesn_...:/path/name")
    with tempfile.TemporaryDirectory(prefix="hands-cp-") as folder:
        spool = Path(folder) / (posixpath.basename(path) or "input")
        with spool.open("wb") as file:
            await asyncio.to_thread(shutil.copyfileobj, sys.stdin.buffer, file)
        return await _send(files, spool, path, into=False)


async def _send(files: SandboxFiles, source: Path, path: str, *, into: bool) -> CopyResult:
    rows = await asyncio.to_thread(lambda: list(local.rows(str(source), MOST_ENTRIES, "hashed")))
    tree = tree_of(rows, str(source))
    if not tree.complete:
        raise NotCarriedOut(f"{source} has more than {MOST_ENTRIES} entries; copy folders of it, or pack it first")
    name = posixpath.basename(posixpath.abspath(source))
    if tree.is_file:
        if into or await files.kind(path) == "folder":
            path = posixpath.join(path, name)
        root, name = posixpath.split(path.rstrip("/"))
        (only,) = tree.files
        tree = FileTree([FileEntry(name, only.size, only.mode, only.modified, only.sha256)], [], [], [], True)
        base = source
    else:
        root, base = (posixpath.join(path, name) if into else path), source
    done = await files.present(root, tree.files)
    wanted = [*zip(tree.files, done, strict=True)]
    result = CopyResult(len(tree.files), tree.size, sum(there == file.size for file, there in wanted if file.size))
    with _progress("bringing", tree.size) as advance:
        advance(sum(done))
        for call in pieces([(file, there) for file, there in wanted if there < file.size or not file.size]):
            await files.write(root, [(piece, _read(base, piece)) for piece in call])
            advance(sum(piece.length for piece in call))
    inside = [each for each in tree.links if stays_inside(*each)]
    if tree.folders or inside:
        await files.finish(root, tree.folders, inside)
    _tell_left_out(
        tree, [(link, "a link out of the folder") for link, goal in tree.links if (link, goal) not in inside]
    )
    return result


def _read(base: Path, piece: Piece) -> bytes:
    file = base if base.is_file() else base / piece.file.path
    with file.open("rb") as opened:
        opened.seek(piece.offset)
        data = opened.read(piece.length)
    if len(data) < piece.length:
        raise NotCarriedOut(f"{file} has become shorter while it was copied; run the command again")
    return data


# What people see


@contextlib.contextmanager
def _progress(what: str, size: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing in a pipe."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    out = console(stderr=True)
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, disable=not out.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=size)
        yield lambda count: progress.advance(task, count)


def _tell_left_out(tree: FileTree, more: Sequence[tuple[str, str]] = ()) -> None:
    left_out = [*tree.left_out, *more]
    for path, why in left_out[:_SHOWN_LEFT_OUT]:
        print(f"left out: {printable(path, 300)} ({why})", file=sys.stderr)
    if len(left_out) > _SHOWN_LEFT_OUT:
        print(f"left out: {len(left_out) - _SHOWN_LEFT_OUT} more", file=sys.stderr)


def _size(count: float) -> str:
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} GB"
