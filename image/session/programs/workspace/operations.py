"""The program itself: one operation in one sandbox, its inputs and answers in files."""

# A tree is walked by directory descriptors, which pathlib does not know.
# ruff: noqa: PTH102, PTH118, PTH123, PTH208

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

from image.session.programs.workspace.applying import Apply
from image.session.programs.workspace.contents import Contents
from image.session.programs.workspace.entries import (
    TEMPORARY,
    Stop,
    TreeChange,
    TreeEntry,
    depth_first,
    from_text,
    name_of,
    parent_of,
    to_text,
)
from image.session.programs.workspace.listing import Nonsense, checked_listing, difference
from image.session.programs.workspace.removal import remove_tree
from image.session.programs.workspace.tree import Tree, open_file
from image.session.programs.workspace.verdicts import CONFLICT, SAME, judge

CHUNK = 1024 * 1024
LARGEST_LISTING = 64 * 1024 * 1024  # bytes, unpacked
MOST_SKIPPED = 1_000


def entry_from(row: Any) -> TreeEntry | None:
    return None if row is None else TreeEntry(*row)


def changes_from(rows: list[Any]) -> list[TreeChange]:
    changes = [TreeChange(from_text(path), entry_from(base), entry_from(now)) for path, base, now in rows]
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
    for path in dict.fromkeys(parent_of(change.path) for change in changes_from(wanted["changes"])):
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
