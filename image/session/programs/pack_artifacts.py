"""Finds and packs what a branch has left; runs in the branch's sandbox, as the agent's user, in its working directory.

It travels as text (`python -I -S -c`), so it imports the standard library only and keeps to what Python 3.8 knows.
Arguments: the globs as a JSON list, the most bytes of content in all, the most files. It prints one JSON object in
lines that are to be joined without their ends: `files` is a list of [path, size, base64 or null, reason or null], and
`more` tells whether there were more files than are listed. No symbolic link is followed and none is listed.
"""

# It works on plain names, as os.walk gives them.

from __future__ import annotations

import base64
import fnmatch
import json
import os
import sys
from collections.abc import Iterator, Sequence

MOST_ENTRIES = 200_000
LINE = 8_192


def matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path fits a glob, both in parts; `**` is any number of folders, and at the end all below."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        if len(pattern) == 1:
            return bool(parts)
        return any(matches(parts[skipped:], pattern[1:]) for skipped in range(len(parts)))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])


def found(globs: Sequence[str]) -> Iterator[str]:
    """Paths of regular files, sorted, among the first entries of the tree."""
    patterns = [glob.split("/") for glob in globs]
    hits: list[str] = []
    seen = 0
    pending = ["."]  # not os.walk, which calls itself for each folder in a folder
    while pending:
        try:
            with os.scandir(pending.pop()) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError:
            continue  # not ours to read, gone, or a path longer than the system takes
        seen += len(entries)
        if seen > MOST_ENTRIES:
            break
        pending += [entry.path for entry in reversed(entries) if entry.is_dir(follow_symlinks=False)]
        for path in (os.path.normpath(entry.path) for entry in entries if entry.is_file(follow_symlinks=False)):
            parts = path.split("/")
            if any(matches(parts, pattern) for pattern in patterns):
                hits.append(path)
    return iter(sorted(hits))


def row(path: str, left: int) -> tuple[str, int, str | None, str | None]:
    """One file; `left` is how many bytes of content it may have."""
    shown = os.fsencode(path).decode("utf-8", "backslashreplace")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return shown, 0, None, f"cannot be read ({error.strerror})"
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        if size > left:
            return shown, size, None, f"larger than what is left of the branch's {sys.argv[2]} bytes"
        data = file.read(left + 1)
    if len(data) > left:
        return shown, len(data), None, "it grew while it was read"
    return shown, len(data), base64.b64encode(data).decode(), None


def main() -> None:
    globs, left, most = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    rows: list[tuple[str, int, str | None, str | None]] = []
    more = False
    for path in found(globs):
        if len(rows) == most:
            more = True
            break
        rows.append(row(path, left))
        content = rows[-1][2]
        if content is not None:
            left -= rows[-1][1]
    text = json.dumps({"files": rows, "more": more})
    for start in range(0, len(text), LINE):
        sys.stdout.write(text[start : start + LINE] + "\n")


if __name__ == "__main__":
    main()
