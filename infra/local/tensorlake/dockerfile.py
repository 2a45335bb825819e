"""Dockerfiles as far as they can be honoured without running anything.

Applied: FROM, ARG, ENV, WORKDIR, USER, COPY and ADD of files in the context. Recorded and never executed: RUN.
Recorded only: what says how a container is started. A step that cannot be honoured and would leave the image
without its files (another stage, a remote source) is an error: an image is never silently incomplete.
"""

from __future__ import annotations

import copy as copying
import json
import os
import re
import shlex
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from infra.local.tensorlake import trees
from infra.local.tensorlake.layers import DEFAULT_PATH, Runtime

_VARIABLE = re.compile(r"\\(?P<escaped>\$)|\$(?:(?P<plain>\w+)|\{(?P<name>\w+)(?::(?P<op>[-+])(?P<word>[^}]*))?\})")
_HEREDOC = re.compile(r"<<-?\s*[\"']?(\w+)[\"']?")
_FLAG = re.compile(r"--([a-z-]+)=(\S+)\s*")
_STARTING = {"CMD", "ENTRYPOINT", "EXPOSE", "LABEL", "HEALTHCHECK", "STOPSIGNAL", "VOLUME", "SHELL", "MAINTAINER"}


class DockerfileError(Exception):
    """A step that is wrong or cannot be honoured; the text names its line."""


@dataclass(frozen=True)
class BuildStep:
    line: int
    instruction: str
    text: str
    """What follows the instruction, continuations joined and variables not yet replaced."""


@dataclass(frozen=True)
class Copy:
    line: int
    sources: tuple[str, ...]
    target: str
    """Absolute; ends with a slash if it must be a directory."""
    mode: int | None
    extract: bool
    """ADD unpacks local tar files."""


@dataclass(frozen=True)
class ImagePlan:
    """What a Dockerfile comes to."""

    parent: str
    runtime: Runtime
    directories: tuple[str, ...]
    """Made before anything is copied, as WORKDIR makes them."""
    copies: tuple[Copy, ...]
    not_executed: tuple[str, ...]
    notes: tuple[str, ...]


def steps(text: str) -> Iterator[BuildStep]:
    """Instructions with their line numbers. Here-documents are skipped: only RUN could use them."""
    pending, first, until = "", 0, ""
    for number, raw in enumerate(text.splitlines(), 1):
        if until:
            until = "" if raw.strip() == until else until
            continue
        line = raw.strip()
        if line.startswith("#") or (not line and not pending):
            continue
        first = first if pending else number
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        whole = pending + line
        pending = ""
        instruction, _, rest = whole.partition(" ")
        step = BuildStep(first, instruction.upper(), rest.strip())
        if step.instruction == "RUN" and (document := _HEREDOC.search(rest)):
            until = document.group(1)
        yield step
    if pending.strip():
        raise DockerfileError(f"line {first}: the last line is continued")


@dataclass
class _BuildReading:
    """State while the steps are read in order."""

    build_args: Mapping[str, str]
    args: dict[str, str] = field(default_factory=dict)
    runtime: Runtime = field(default_factory=Runtime)
    owned: list[str] = field(default_factory=list)
    directories: list[str] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    not_executed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def words(self, text: str) -> str:
        known = {"PATH": DEFAULT_PATH, **self.args, **self.runtime.env}

        def value(match: re.Match[str]) -> str:
            if match["escaped"]:
                return "$"
            found = known.get(match["plain"] or match["name"], "")
            if match["op"] == "-":
                return found or match["word"]
            if match["op"] == "+":
                return match["word"] if found else ""
            return found

        return _VARIABLE.sub(value, text)

    def absolute(self, path: str) -> str:
        whole = path if path.startswith("/") else f"{self.runtime.workdir.rstrip('/')}/{path}"
        normal = os.path.normpath(whole)
        must_be_directory = path.endswith(("/", "/.", "/..")) or path in (".", "..")
        return f"{normal}/" if must_be_directory and normal != "/" else normal


def read(text: str, build_args: Mapping[str, str], inherited: Mapping[str, Runtime]) -> ImagePlan:
    """Read a whole Dockerfile. `inherited` has the runtime of each registered image that FROM may name."""
    state = _BuildReading(build_args)
    parent = ""
    for step in steps(text):
        if step.instruction == "ARG":
            name, _, default = step.text.partition("=")
            if name in build_args or default:
                state.args[name] = build_args.get(name) or state.words(_unquoted(default))
        elif step.instruction == "FROM":
            if parent:
                raise DockerfileError(f"line {step.line}: builds with several stages are not supported offline")
            parent = state.words(step.text).split()[0]
            state.runtime = inherited.get(parent, Runtime(workdir="/workspace"))
        elif not parent:
            raise DockerfileError(f"line {step.line}: {step.instruction} before FROM")
        else:
            _apply(step, state)
    if not parent:
        raise DockerfileError("no FROM")
    owned = tuple(dict.fromkeys([*state.runtime.owned, *state.owned]))
    runtime = replace(state.runtime, owned=owned)
    return ImagePlan(
        parent,
        runtime,
        tuple(state.directories),
        tuple(state.copies),
        tuple(state.not_executed),
        tuple(state.notes),
    )


def _apply(step: BuildStep, state: _BuildReading) -> None:
    match step.instruction:
        case "ENV":
            state.runtime = replace(state.runtime, env={**state.runtime.env, **_env(step, state)})
        case "WORKDIR":
            directory = state.absolute(state.words(_unquoted(step.text)).rstrip("/") or "/")
            state.directories.append(directory)
            state.runtime = replace(state.runtime, workdir=directory)
        case "USER":
            state.runtime = replace(state.runtime, user=_user(step, state))
        case "RUN":
            state.not_executed.append(step.text)
        case "COPY" | "ADD":
            state.copies.append(_copy(step, state))
        case other if other in _STARTING:
            state.notes.append(f"line {step.line}: {other} has no effect on a sandbox")
        case other:
            raise DockerfileError(f"line {step.line}: {other} is not supported offline")


def _user(step: BuildStep, state: _BuildReading) -> str:
    name = state.words(step.text).split(":")[0]
    if name in ("0", "root"):
        return "root"
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", name):
        raise DockerfileError(f"line {step.line}: USER {name!r} must be a user's name")
    return name


def _env(step: BuildStep, state: _BuildReading) -> dict[str, str]:
    first = step.text.split()[0] if step.text.split() else ""
    if "=" not in first:
        name, _, value = step.text.partition(" ")
        return {name: state.words(value.strip())}
    try:
        pairs = [part.partition("=") for part in shlex.split(step.text)]
    except ValueError as error:
        raise DockerfileError(f"line {step.line}: ENV: {error}") from None
    return {name: state.words(value) for name, _, value in pairs}


def _copy(step: BuildStep, state: _BuildReading) -> Copy:
    text, flags = step.text, {}
    while found := _FLAG.match(text):
        flags[found.group(1)] = state.words(found.group(2))
        text = text[found.end() :]
    if "from" in flags:
        raise DockerfileError(f"line {step.line}: COPY --from is not supported offline")
    try:
        paths = json.loads(text) if text.startswith("[") else text.split()
    except ValueError:
        raise DockerfileError(f"line {step.line}: not a JSON list of paths") from None
    paths = [state.words(_unquoted(path)) for path in paths]
    if len(paths) < 2:
        raise DockerfileError(f"line {step.line}: {step.instruction} needs a source and a target")
    *sources, target = paths
    if any("://" in source for source in sources):
        raise DockerfileError(f"line {step.line}: remote sources are not supported offline")
    target = state.absolute(target)
    owner = flags.get("chown", "").split(":")[0]
    if owner and owner not in ("root", "0"):
        state.owned.append(target.rstrip("/") or "/")
        state.notes.append(f"line {step.line}: {target} belongs to the sandbox's user (--chown={flags['chown']})")
    mode = flags.get("chmod")
    if mode is not None and not re.fullmatch(r"[0-7]{3,4}", mode):
        raise DockerfileError(f"line {step.line}: --chmod={mode} is not an octal mode")
    return Copy(step.line, tuple(sources), target, int(mode, 8) if mode else None, step.instruction == "ADD")


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'" else text


# --- carrying it out --------------------------------------------------------------------------------------


def carry_out(plan: ImagePlan, context: Path, root: Path) -> None:
    """Make every copy into `root`. Links on either side never lead out of it. Raises DockerfileError."""
    for directory in plan.directories:
        trees.within(root, trees.resolve_in(root, directory)).mkdir(parents=True, exist_ok=True)
    for copy in plan.copies:
        found = [path for source in copy.sources for path in _matches(source, context, copy.line)]
        into = copy.target.endswith("/") or len(found) > 1
        for source in found:
            _place(source, copy, root, into=into)


def _matches(pattern: str, context: Path, line: int) -> list[Path]:
    relative = os.path.normpath("/" + pattern).lstrip("/")
    names = [str(found.relative_to(context)) for found in sorted(context.glob(relative))] if relative else ["."]
    if not names:
        raise DockerfileError(f"line {line}: '{pattern}' is not in the build context")
    return [trees.within(context, trees.resolve_in(context, name)) for name in names]


def _place(source: Path, copy: Copy, root: Path, *, into: bool) -> None:
    target = trees.within(root, trees.resolve_in(root, copy.target))
    if source.is_dir():
        if target.is_file():
            raise DockerfileError(f"line {copy.line}: '{copy.target}' is a file in the image")
        trees.copy_into(source, target)
        placed = target
    elif copy.extract and tarfile.is_tarfile(source):
        with tarfile.open(source) as archive:
            unpack(archive, target)
        placed = target
    else:
        if into or target.is_dir():
            name = f"{copy.target.rstrip('/')}/{source.name}"
            target = trees.within(root, trees.resolve_in(root, name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
        placed = target
    if copy.mode is not None:
        for path in [placed, *(placed.rglob("*") if placed.is_dir() else [])]:
            if not path.is_symlink():
                path.chmod(copy.mode)


def unpack(archive: tarfile.TarFile, target: Path) -> None:
    """Unpack below `target`: owned by this process's user, no devices, nothing outside."""
    target.mkdir(parents=True, exist_ok=True)

    base = os.path.realpath(target)

    def member(info: tarfile.TarInfo, _: str = "") -> tarfile.TarInfo | None:
        if not (info.isreg() or info.isdir() or info.issym() or info.islnk()):
            return None
        ours = copying.copy(info)
        ours.name = info.name.lstrip("/")
        placed = os.path.realpath(os.path.join(base, ours.name))  # noqa: PTH118 - pathlib does not normalise
        if os.path.commonpath([base, placed]) != base:
            raise tarfile.TarError(f"{info.name!r} lies outside of the archive's place")
        ours.mode = (info.mode or 0) & 0o755 | (0o600 if info.isreg() else 0o700)
        ours.uid, ours.gid, ours.uname, ours.gname = os.getuid(), os.getgid(), "", ""
        return ours

    # Python before 3.11.4 knows no filters, so the members are filtered by hand, one by one: whether a later one lies
    # inside may depend on a link that an earlier one has made.
    archive.extraction_filter = member
    for info in archive:
        kept = member(info)
        if kept is not None:
            archive.extract(kept, target)
