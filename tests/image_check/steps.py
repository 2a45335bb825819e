"""The steps of a Dockerfile, carried out: FROM, ARG, ENV, WORKDIR, USER, COPY and RUN, of one stage or several.

Whatever else would change files is an error. What only says how a container is started comes back.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from infra.local.tensorlake.dockerfile import steps
from infra.local.tensorlake.layers import DEFAULT_PATH
from tests.image_check.root import Root

RUN_SECONDS: Final = 1800.0
_VARIABLE: Final = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
_FLAG: Final = re.compile(r"--([a-z-]+)=(\S+)\s*")
_WORDS: Final = 40  # lines of a failed step's output


class StepFailed(Exception):
    """A step that failed, with its line and what it said."""


@dataclass(slots=True)
class BuiltRoot:
    """A root that a Dockerfile came to, and how a container of it is started."""

    root: Root
    env: dict[str, str] = field(default_factory=lambda: {"PATH": DEFAULT_PATH})
    user: str = "root"
    folder: str = "/"
    command: list[str] = field(default_factory=list)

    def begun_anew(self, folder: Path) -> BuiltRoot:
        """What a stage is that begins with this one."""
        return replace(self, root=Root.copied(self.root.directory, folder), env=dict(self.env))

    @property
    def environ(self) -> dict[str, str]:
        name = self.user.split(":")[0]
        return {"HOME": "/root" if name in ("root", "0") else f"/home/{name}", **self.env}


def build(text: str, context: Path, base: Path, place: Path, say: Callable[[str], None]) -> BuiltRoot:
    """Each stage becomes a folder in `place`, made from the earlier stage that its FROM names, or else from `base`,
    whatever that is. The last one. Raises StepFailed."""
    stages: dict[str, BuiltRoot] = {}
    args: dict[str, str] = {}
    built: BuiltRoot | None = None
    for step in steps(text):
        where = f"line {step.line}: {step.instruction}"
        if step.instruction == "FROM":
            source, _, name = _filled(step.text, args).partition(" AS ")
            earlier, folder = stages.get(source.strip()), place / f"stage{len(stages)}"
            built = BuiltRoot(Root.copied(base, folder)) if earlier is None else earlier.begun_anew(folder)
            stages[name.strip() or str(len(stages))] = built
            say(f"{where} {source} {name}: the base is {earlier.root.directory if earlier else base}")
        elif step.instruction == "ARG":
            name, _, value = step.text.partition("=")
            args[name] = value
        elif built is None:
            raise StepFailed(f"{where} before FROM")
        else:
            began = time.monotonic()
            _carry_out(step.instruction, step.text, built, context, stages, where)
            if step.instruction == "RUN":
                say(f"{where} {step.text[:70]}... {time.monotonic() - began:.1f} s")
    if built is None:
        raise StepFailed("no FROM")
    return built


def _carry_out(
    instruction: str, text: str, built: BuiltRoot, context: Path, stages: dict[str, BuiltRoot], where: str
) -> None:
    match instruction:
        case "ENV":
            for pair in text.split():
                name, _, value = pair.partition("=")
                built.env[name] = _filled(value, built.env)
        case "WORKDIR":
            built.folder = text
            built.root.within(text).mkdir(parents=True, exist_ok=True)
        case "USER":
            built.user = text
        case "COPY":
            _copy(text, built, context, stages, where)
        case "RUN":
            done = built.root.run(
                ["/bin/sh", "-c", text],
                env={**built.environ, **built.root.ways_out()},
                user=built.user,
                folder=built.folder,
                timeout=RUN_SECONDS,
            )
            if done.returncode != 0:
                said = "\n".join(done.stdout.splitlines()[-_WORDS:])
                raise StepFailed(f"{where} {text}\nended with {done.returncode}:\n{said}")
        case "CMD":
            built.command = json.loads(text)
        case "EXPOSE" | "LABEL":
            pass
        case other:
            raise StepFailed(f"{where}: {other} is not carried out here")


def _copy(text: str, built: BuiltRoot, context: Path, stages: dict[str, BuiltRoot], where: str) -> None:
    flags: dict[str, str] = {}
    while found := _FLAG.match(text):
        flags[found[1]] = found[2]
        text = text[found.end() :]
    *sources, target = text.split()
    owner = built.root.ids(flags.get("chown", "root:root"))
    for source in sources:
        start = stages[flags["from"]].root.within(source) if "from" in flags else context / source
        if not start.exists():
            raise StepFailed(f"{where}: {source} is not there")
        place = built.root.within(target)
        if not start.is_dir() and (target.endswith("/") or place.is_dir()):
            place /= start.name
        place.parent.mkdir(parents=True, exist_ok=True)
        if start.is_dir():
            shutil.copytree(start, place, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(start, place)
        for path in [place, *(place.rglob("*") if place.is_dir() else [])]:
            os.lchown(path, *owner)


def _filled(text: str, values: dict[str, str]) -> str:
    return _VARIABLE.sub(lambda match: values.get(match[1] or match[2], ""), text)


def to_stderr(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)
