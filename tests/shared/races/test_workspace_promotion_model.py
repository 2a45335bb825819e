"""Promotion between plain folders, against a model of what it should do."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.races.workspace_promotion import (
    OnConflict,
    PromotionRefused,
)
from tests.support.folder_models import Model, read, write
from tests.support.promotion_folders import Folders

POLICIES: Final = get_args(OnConflict)

# Few names, so that edits meet; one that a line and a decoder would stumble over.
NAMES: Final = st.sampled_from([b"a", b"b\n\xff"])
CONTENTS: Final = st.sampled_from([b"", b"one", b"two\0", b"three" * 40])
MODES: Final = st.sampled_from([0o644, 0o755, 0o600])
FOLDER_MODES: Final = st.sampled_from([0o755, 0o700])
NODES: Final = st.one_of(
    st.tuples(st.just("f"), MODES, CONTENTS),
    st.tuples(st.just("l"), st.sampled_from([b"a", b"../..", b"/etc", b"nowhere"])),
    st.tuples(st.just("d"), FOLDER_MODES),
)
PATHS: Final = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
EDITS: Final = st.lists(st.tuples(PATHS, st.one_of(st.none(), NODES)), max_size=8)


def edited(model: Model, edits: Sequence[tuple[bytes, Any]]) -> Model:
    """Each edit removes what is at a path, and puts something there unless a parent is missing or no folder."""
    result = dict(model)
    for path, node in edits:
        parent = path.rpartition(b"/")[0]
        if parent and result.get(parent, ("",))[0] != "d":
            continue
        old = result.get(path)
        if not (node is not None and node[0] == "d" and old is not None and old[0] == "d"):
            result = {key: value for key, value in result.items() if key != path and not key.startswith(path + b"/")}
        if node is not None:
            result[path] = node
    return result


def above(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"/".join(parts[:count]) for count in range(1, len(parts))]


def kind(model: Model, path: bytes) -> str | None:
    return model[path][0] if path in model else None


class Expected:
    """What the words say, without how it is done."""

    def __init__(self, base: Model, winner: Model, source: Model) -> None:
        self.base, self.winner, self.source = base, winner, source
        self.changed = {path for path in base.keys() | winner.keys() if base.get(path) != winner.get(path)}

    def agree(self, path: bytes) -> bool:
        return self.source.get(path) == self.winner.get(path)

    def plain_conflict(self, path: bytes) -> bool:
        return not self.agree(path) and self.source.get(path) != self.base.get(path)

    def conflict(self, path: bytes) -> bool:
        """Content, kind or mode differ from both, or there is no longer a folder to put it in, or what the source put
        into a folder since stands in the way of what the folder becomes."""
        if self.agree(path):
            return False
        if self.plain_conflict(path):
            return True
        if path not in self.winner:
            return False
        for parent in above(path):
            if parent in self.changed:
                if not self.agree(parent) and self.conflict(parent):
                    return True
            elif kind(self.source, parent) != "d":
                return True
        return self.crowded(path)

    def crowded(self, path: bytes) -> bool:
        if kind(self.source, path) != "d" or kind(self.winner, path) in ("d", None):
            return False
        return any(
            key.startswith(path + b"/")
            and not (key in self.changed and key not in self.winner and not self.plain_conflict(key))
            for key in self.source
        )

    def left_over(self, path: bytes, result: Model) -> bool:
        """A folder that the winner removed, and that something else still lives in."""
        return (
            path not in self.winner
            and kind(self.source, path) == "d"
            and any(key.startswith(path + b"/") for key in result)
        )


@given(base=EDITS, winner=EDITS, source=EDITS, on_conflict=st.sampled_from(POLICIES))
@settings(max_examples=150)
def test_a_promotion_does_what_the_model_says(
    base: list[tuple[bytes, Any]],
    winner: list[tuple[bytes, Any]],
    source: list[tuple[bytes, Any]],
    on_conflict: OnConflict,
) -> None:
    start = edited({}, base)
    models = {"base": start, "winner": edited(start, winner), "source": edited(start, source)}
    expected = Expected(**models)
    with new_folders() as folders:
        for site, model in models.items():
            write(folders[site], model)
        conflicts = {path for path in expected.changed if expected.conflict(path)}
        if conflicts and on_conflict == "refuse":
            with pytest.raises(PromotionRefused) as refused:
                folders.promote(on_conflict)
            assert len(refused.value.conflicts) == len(conflicts)
            assert read(folders["source"]) == models["source"]
        else:
            report = folders.promote(on_conflict)
            assert report.complete
            assert len(report.conflicts) == len(conflicts)
            agreed = sum(expected.agree(path) for path in expected.changed)
            kept = len(conflicts) if on_conflict == "ours" else 0
            assert report.already == agreed
            assert report.added + report.edited + report.deleted == len(expected.changed) - agreed - kept
            check(expected, conflicts, on_conflict, read(folders["source"]))
            again = read(folders["source"])
            if on_conflict == "theirs":
                folders.promote(on_conflict)
                assert read(folders["source"]) == again
        assert read(folders["base"]) == models["base"]
        assert read(folders["winner"]) == models["winner"]
        folders.check_nothing_is_left()


def check(expected: Expected, conflicts: set[bytes], on_conflict: OnConflict, result: Model) -> None:
    winner, source = expected.winner, expected.source
    taken = expected.changed - (conflicts if on_conflict == "ours" else set())
    for path in taken:
        assert result.get(path) == winner.get(path) or expected.left_over(path, result), path
    needed = {parent for path in taken if path in winner for parent in above(path)}
    for path in source.keys() - taken:
        if any(parent in taken and kind(winner, parent) not in ("d", None) for parent in above(path)):
            assert on_conflict == "theirs" and path not in result, path
        elif on_conflict == "theirs" and path in needed and kind(source, path) != "d":
            assert kind(result, path) == "d", path
        else:
            assert result.get(path) == source[path], path
    for path in result.keys() - source.keys() - taken:
        assert on_conflict == "theirs" and path in needed, path


@contextmanager
def new_folders() -> Any:
    root = tempfile.mkdtemp(prefix="promotion-test-")
    try:
        yield Folders(Path(root))
    finally:
        shutil.rmtree(root)
