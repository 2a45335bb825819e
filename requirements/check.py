"""Are requirements/*.lock in step with pyproject.toml? Answered offline, from the files alone.

uv notes in a lock which packages pyproject.toml itself asks for (`# via serverless-hands (pyproject.toml)`), so what
was added, removed or re-bounded since the locks were compiled shows without resolving anything.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT: Final = Path(__file__).resolve().parents[1]
LOCKS: Final = ("dev", "user", "runtime", "worker", "node", "mcp")
_PIN: Final = re.compile(r"([A-Za-z0-9._-]+)==([^\s;]+)")
_OURS: Final = "(pyproject.toml"


@dataclass
class Pin:
    """One package of a lock. `asked_for`: pyproject.toml names it, not only another package."""

    version: str
    hashed: bool = False
    asked_for: bool = False


def problems(folder: Path = CHECKOUT) -> Iterator[str]:
    """One line for each way in which a lock is out of step."""
    declared = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    locks = {name: _read(folder / "requirements" / f"{name}.lock") for name in LOCKS}
    for name, wanted in _wanted(declared).items():
        yield from _compare(name, wanted, locks[name])
    for name in LOCKS[1:]:
        for package, pins in locks[name].items():
            dev = _versions(locks["dev"].get(package, ()))
            if dev and dev != _versions(pins):
                yield f"{name}.lock: {package} is {_versions(pins)}, in dev.lock it is {dev}"
    for name in locks:
        if "://" in (folder / "requirements" / f"{name}.lock").read_text(encoding="utf-8"):
            yield f"{name}.lock: names an address"


def _wanted(declared: Mapping[str, Any]) -> dict[str, list[Requirement]]:
    project, groups = declared["project"], declared["dependency-groups"]
    extras = [line for lines in project.get("optional-dependencies", {}).values() for line in lines]
    lists: dict[str, Sequence[str]] = {
        "dev": [*project["dependencies"], *extras, *_group(groups, "dev")],
        "user": [*project["dependencies"], *extras, *_group(groups, "build")],
        "runtime": project["dependencies"],
        "worker": groups["worker"],
        "node": groups["node"],
        "mcp": groups["mcp"],
    }
    return {name: [Requirement(line) for line in lines] for name, lines in lists.items()}


def _group(groups: Mapping[str, Sequence[str | Mapping[str, str]]], name: str) -> Iterator[str]:
    """A group's lines with those of the groups that it includes."""
    for line in groups.get(name, ()):
        if isinstance(line, str):
            yield line
        else:
            yield from _group(groups, line["include-group"])


def _compare(name: str, wanted: Sequence[Requirement], lock: Mapping[str, Sequence[Pin]]) -> Iterator[str]:
    for requirement in wanted:
        pins = lock.get(canonicalize_name(requirement.name))
        if pins is None:
            yield f"{name}.lock: {requirement.name} is missing"
        elif not any(requirement.specifier.contains(pin.version, prereleases=True) for pin in pins):
            wants = requirement.specifier
            yield f"{name}.lock: {requirement.name} is {_versions(pins)}, pyproject.toml wants {wants}"
    names = {canonicalize_name(requirement.name) for requirement in wanted}
    for package, pins in lock.items():
        if not all(pin.hashed for pin in pins):
            yield f"{name}.lock: {package} has no hash"
        if any(pin.asked_for for pin in pins) and package not in names:
            yield f"{name}.lock: {package} is not asked for any more"


def _versions(pins: Sequence[Pin]) -> str:
    return " or ".join(pin.version for pin in pins)


def _read(path: Path) -> dict[str, list[Pin]]:
    """By name; a package has several pins where each is for some Pythons only."""
    pins: dict[str, list[Pin]] = {}
    current = Pin("")
    for line in path.read_text(encoding="utf-8").splitlines():
        match = _PIN.match(line)
        if match:
            current = Pin(match[2])
            pins.setdefault(canonicalize_name(match[1]), []).append(current)
        current.hashed |= "--hash=sha256:" in line
        current.asked_for |= line.lstrip().startswith("#") and _OURS in line
    return pins


def main() -> int:
    found = list(problems())
    for problem in found:
        print(problem, file=sys.stderr)
    print("The locks are in step with pyproject.toml." if not found else "Compile the locks anew: make lock")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
