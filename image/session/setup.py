"""What a session's sandbox is made ready with before the first tool call, and how a session's metadata asks for it.

The functions read the operator's part from their settings and put it into the claim; the worker reads the caller's part
from the session's `metadata` and puts both together (docs/setup.md). Both ends read this one module, and it imports the
standard library only. All paths are relative to the workdir, all URLs https, or plain http to this machine alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

FAILED_FILE: Final = "SETUP_FAILED.txt"
STAGING: Final = ".hands-setup"  # the folder in the workdir in which everything is made before it is moved to its place
LARGEST_POLICY: Final = 24_576  # bytes as JSON: it travels in the claim
LOOPBACK: Final = ("localhost", "127.0.0.1")
CALLER_KEYS: Final = ("repo", "ref", "subdir", "files", "setup", "setup.inline")
"""What a caller may set, beside `env.NAME`; whether it may is the operator's setting."""

_STORES: Final = ("s3", "gs")
_REPOSITORY: Final = re.compile(r"[A-Za-z0-9._~:/@%+-]+")
_REF: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+@-]{0,254}")  # git-check-ref-format(1), without its rarer letters
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_SCRIPT_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_OURS: Final = ("HANDS_", "ANTHROPIC_", "CLAUDE_", "TENSORLAKE_", "FUNCTIONS_")
_TAKEN: Final = ("skills", "memory", FAILED_FILE, STAGING)  # names in the workdir that the worker uses itself
_LONGEST_SHOWN: Final = 80


class BadSetup(ValueError):
    """Something that cannot be used. The text says what and why, for the agent and the operator; it holds no secret."""


@dataclass(frozen=True, slots=True)
class FileSource:
    """One file: where it comes from, where it goes, and its SHA-256 (hex) where it must be this very one."""

    url: str
    target: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is asked for. `scripts` are texts of programs, run in this order; `subdir` is the only folder of the
    repository that is checked out."""

    repo: str = ""
    ref: str = ""
    subdir: str = ""
    files: tuple[FileSource, ...] = ()
    scripts: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def work(self) -> bool:
        """Whether there is anything to do but to set variables."""
        return bool(self.repo or self.files or self.scripts)

    @property
    def folder(self) -> str:
        """The repository's folder in the workdir: its name, as `git clone` has it."""
        return folder_of(self.repo) if self.repo else ""

    def digest(self) -> str:
        """SHA-256 (hex) of all that is done; what only sets variables does not count."""
        import hashlib
        import json

        return hashlib.sha256(json.dumps({**asdict(self), "env": None}, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class SetupPolicy:
    """The operator's part.

    base: what each session of the environment gets. scripts: those that a caller may name. callers: the keys of
    `CALLER_KEYS`, `env.NAME` or `env.*` that a caller may set. foreign: keys of metadata that mean something else,
    `prefix*` for many. seconds: the longest set-up. go_on: the session runs in spite of a failure. depth: commits of
    history, 0 for all. hosts: what the sandbox may reach, None for everything.
    """

    base: Wishes = field(default_factory=Wishes)
    scripts: Mapping[str, str] = field(default_factory=dict)
    callers: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    seconds: float = 600.0
    go_on: bool = False
    depth: int = 1
    hosts: tuple[str, ...] | None = None

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_wire(cls, raw: Mapping[str, Any]) -> SetupPolicy:
        """Raises BadSetup for anything that `to_wire` did not make."""
        try:
            base = dict(raw["base"])
            base["files"] = tuple(FileSource(**each) for each in base["files"])
            base["scripts"] = tuple(base["scripts"])
            hosts = raw["hosts"]
            return cls(
                **{
                    **raw,
                    "base": Wishes(**base),
                    "callers": tuple(raw["callers"]),
                    "foreign": tuple(raw["foreign"]),
                    "hosts": None if hosts is None else tuple(hosts),
                }
            )
        except (KeyError, TypeError, ValueError):
            raise BadSetup("the claim's set-up cannot be read") from None

    def wishes(self, metadata: Mapping[str, str]) -> Wishes:
        """The environment's wishes with the session's. Raises BadSetup."""
        asked = self._asked(metadata)
        wishes = self.base
        if "repo" in asked:
            wishes = replace(wishes, repo=check_repository(asked["repo"]), ref="", subdir="")
        if ("ref" in asked or "subdir" in asked) and not wishes.repo:
            raise BadSetup("metadata has ref or subdir, and no repo that it could be of")
        if "ref" in asked:
            wishes = replace(wishes, ref=check_ref(asked["ref"]))
        if "subdir" in asked:
            wishes = replace(wishes, subdir=check_path("subdir", asked["subdir"]))
        files = [each for key in sorted(asked) if _kind(key) == "files" for each in read_files(asked[key])]
        scripts = []
        if "setup" in asked:
            name = asked["setup"].strip()
            if name not in self.scripts:
                known = ", ".join(sorted(self.scripts)) or "none is named in SETUP_SCRIPTS"
                raise BadSetup(f"metadata: setup names no script of the operator's: {_shown(name)} ({known})")
            scripts.append(self.scripts[name])
        if "setup.inline" in asked:
            scripts.append(asked["setup.inline"])
        variables = {key.removeprefix("env."): value for key, value in asked.items() if _kind(key) == "env"}
        check_variables(variables)
        wishes = replace(
            wishes,
            files=(*wishes.files, *files),
            scripts=(*wishes.scripts, *scripts),
            env={**wishes.env, **variables},
        )
        targets = [each.target for each in wishes.files]
        twice = next((target for target in targets if targets.count(target) > 1), None)
        if twice is not None:
            raise BadSetup(f"two files have the target {_shown(twice)}; give one of them another: #target=NAME")
        return wishes

    def _asked(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """The keys that are ours, all of which the caller may set. Where there is one, any other key is taken for a
        mistake; a session without any has metadata for other purposes."""
        ours = {key: value for key, value in metadata.items() if _kind(key) is not None}
        if not ours:
            return {}
        for key in sorted(ours):
            kind = _kind(key)
            if not {key, kind, f"{kind}.*"} & set(self.callers):
                raise BadSetup(f"metadata: {_shown(key)} may not be set by a caller; the operator's SETUP_CALLER_KEYS")
        for key in sorted(set(metadata) - set(ours)):
            if not any(key == each or (each.endswith("*") and key.startswith(each[:-1])) for each in self.foreign):
                raise BadSetup(
                    f"metadata: {_shown(key)} is no key of a set-up ({', '.join(CALLER_KEYS)}, env.NAME); if it is for "
                    "something else, the operator lists it in SETUP_OTHER_KEYS"
                )
        return ours

    def reaches(self, url: str) -> None:
        """Raises BadSetup where the sandbox may not reach the URL's host, as far as names tell."""
        host = (urlsplit(url).hostname or "").lower()
        if self.hosts is None or host in LOOPBACK:
            return
        for each in self.hosts:
            name = each.lower()
            if (
                host == name
                or (name.startswith("*.") and host.endswith(name[1:]))
                or re.fullmatch(r"[\d.:/a-f]+", name)
            ):
                return  # a range of addresses may hold it
        raise BadSetup(f"the sandbox may not reach {_shown(host)}: the operator adds it to SANDBOX_ALLOW_OUT")


def check_form(metadata: Mapping[str, str]) -> None:
    """Raises BadSetup where a value is malformed, whoever may set it and whatever else there is."""
    named = metadata.get("setup", "").strip()
    ours = {key: value for key, value in metadata.items() if _kind(key) is not None}
    base = Wishes() if "repo" in ours else Wishes(repo="https://localhost/of-the-environment")
    SetupPolicy(base, {named: ""}, callers=(*CALLER_KEYS, "env.*")).wishes(ours)


def _kind(key: str) -> str | None:
    """`files` for `files.2`, `env` for `env.NAME`, the key itself for the others of ours, None for a foreign one."""
    first, dot, rest = key.partition(".")
    if key in CALLER_KEYS or (dot and rest and first == "files"):
        return first if first == "files" else key
    return "env" if first == "env" and dot and rest else None


def check_repository(url: str) -> str:
    """Raises BadSetup for anything but a plain https URL of a repository, without a credential in it."""
    parts = _parts("repo", url)
    if not _REPOSITORY.fullmatch(url) or not parts.path.strip("/"):
        raise BadSetup(f"repo is no plain URL of a repository: {_shown(url)}")
    folder_of(url)
    return url


def folder_of(url: str) -> str:
    """The name that git gives it, too. Raises BadSetup."""
    path = urlsplit(url).path.rstrip("/").removesuffix("/.git").rstrip("/")
    name = unquote(path.rpartition("/")[2].removesuffix(".git"))
    if not re.fullmatch(r"\w[\w.+-]{0,100}", name, re.ASCII) or name in _TAKEN:
        raise BadSetup(f"repo: {_shown(name)} cannot be the name of a folder in the workspace")
    return name


def check_ref(ref: str) -> str:
    """Raises BadSetup for anything but a branch, a tag or a commit."""
    if not _REF.fullmatch(ref) or ".." in ref or "//" in ref or "@{" in ref or ref.endswith(("/", ".", ".lock")):
        raise BadSetup(f"ref is no branch, tag or commit: {_shown(ref)}")
    return ref


def check_path(what: str, path: str) -> str:
    """A path below the workdir, in its plain form. Raises BadSetup."""
    plain = path.strip().strip("/") if what == "subdir" else path.strip()
    parts = plain.split("/")
    if not plain or plain.startswith("/") or any(part in ("", ".", "..") for part in parts) or not plain.isprintable():
        raise BadSetup(f"{what} must be a path without .. and not absolute: {_shown(path)}")
    if parts[0] == ".git" or len(plain) > 255:
        raise BadSetup(f"{what} cannot be used: {_shown(path)}")
    return plain


def check_variables(variables: Mapping[str, str]) -> None:
    """Raises BadSetup."""
    for name, value in variables.items():
        if not _VARIABLE.fullmatch(name) or name.upper().startswith(_OURS):
            raise BadSetup(f"env: {_shown(name)} cannot be the name of a variable")
        if "\0" in value:
            raise BadSetup(f"env: the value of {name} has a zero byte")


def check_script_names(names: Iterable[str]) -> None:
    """Raises BadSetup."""
    for name in names:
        if not _SCRIPT_NAME.fullmatch(name):
            raise BadSetup(f"{_shown(name)} cannot be the name of a script: lower-case letters, digits, - and _")


def read_files(text: str) -> tuple[FileSource, ...]:
    """URLs with spaces between them, each with `#sha256=HEX&target=PATH` behind it where it wants one or both. Raises
    BadSetup."""
    return tuple(_file(word) for word in text.split())


def _file(word: str) -> FileSource:
    url, _, fragment = word.partition("#")
    parts = _parts("files", url, *_STORES)
    if parts.scheme in _STORES and not parts.path.strip("/"):
        raise BadSetup(f"files: {_shown(url)} names no object")
    wanted = dict(parse_qsl(fragment, keep_blank_values=True))
    if set(wanted) - {"sha256", "target"} or (fragment and not wanted):
        raise BadSetup(f"files: behind # of {_shown(url)} only sha256= and target= may stand, with & between")
    sha256 = wanted.get("sha256", "").lower()
    if sha256 and not _SHA256.fullmatch(sha256):
        raise BadSetup(f"files: the sha256 of {_shown(url)} is not one: 64 hexadecimal digits")
    target = wanted.get("target") or unquote(parts.path.rpartition("/")[2])
    if not target:
        raise BadSetup(f"files: {_shown(url)} names no file; say where it goes: #target=NAME")
    target = check_path("a file's target", target)
    if target.split("/")[0] in _TAKEN:
        raise BadSetup(f"files: the target {_shown(target)} is taken")
    return FileSource(url, target, sha256)


def _parts(what: str, url: str, *more: str) -> Any:
    """The parts of a URL that may be fetched. Raises BadSetup."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise BadSetup(f"{what} is no URL: {_shown(url)}") from None
    allowed = ("https", *more)
    if parts.scheme == "http" and host not in LOOPBACK:
        raise BadSetup(f"{what}: plain http only goes to this machine itself; use https: {_shown(url)}")
    if parts.scheme not in (*allowed, "http"):
        raise BadSetup(f"{what} must be a URL with {', '.join(f'{scheme}://' for scheme in allowed)}: {_shown(url)}")
    if not host or not url.isprintable() or " " in url:
        raise BadSetup(f"{what} is no URL: {_shown(url)}")
    if parts.username is not None or parts.password is not None:
        raise BadSetup(f"{what}: a URL must hold no credential, which the agent could then read")
    return parts


def _shown(text: str) -> str:
    """As it may stand in a message: short, printable, without what may be a signature."""
    return repr(re.sub(r"\?.*", "?...", text, flags=re.DOTALL)[:_LONGEST_SHOWN])


def bare(url: str) -> str:
    """A URL for people: without query and fragment, which may hold a signature."""
    return re.split(r"[?#]", url, maxsplit=1)[0]
