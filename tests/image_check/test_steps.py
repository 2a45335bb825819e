"""A Dockerfile's stages, without the steps that only root can carry out."""

from __future__ import annotations

import os
from pathlib import Path

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
