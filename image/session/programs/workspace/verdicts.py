"""Each change beside the source, which lives on: what it meets there is one of three, the winner's entry (`same`), the
base's (it is applied), or another one (a conflict).
"""

from __future__ import annotations

from typing import NamedTuple

from image.session.programs.workspace.entries import TreeChange, TreeEntry, of_kind, parent_of
from image.session.programs.workspace.tree import Tree

SAME, APPLY, CONFLICT = "same", "apply", "conflict"


class Judged(NamedTuple):
    """A change beside the source: what was `seen` at its path; `over` says that things lie below it that no change
    names."""

    change: TreeChange
    word: str
    seen: TreeEntry | None
    over: bool = False

    @property
    def turns_mode(self) -> bool:
        return of_kind(self.change.now, "d") and of_kind(self.seen, "d")


def judge(tree: Tree, changes: list[TreeChange]) -> list[Judged]:
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
    going = {path for path, each in judged.items() if each.word == APPLY and not of_kind(each.change.now, "d")}
    for path, (change, word, seen, _) in judged.items():
        # A directory gives way to something else: what the source put below it meanwhile is in the way.
        gives_way = word != SAME and change.now is not None and change.now.kind != "d" and of_kind(seen, "d")
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
    return of_kind(tree.look(parent), "d")


def _holds_more(tree: Tree, path: bytes, going: set[bytes]) -> bool:
    pending = [path]
    while pending:
        here = pending.pop()
        for name in tree.names(here):
            below = here + b"/" + name
            if below not in going:
                return True
            if of_kind(tree.look(below), "d"):
                pending.append(below)
    return False
