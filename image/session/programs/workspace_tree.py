"""What a promotion runs inside the sandboxes, as the agent's user, with the working directory as the tree.

It travels as text (`python -I -S -c`), so it imports the standard library only and keeps to what Python 3.8 knows.

A tree is walked by directory descriptors and O_NOFOLLOW: no symbolic link leads out of it, neither the last part of a
path nor a parent. Names are bytes; on the wire each byte is one character (latin-1). An entry is
`[kind, mode, size, value]`: kind `d`, `f`, `l` or `o` (a socket, pipe or device), the permission bits, the size of a
file, and as value a file's SHA-256 or a link's target. What cannot be read has a value that begins with `?`.

A change is `[path, entry in the base or null, entry in the winner or null]`. What it meets in the source is one of
three: the winner's entry (`same`), the base's (it is applied), or another one (a conflict).
"""

# A tree is walked by directory descriptors, which pathlib does not know.
# ruff: noqa: PTH102, PTH118, PTH123, PTH202, PTH208

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

TEMPORARY = b".race-promotion-"
CHUNK = 1024 * 1024
PERMISSIONS = 0o777
MOST_DEPTH = 2_000  # folders one in the other; each step into one walks the path from the top
LONGEST_PATHS = 48 * 1024 * 1024  # bytes, of all paths together
LARGEST_LISTING = 64 * 1024 * 1024  # bytes, unpacked
MOST_SKIPPED = 1_000
NONSENSE = "its answer makes no sense"
SAME, APPLY, CONFLICT = "same", "apply", "conflict"
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV)


class Stop(Exception):
    """The text is the reason."""


class Overtaken(Exception):
    """The path is not what it was when it was judged."""


class Entry(NamedTuple):
    kind: str
    mode: int
    size: int
    value: str | None

    @property
    def unreadable(self) -> bool:
        return self.kind != "l" and self.value is not None and self.value.startswith("?")


class Change(NamedTuple):
    path: bytes
    base: Entry | None
    now: Entry | None


class Judged(NamedTuple):
    """A change beside the source: what was `seen` at its path; `over` says that things lie below it that no change
    names."""

    change: Change
    word: str
    seen: Entry | None
    over: bool = False

    @property
    def turns_mode(self) -> bool:
        return _is(self.change.now, "d") and _is(self.seen, "d")


def to_text(path: bytes) -> str:
    return path.decode("latin-1")


def from_text(text: str) -> bytes:
    """Raises Stop for what is no path below a directory."""
    try:
        path = text.encode("latin-1")
    except (AttributeError, UnicodeEncodeError):
        raise Stop("a path is not one") from None
    if b"\0" in path or any(part in (b"", b".", b"..") for part in path.split(b"/")):
        raise Stop("a path leads elsewhere")
    return path


def parent_of(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def name_of(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]


def depth_first(path: bytes) -> list[bytes]:
    """Sorts parents before children, and everything below a path next to it."""
    return path.split(b"/")


class Tree:
    def __init__(self, root: str) -> None:
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self.fd)

    @contextlib.contextmanager
    def directory(self, path: bytes) -> Iterator[int]:
        """A descriptor of a directory of the tree; the empty path is the tree itself. Raises OSError."""
        fd = os.dup(self.fd)
        try:
            for part in path.split(b"/") if path else ():
                below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)

    def look(self, path: bytes) -> Entry | None:
        """What is there, None for nothing. Raises OSError."""
        try:
            with self.directory(parent_of(path)) as parent:
                return entry_of(name_of(path), parent)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise

    def names(self, path: bytes) -> list[bytes]:
        with self.directory(path) as fd:
            return sorted(os.fsencode(name) for name in os.listdir(fd))

    def walk(self, most: int) -> Iterator[tuple[bytes, Entry]]:
        """Every entry but our own temporary names. Raises Stop beyond `most`."""
        count = length = 0
        pending = [b""]
        while pending:
            here = pending.pop()
            if here.count(b"/") >= MOST_DEPTH:
                raise Stop(f"the workspace has folders more than {MOST_DEPTH} deep")
            with self.directory(here) as fd:
                for name in sorted(os.fsencode(name) for name in os.listdir(fd)):
                    if name.startswith(TEMPORARY):
                        continue
                    entry = entry_of(name, fd)
                    if entry is None:
                        continue  # it went while we looked
                    count += 1
                    if count > most:
                        raise Stop(f"the workspace has more than {most} entries")
                    path = here + b"/" + name if here else name
                    length += len(path)
                    if length > LONGEST_PATHS:
                        raise Stop(f"the workspace's paths have more than {LONGEST_PATHS} bytes in all")
                    if entry.kind == "d" and not entry.unreadable:
                        pending.append(path)
                    yield path, entry


def entry_of(name: bytes, parent: int) -> Entry | None:
    """None for nothing. Raises OSError."""
    try:
        facts = os.lstat(name, dir_fd=parent)
        mode = stat.S_IMODE(facts.st_mode) & PERMISSIONS
        if stat.S_ISLNK(facts.st_mode):
            return Entry("l", 0, 0, to_text(os.fsencode(os.readlink(name, dir_fd=parent))))
        if stat.S_ISDIR(facts.st_mode):
            return Entry("d", mode, 0, None if _enterable(name, parent) else "?")
        if not stat.S_ISREG(facts.st_mode):
            return Entry("o", 0, 0, None)
        try:
            size, digest = digest_of(name, parent)
        except PermissionError:
            return Entry("f", mode, facts.st_size, f"?{facts.st_mtime_ns}")
        return Entry("f", mode, size, digest)
    except FileNotFoundError:
        return None


def _enterable(name: bytes, parent: int) -> bool:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except PermissionError:
        return False
    try:
        return os.access(b".", os.R_OK | os.X_OK, dir_fd=fd)
    finally:
        os.close(fd)


def open_file(name: bytes, parent: int) -> int:
    """A regular file for reading; never follows a link, never waits for a pipe. Raises OSError."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file")
    return fd


def digest_of(name: bytes, parent: int) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    with open(open_file(name, parent), "rb", buffering=0) as file:
        while True:
            data = file.read(CHUNK)
            if not data:
                return size, digest.hexdigest()
            size += len(data)
            digest.update(data)


# ------------------------------------------------------------------------------------------------ judging and applying


def judge(tree: Tree, changes: list[Change]) -> list[Judged]:
    """One for each change, which come sorted by `depth_first`. Raises OSError."""
    judged: dict[bytes, Judged] = {}
    for change in changes:
        seen = tree.look(change.path)
        if seen == change.now:
            word = SAME
        elif seen == change.base and (change.now is None or _has_room(tree, change.path, judged)):
            word = APPLY
        else:
            word = CONFLICT
        judged[change.path] = Judged(change, word, seen)
    going = {path for path, each in judged.items() if each.word == APPLY and not _is(each.change.now, "d")}
    for path, (change, word, seen, _) in judged.items():
        # A directory gives way to something else: what the source put below it meanwhile is in the way.
        gives_way = word != SAME and change.now is not None and change.now.kind != "d" and _is(seen, "d")
        if gives_way and _holds_more(tree, path, going):
            judged[path] = Judged(change, CONFLICT, seen, over=True)
    return list(judged.values())


def _has_room(tree: Tree, path: bytes, judged: dict[bytes, Judged]) -> bool:
    """Whether the parent is, or is about to become, a directory."""
    parent = parent_of(path)
    if not parent:
        return True
    if parent in judged:
        return judged[parent].word != CONFLICT
    return _is(tree.look(parent), "d")


def _holds_more(tree: Tree, path: bytes, going: set[bytes]) -> bool:
    pending = [path]
    while pending:
        here = pending.pop()
        for name in tree.names(here):
            below = here + b"/" + name
            if below not in going:
                return True
            if _is(tree.look(below), "d"):
                pending.append(below)
    return False


class Contents:
    """What travelled: a stream of contents, cut into parts. Each is found by its digest."""

    def __init__(self, directory: str, parts: list[str], stream: list[tuple[str, int]]) -> None:
        self._parts = [os.path.join(directory, name) for name in parts]
        self._size = os.path.getsize(self._parts[0]) if parts else 0
        self._place: dict[str, tuple[int, int]] = {}
        offset = 0
        for digest, size in stream:
            self._place[digest] = (offset, size)
            offset += size

    def check(self) -> None:
        """Raises Stop unless everything arrived as it was sent."""
        for digest in self._place:
            found = hashlib.sha256()
            for data in self.read(digest):
                found.update(data)
            if found.hexdigest() != digest:
                raise Stop("a content arrived damaged")

    def read(self, digest: str) -> Iterator[bytes]:
        offset, left = self._place[digest]
        while left:
            number, start = divmod(offset, self._size)
            with open(self._parts[number], "rb") as file:
                file.seek(start)
                data = file.read(left)
            if not data:
                raise Stop("a part is too short")
            yield data
            offset += len(data)
            left -= len(data)


class Apply:
    """Makes the changes. Files and links are put in place by one rename each; an entry is compared once more right
    before it. `theirs` lets a change through whose verdict is a conflict. Doing it twice does nothing the second time.
    """

    def __init__(self, tree: Tree, contents: Contents, token: bytes, theirs: bool) -> None:
        self._tree = tree
        self._contents = contents
        self._token = token
        self._theirs = theirs
        self._number = 0
        self._undone: set[bytes] = set()
        self.added = self.edited = self.deleted = 0
        self.overtaken: list[str] = []
        self.failed: list[tuple[str, str]] = []

    def run(self, judged: list[Judged]) -> None:
        """Directories that stay are opened up first and get their modes last, the deepest first: what is done below
        them may need more than their modes allow."""
        chosen = [each for each in judged if each.word == APPLY or (each.word == CONFLICT and self._theirs)]
        for each in chosen:
            if each.turns_mode:
                self._guarded(each, self._open_up)
        for each in reversed(chosen):
            if each.change.now is None or (_is(each.seen, "d") and not each.turns_mode):
                self._guarded(each, self._remove)
        for each in chosen:
            if each.change.now is not None and not each.turns_mode:
                self._guarded(each, self._make)
        for each in reversed(chosen):
            if _is(each.change.now, "d"):
                self._guarded(each, self._close_down)
        for each in chosen:
            if each.change.path not in self._undone:
                self._count(each)

    def _count(self, each: Judged) -> None:
        if each.change.now is None:
            self.deleted += 1
        elif each.seen is None:
            self.added += 1
        else:
            self.edited += 1

    def _guarded(self, each: Judged, act: Callable[[Judged], None]) -> None:
        path = each.change.path
        if path in self._undone:
            return
        try:
            act(each)
        except Overtaken:
            self._undone.add(path)
            self.overtaken.append(to_text(path))
        except OSError as error:
            self._undone.add(path)
            if error.errno in (*_GONE, errno.EEXIST):
                self.overtaken.append(to_text(path))
            else:
                self.failed.append((to_text(path), error.strerror or type(error).__name__))

    def _open_up(self, each: Judged) -> None:
        self._chmod(each, (each.seen.mode if each.seen else 0) | 0o700)

    def _close_down(self, each: Judged) -> None:
        if each.change.now is not None:
            self._chmod(each, each.change.now.mode)

    def _chmod(self, each: Judged, mode: int) -> None:
        with self._tree.directory(each.change.path) as fd:
            os.fchmod(fd, (os.fstat(fd).st_mode & 0o7000) | mode)

    def _remove(self, each: Judged) -> None:
        name = name_of(each.change.path)
        try:
            with self._tree.directory(parent_of(each.change.path)) as parent:
                if not _is(each.seen, "d"):
                    _still(name, parent, each.seen)
                    os.unlink(name, dir_fd=parent)
                elif each.over and self._theirs:
                    remove_tree(name, parent)
                else:
                    os.rmdir(name, dir_fd=parent)
        except OSError as error:
            if error.errno not in (*_GONE, errno.ENOTEMPTY, errno.EEXIST):
                raise
            # A directory lives on with what the source put into it; what has gone already is as it should be.
            if each.change.now is not None:
                raise Overtaken from None

    def _make(self, each: Judged) -> None:
        now, name = each.change.now, name_of(each.change.path)
        # A directory that had to give way is gone by now.
        expected = None if _is(each.seen, "d") else each.seen
        if each.word == CONFLICT:
            self._make_way(parent_of(each.change.path))
        with self._tree.directory(parent_of(each.change.path)) as parent:
            if now is None:
                return
            if now.kind == "d":
                if expected is not None:
                    _still(name, parent, expected)
                    os.unlink(name, dir_fd=parent)
                os.mkdir(name, 0o700, dir_fd=parent)
            elif now.kind == "l":
                self._place_link(now, expected, name, parent)
            elif expected is not None and expected.kind == "f" and expected.value == now.value:
                _still(name, parent, expected)
                fd = open_file(name, parent)
                try:
                    os.fchmod(fd, now.mode)
                finally:
                    os.close(fd)
            else:
                self._place_file(now, expected, name, parent)

    def _place_link(self, now: Entry, expected: Entry | None, name: bytes, parent: int) -> None:
        target = (now.value or "").encode("latin-1")
        if expected is None:
            os.symlink(target, name, dir_fd=parent)
            return
        with self._temporary(parent) as temporary:
            os.symlink(target, temporary, dir_fd=parent)
            _still(name, parent, expected)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)

    def _place_file(self, now: Entry, expected: Entry | None, name: bytes, parent: int) -> None:
        with self._temporary(parent) as temporary:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(temporary, flags, 0o600, dir_fd=parent), "wb") as file:
                for data in self._contents.read(now.value or ""):
                    file.write(data)
                file.flush()
                os.fchmod(file.fileno(), now.mode)
            if expected is None:
                try:
                    # Unlike a rename, a link takes no place that somebody else has taken meanwhile.
                    os.link(temporary, name, src_dir_fd=parent, dst_dir_fd=parent, follow_symlinks=False)
                    return
                except OSError as error:
                    if error.errno not in _NO_LINKS:
                        raise
            _still(name, parent, expected)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)

    @contextlib.contextmanager
    def _temporary(self, parent: int) -> Iterator[bytes]:
        """A name of our own, gone at the end."""
        self._number += 1
        name = TEMPORARY + self._token + b"-" + str(self._number).encode("ascii")
        try:
            yield name
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=parent)

    def _make_way(self, path: bytes) -> None:
        """Whatever stands in the place of a directory that the winner's version needs, links included, goes."""
        done = b""
        for part in path.split(b"/") if path else ():
            with self._tree.directory(done) as parent:
                there = entry_of(part, parent)
                if not _is(there, "d"):
                    if there is not None:
                        os.unlink(part, dir_fd=parent)
                    os.mkdir(part, 0o755, dir_fd=parent)
            done = done + b"/" + part if done else part


def _is(entry: Entry | None, kind: str) -> bool:
    return entry is not None and entry.kind == kind


def _still(name: bytes, parent: int, expected: Entry | None) -> None:
    if entry_of(name, parent) != expected:
        raise Overtaken


def remove_tree(name: bytes, parent: int | None) -> None:
    """A directory and all below it, following nothing. Raises OSError.

    However deep it is, one descriptor is open: on the way up each parent must be the folder that it was on the way
    down, so that a folder which is moved meanwhile leads nowhere else.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=parent)
    try:
        above: list[tuple[tuple[int, int], list[bytes], bytes]] = []
        pending = _without_files(fd)
        while pending or above:
            if pending:
                below = pending.pop()
                above.append((_identity(fd), pending, below))
                deeper = os.open(below, flags, dir_fd=fd)
                os.close(fd)
                fd = deeper
                pending = _without_files(fd)
            else:
                identity, pending, done = above.pop()
                higher = os.open("..", flags, dir_fd=fd)
                os.close(fd)
                fd = higher
                if _identity(fd) != identity:
                    raise OSError(errno.ESTALE, "a folder was moved")
                os.rmdir(done, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)


def _identity(fd: int) -> tuple[int, int]:
    facts = os.fstat(fd)
    return facts.st_dev, facts.st_ino


def _without_files(fd: int) -> list[bytes]:
    """Removes all but the folders, and returns these."""
    folders = []
    for name in (os.fsencode(each) for each in os.listdir(fd)):
        if stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode):
            folders.append(name)
        else:
            os.unlink(name, dir_fd=fd)
    return folders


# ------------------------------------------------------------------------------------------------- what a sandbox says

_DIGEST = re.compile(r"[0-9a-f]{64}|\?\d{1,20}")
_LARGEST_FILE = 2**62


class Nonsense(Stop):
    """What a sandbox said cannot be what this program says."""

    def __init__(self) -> None:
        super().__init__(NONSENSE)


def checked_path(text: Any) -> bytes:
    """Raises Nonsense."""
    try:
        path = from_text(text)
    except Stop:
        raise Nonsense from None
    if any(part.startswith(TEMPORARY) for part in path.split(b"/")):
        raise Nonsense
    return path


def checked_entry(row: Any) -> Entry:
    """Raises Nonsense."""
    if not isinstance(row, list) or len(row) != 4 or any(type(each) is not int for each in row[1:3]):
        raise Nonsense
    kind, mode, size, value = row
    fits = False
    if kind == "d":
        fits = 0 <= mode <= PERMISSIONS and size == 0 and value in (None, "?")
    elif kind == "f":
        fits = 0 <= mode <= PERMISSIONS and 0 <= size <= _LARGEST_FILE
        fits = fits and isinstance(value, str) and _DIGEST.fullmatch(value) is not None
    elif kind == "l":
        fits = (mode, size) == (0, 0) and isinstance(value, str) and 0 < len(value) < 4096
        fits = fits and "\0" not in value and max(value) <= "\xff"
    elif kind == "o":
        fits = (mode, size, value) == (0, 0, None)
    if not fits:
        raise Nonsense
    return Entry(kind, mode, size, value)


def checked_listing(rows: Any) -> dict[bytes, Entry]:
    """Raises Nonsense."""
    if not isinstance(rows, list):
        raise Nonsense
    found: dict[bytes, Entry] = {}
    for row in rows:
        if not isinstance(row, list) or len(row) != 5:
            raise Nonsense
        found[checked_path(row[0])] = checked_entry(row[1:])
    for path in found:
        if parent_of(path) and not _is(found.get(parent_of(path)), "d"):
            raise Nonsense
    return found


def difference(base: dict[bytes, Entry], winner: dict[bytes, Entry]) -> tuple[list[Change], list[bytes]]:
    """The changes, parents before what lies below them, and the paths whose change is not moved, with what lies below
    them."""
    changes, skipped = [], []
    barrier: bytes | None = None
    for path in sorted(base.keys() | winner.keys(), key=depth_first):
        if barrier is not None and path.startswith(barrier):
            continue
        before, now = base.get(path), winner.get(path)
        if before == now:
            continue
        # Sockets, pipes and devices stay where they are.
        if _is(before, "o") or _is(now, "o") or (now is not None and now.unreadable):
            skipped.append(path)
            barrier = path + b"/"
            continue
        changes.append(Change(path, before, now))
    return changes, skipped


# ------------------------------------------------------------------------------------------------------------ the wire


def entry_from(row: Any) -> Entry | None:
    return None if row is None else Entry(*row)


def changes_from(rows: list[Any]) -> list[Change]:
    changes = [Change(from_text(path), entry_from(base), entry_from(now)) for path, base, now in rows]
    return sorted(changes, key=lambda change: depth_first(change.path))


def load(path: str) -> Any:
    with open(path, "rb") as file:
        return json.loads(zlib.decompressobj().decompress(file.read(LARGEST_LISTING), LARGEST_LISTING))


def packed(value: Any) -> bytes:
    return zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 1)


def store(path: str, value: Any) -> None:
    with open(path, "xb") as file:
        file.write(packed(value))


def scan(tree: Tree, most: str, size: str, directory: str) -> None:
    """Writes the listing into parts of `size` bytes, named listing-0, listing-1, ...; the last one is shorter."""
    listing = packed([[to_text(path), *entry] for path, entry in tree.walk(int(most))])
    for number in range(len(listing) // int(size) + 1):
        with open(os.path.join(directory, f"listing-{number}"), "xb") as part:
            part.write(listing[number * int(size) : (number + 1) * int(size)])


def diff(tree: Tree, directory: str, parts: str, most: str, most_changes: str, out: str) -> None:
    """What the winner changed of this tree. Its listing is in parts, whose names have commas between them."""
    listing = b""
    for name in parts.split(","):
        with open(os.path.join(directory, name), "rb") as file:
            listing += file.read()
    try:
        whole = zlib.decompressobj()
        text = whole.decompress(listing, LARGEST_LISTING)
        if whole.unconsumed_tail:
            raise Stop("the winner's listing is too large")
        rows = json.loads(text)
    except (zlib.error, ValueError, RecursionError):
        raise Nonsense from None
    changes, skipped = difference(dict(tree.walk(int(most))), checked_listing(rows))
    if len(changes) > int(most_changes):
        raise Stop(f"the winner made more than {most_changes} changes")
    told = [[to_text(change.path), change.base, change.now] for change in changes]
    store(out, {"changes": told, "skipped": [to_text(path) for path in skipped[:MOST_SKIPPED]]})


def leftovers(tree: Tree, directory: str, prefix: str, seconds: str, out: str) -> None:
    """What promotions that were killed have left, older than so many seconds: removes what is this user's, and tells
    the files that are not."""
    files: list[str] = []
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        if not name.startswith(prefix) or len(files) >= MOST_SKIPPED:
            continue
        with contextlib.suppress(OSError):
            facts = os.lstat(path)
            if facts.st_mtime > time.time() - float(seconds):
                continue
            if stat.S_ISDIR(facts.st_mode):
                remove_tree(os.fsencode(path), None)
                continue
            with contextlib.suppress(Stop, ValueError, KeyError, TypeError, AttributeError, zlib.error):
                sweep(tree, path)
            files.append(name)
    store(out, files)


def check(tree: Tree, asked: str, out: str) -> None:
    changes = changes_from(load(asked)["changes"])
    store(out, [[to_text(each.change.path), each.word, each.seen] for each in judge(tree, changes)])


def pack(tree: Tree, asked: str, directory: str, size: str) -> None:
    """Writes the wanted files one after the other into parts of `size` bytes, named 0, 1, ..."""
    most, offset = int(size), 0
    try:
        for text, digest in load(asked)["wanted"]:
            path, found = from_text(text), hashlib.sha256()
            with tree.directory(parent_of(path)) as parent, open(open_file(name_of(path), parent), "rb") as file:
                while True:
                    number, start = divmod(offset, most)
                    data = file.read(min(CHUNK, most - start))
                    if not data:
                        break
                    with open(os.path.join(directory, str(number)), "ab") as part:
                        part.write(data)
                    found.update(data)
                    offset += len(data)
            if found.hexdigest() != digest:
                raise Stop("a file of the winner changed while it was read")
    except OSError as error:
        raise Stop(f"a file of the winner cannot be read: {error.strerror}") from None


def apply(tree: Tree, asked: str, directory: str, out: str) -> None:
    wanted = load(asked)
    contents = Contents(directory, wanted["parts"], [(digest, size) for digest, size in wanted["stream"]])
    contents.check()
    judged = judge(tree, changes_from(wanted["changes"]))
    conflicts = [to_text(each.change.path) for each in judged if each.word == CONFLICT]
    if conflicts and wanted["on_conflict"] == "refuse":
        store(out, {"refused": True, "conflicts": conflicts})
        return
    work = Apply(tree, contents, wanted["token"].encode("ascii"), theirs=wanted["on_conflict"] == "theirs")
    work.run(judged)
    same = sum(each.word == SAME for each in judged)
    counts = {"added": work.added, "edited": work.edited, "deleted": work.deleted, "already": same}
    told = {"refused": False, "conflicts": conflicts, "overtaken": work.overtaken, "failed": work.failed, **counts}
    try:
        store(out, told)
    except OSError as error:
        raise RuntimeError from error  # not a reason to stop: the changes are made


def sweep(tree: Tree, asked: str) -> None:
    """Removes the temporary names that a promotion which was cut off left behind."""
    wanted = load(asked)
    ours = TEMPORARY + wanted["token"].encode("ascii") + b"-"
    for path in {parent_of(change.path) for change in changes_from(wanted["changes"])}:
        with contextlib.suppress(OSError), tree.directory(path) as parent:
            for name in [os.fsencode(each) for each in os.listdir(parent)]:
                if name.startswith(ours):
                    with contextlib.suppress(OSError):
                        os.unlink(name, dir_fd=parent)


def clean(tree: Tree, scratch: str) -> None:
    remove_tree(os.fsencode(scratch), None)


OPERATIONS: dict[str, Callable[..., None]] = {
    "scan": scan, "diff": diff, "check": check, "pack": pack, "apply": apply, "sweep": sweep, "clean": clean,
    "leftovers": leftovers,
}  # fmt: skip


def main(arguments: list[str], root: str = ".") -> str:
    """`arguments`: a directory for the outputs, made where it is not there; an operation; what that takes. Returns a
    JSON object: why it stopped, or nothing."""
    scratch, operation, *rest = arguments
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(scratch, 0o700)
        facts = os.lstat(scratch)
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
            raise Stop("the scratch directory is not ours")
        tree = Tree(root)
        try:
            OPERATIONS[operation](tree, *rest)
        finally:
            tree.close()
    except Stop as stop:
        return json.dumps({"stopped": str(stop)})
    except OSError as error:
        return json.dumps({"stopped": f"{operation}: {error.strerror or type(error).__name__}"})
    return "{}"


if __name__ == "__main__":
    os.umask(0o077)
    sys.stdout.write(main(sys.argv[1:]) + "\n")
