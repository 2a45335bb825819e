"""The operator's own code (SETUP_CREDENTIALS, RACE_JUDGES), as it goes into what is deployed.

Its files lie beside ours, where the runtime imports from; what it needs is installed with what we need, by hashes
(docs/deploy/index.md#code-of-your-own).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shared.errors import SettingsError
from shared.setting_kinds import Text

if TYPE_CHECKING:
    from shared.settings import Settings


class OperatorCode:
    """Code of your own (docs/deploy/index.md#code-of-your-own)"""

    OPERATOR_CODE = Text(
        "", "A Python file, or a folder, that goes into what is deployed; its modules can be named in the settings."
    )
    OPERATOR_REQUIREMENTS = Text(
        "", "A file of requirements, with versions and hashes, that are installed for it where it is deployed."
    )


_OURS: Final = frozenset({"functions", "shared", "image", "infra", "main.py", "function_app.py"})
_LARGEST: Final = 20 * 1024 * 1024  # bytes
_LONGEST: Final = 1024 * 1024  # bytes, of the requirements
_PINNED: Final = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*)(\[[\w.,-]+\])?==(?P<version>[^\s;]+)[\s;].*--hash=sha256:", re.ASCII
)
_ENTRY_POINTS: Final = ".dist-info/entry_points.txt"


@dataclass(frozen=True, slots=True)
class CarriedCode:
    """files: path below the place of imports -> content. requirements: lines for pip, with hashes."""

    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    requirements: str = field(default="", repr=False)


def read(environ: Mapping[str, str]) -> CarriedCode:
    """What the settings name. Raises SettingsError."""
    place, listed = OperatorCode.OPERATOR_CODE.text(environ), OperatorCode.OPERATOR_REQUIREMENTS.text(environ)
    return CarriedCode(_files(Path(place)) if place else {}, _requirements(Path(listed)) if listed else "")


def carried(environ: Mapping[str, str], settings: Settings, where: str) -> CarriedCode:
    """What goes to `where`. Raises SettingsError; for a function, too, that would be left behind: sessions about a
    private repository would each fail in their set-up, and races at their judge."""
    found = read(environ)
    for name, target in _functions(settings):
        if not found.requirements and not _is_among(target, found.files):
            raise SettingsError(
                f"{name}: your function is not among what is deployed to {where} ({target}): name its file or folder "
                "in OPERATOR_CODE, and what it needs, or the package that has it, in OPERATOR_REQUIREMENTS"
            )
    return found


def on_the_path(environ: Mapping[str, str], path: list[str]) -> None:
    """Here, too, its modules can be imported, behind everything else."""
    if text := OperatorCode.OPERATOR_CODE.text(environ):
        place = Path(text).resolve()
        folder = str(place.parent if place.is_file() else place)
        if folder not in path:
            path.append(folder)


def joined(lock: str, requirements: str) -> str:
    """The lock, and those lines that it lacks. Raises SettingsError where both want one package, but not one
    version of it."""
    pinned = {_plain(line.partition("==")[0]): line for line in lock.splitlines() if re.match(r"[A-Za-z0-9]", line)}
    more = []
    for line in _lines(requirements):
        found = _PINNED.match(line)
        if found is None:
            continue
        ours = pinned.get(_plain(found["name"]))
        if ours is None:
            more.append(line)
        elif ours.partition("==")[2].split()[0] != found["version"]:
            raise SettingsError(
                f"OPERATOR_REQUIREMENTS: {found['name']}=={found['version']}, but the functions run with "
                f"{ours.split()[0]}: compile it with --constraint requirements/user.lock"
            )
    return lock + "".join(f"{line}\n" for line in more)


def _functions(settings: Settings) -> Iterator[tuple[str, str]]:
    for each in settings.environments.values():
        if each.setup_credentials:
            yield "SETUP_CREDENTIALS", each.setup_credentials
    for target in settings.races.judges.values():
        yield "RACE_JUDGES", target


def _is_among(target: str, files: Mapping[str, bytes]) -> bool:
    if target.startswith("entry-point:"):
        return any(name.endswith(_ENTRY_POINTS) for name in files)
    first = re.split(r"[.:]", target)[0]
    return f"{first}.py" in files or any(name.startswith(f"{first}/") for name in files)


def _files(place: Path) -> Mapping[str, bytes]:
    """All that is not hidden, nor a cache of Python's."""
    if not place.exists():
        raise SettingsError(f"OPERATOR_CODE: there is no {place}")
    folder = place if place.is_dir() else place.parent
    found: dict[str, bytes] = {}
    size = 0
    for path in _walk(place) if place.is_dir() else [place]:
        parts = path.relative_to(folder).parts
        if parts[0] in _OURS:
            raise SettingsError(f"OPERATOR_CODE: {parts[0]} is a name of this project's own code: rename yours")
        size += path.stat().st_size
        if size > _LARGEST:
            raise SettingsError(f"OPERATOR_CODE: {place} has more than {_LARGEST >> 20} MiB: name code alone")
        found["/".join(parts)] = path.read_bytes()
    if not any(name.endswith(".py") for name in found):
        raise SettingsError(f"OPERATOR_CODE: {place} has no Python file")
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == "__pycache__":
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        elif path.is_file():
            yield path


def _requirements(path: Path) -> str:
    try:
        if path.stat().st_size > _LONGEST:
            raise SettingsError(f"OPERATOR_REQUIREMENTS: {path} has more than {_LONGEST >> 20} MiB")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"OPERATOR_REQUIREMENTS: {path} cannot be read: {reason}") from None
    for number, line in enumerate(_lines(text), 1):
        if not _PINNED.match(line):
            raise SettingsError(
                f"OPERATOR_REQUIREMENTS: {path}, requirement {number}: each is name==version with --hash=sha256:..., "
                "as `uv pip compile --generate-hashes` writes it"
            )
    return text


def _lines(text: str) -> Iterator[str]:
    """Without comments, each requirement in one line."""
    kept = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\s*\n", " ", kept).splitlines():
        if bare := " ".join(line.split(" #")[0].split()):
            yield bare


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.partition("[")[0]).lower()
