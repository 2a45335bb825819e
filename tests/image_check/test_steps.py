"""A Dockerfile's stages, without the steps that only root can carry out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.image_check.root import CannotCheck, bootstrap
from tests.image_check.steps import build

STAGES = """ARG BASE=debian
FROM ${BASE} AS first
ENV KIND=first
WORKDIR /app
COPY one /app/one
USER 1000
CMD ["one"]
FROM first AS second
COPY two /app/two
ENV KIND=second
FROM ${BASE} AS third
COPY --from=second /app/one /app/three
FROM second
"""


def test_a_stage_begins_with_the_earlier_one_that_it_names_and_leaves_that_as_it_is(tmp_path: Path) -> None:
    base, context, place = tmp_path / "base", tmp_path / "context", tmp_path / "place"
    for folder in (base / "etc", base / "usr/local/bin", context, place):
        folder.mkdir(parents=True)
    me = f"root:x:{os.getuid()}:{os.getgid()}:\n"  # who may give files to himself alone
    (base / "etc/passwd").write_text(me)
    (base / "etc/group").write_text(f"root:x:{os.getgid()}:\n")
    for name in ("one", "two"):
        (context / name).write_text(name)
    built = build(STAGES, context, base, place, lambda said: None)
    assert (built.user, built.folder, built.command, built.env["KIND"]) == ("1000", "/app", ["one"], "second")
    held = [{each.name for each in (place / f"stage{number}").glob("app/*")} for number in range(4)]
    assert held == [{"one"}, {"one", "two"}, {"three"}, {"one", "two"}]


def test_a_base_that_no_mirror_gives_is_a_reason_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "mmdebstrap"
    program.write_text("#!/bin/sh\necho 'E: cannot reach \033[31m it' >&2\nexit 100\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(CannotCheck, match=r"^no trixie came from http://mirror\.example .*cannot reach \\x1b"):
        bootstrap(tmp_path / "base", "trixie", "http://mirror.example")
