"""The changes are made in the source, each compared once more right before."""

# A tree is walked by directory descriptors, which pathlib does not know.
# ruff: noqa: PTH123

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator

from image.session.programs.workspace.contents import Contents
from image.session.programs.workspace.entries import TEMPORARY, TreeEntry, name_of, of_kind, parent_of, to_text
from image.session.programs.workspace.removal import remove_tree
from image.session.programs.workspace.tree import DIRECTORY, GONE, Tree, entry_of, open_file
from image.session.programs.workspace.verdicts import APPLY, CONFLICT, Judged

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV)


class Overtaken(Exception):
    """The path is not what it was when it was judged."""


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
        self._tree.start_anew()
        for each in chosen:
            if each.turns_mode:
                self._guarded(each, self._open_up)
        self._tree.start_anew()
        for each in reversed(chosen):
            if each.change.now is None or (of_kind(each.seen, "d") and not each.turns_mode):
                self._guarded(each, self._remove)
        self._tree.start_anew()
        for each in chosen:
            if each.change.now is not None and not each.turns_mode:
                self._guarded(each, self._make)
        self._tree.start_anew()
        for each in reversed(chosen):
            if of_kind(each.change.now, "d"):
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
            if error.errno in (*GONE, errno.EEXIST):
                self.overtaken.append(to_text(path))
            else:
                self.failed.append((to_text(path), error.strerror or type(error).__name__))

    def _open_up(self, each: Judged) -> None:
        self._chmod(each, (each.seen.mode if each.seen else 0) | 0o700)

    def _close_down(self, each: Judged) -> None:
        if each.change.now is not None:
            self._chmod(each, each.change.now.mode)

    def _chmod(self, each: Judged, mode: int) -> None:
        # From its parent: nobody may go up from a folder that has got such a mode.
        with self._tree.directory(parent_of(each.change.path)) as parent:
            fd = os.open(name_of(each.change.path), DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
            try:
                os.fchmod(fd, (os.fstat(fd).st_mode & 0o7000) | mode)
            finally:
                os.close(fd)

    def _remove(self, each: Judged) -> None:
        name = name_of(each.change.path)
        try:
            with self._tree.directory(parent_of(each.change.path)) as parent:
                if not of_kind(each.seen, "d"):
                    _still(name, parent, each.seen)
                    os.unlink(name, dir_fd=parent)
                elif each.over and self._theirs:
                    remove_tree(name, parent)
                else:
                    os.rmdir(name, dir_fd=parent)
        except OSError as error:
            if error.errno not in (*GONE, errno.ENOTEMPTY, errno.EEXIST):
                raise
            # A directory lives on with what the source put into it; what has gone already is as it should be.
            if each.change.now is not None:
                raise Overtaken from None

    def _make(self, each: Judged) -> None:
        now, name = each.change.now, name_of(each.change.path)
        # A directory that had to give way is gone by now.
        expected = None if of_kind(each.seen, "d") else each.seen
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

    def _place_link(self, now: TreeEntry, expected: TreeEntry | None, name: bytes, parent: int) -> None:
        target = (now.value or "").encode("latin-1")
        if expected is None:
            os.symlink(target, name, dir_fd=parent)
            return
        with self._temporary(parent) as temporary:
            os.symlink(target, temporary, dir_fd=parent)
            _still(name, parent, expected)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)

    def _place_file(self, now: TreeEntry, expected: TreeEntry | None, name: bytes, parent: int) -> None:
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
        try:
            with self._tree.directory(path):
                return
        except OSError as error:
            if error.errno not in GONE:
                raise
        done = b""
        for part in path.split(b"/") if path else ():
            with self._tree.directory(done) as parent:
                there = entry_of(part, parent)
                if not of_kind(there, "d"):
                    if there is not None:
                        os.unlink(part, dir_fd=parent)
                    os.mkdir(part, 0o755, dir_fd=parent)
            done = done + b"/" + part if done else part


def _still(name: bytes, parent: int, expected: TreeEntry | None) -> None:
    if entry_of(name, parent) != expected:
        raise Overtaken
