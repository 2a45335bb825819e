"""Skills: folders of files that a worker unpacks for its session (docs/wire/anthropic.md#43-requests-in-order, step 3).

A skill has versions; an agent names a skill and a version, or `latest`, which only the version look-up resolves.
"""

from __future__ import annotations

import io
import itertools
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

import yaml

from infra.local.claude.clock import Clock, stamp
from infra.local.claude.errors import invalid, not_found, not_offline
from infra.local.claude.ids import new_id
from infra.local.claude.records import list_field

LATEST = "latest"
_SLUG = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_LONGEST_SLUG = 64
_LONGEST_DISPLAY_NAME = 255
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)

Upload = tuple[str, bytes]
"""A file's path, beginning with the skill's directory, and its content."""


@dataclass
class SkillVersion:
    id: str
    sequence: int
    skill_id: str
    name: str
    description: str
    created_at: datetime
    files: dict[str, bytes]
    """By path below the skill's directory."""

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "skill_version",
            "skill_id": self.skill_id,
            "name": self.name,
            "description": self.description,
            "created_at": stamp(self.created_at),
        }

    def archive(self) -> bytes:
        """A zip with one directory at its top, called like the skill; the same bytes each time."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, content in sorted(self.files.items()):
                archive.writestr(zipfile.ZipInfo(f"{self.name}/{path}", _ZIP_EPOCH), content)
        return packed.getvalue()


@dataclass
class Skill:
    """`versions` is never empty, oldest first."""

    id: str
    sequence: int
    display_name: str
    name: str
    created_at: datetime
    versions: list[SkillVersion] = field(default_factory=list)

    @property
    def latest(self) -> SkillVersion:
        return self.versions[-1]

    def version(self, wanted: str) -> SkillVersion:
        if wanted == LATEST:
            return self.latest
        for version in self.versions:
            if version.id == wanted:
                return version
        raise not_found(f"version {wanted} of skill {self.id}")

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "skill",
            "display_name": self.display_name,
            "latest_version_id": self.latest.id,
            "source": {"type": "custom"},
            "created_at": stamp(self.created_at),
            "updated_at": stamp(self.latest.created_at),
        }


class Skills:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._skills: dict[str, Skill] = {}
        self._sequence = itertools.count(1)

    def create(self, uploads: Sequence[Upload], display_name: str | None) -> Skill:
        """Raises 400 for files that are no skill."""
        now = self._clock.now()
        skill_id = new_id("skill")
        version = self._version(skill_id, uploads)
        label = display_name or version.name
        if len(label) > _LONGEST_DISPLAY_NAME or not label.isprintable():
            raise invalid(f"display_name: expected one line of at most {_LONGEST_DISPLAY_NAME} characters")
        skill = Skill(skill_id, next(self._sequence), label, version.name, now, [version])
        self._skills[skill.id] = skill
        return skill

    def add_version(self, skill: Skill, uploads: Sequence[Upload]) -> SkillVersion:
        """The name of a skill stays what its first version made it."""
        version = self._version(skill.id, uploads)
        if version.name != skill.name:
            raise invalid(f"files: this skill is called {skill.name!r}, not {version.name!r}")
        skill.versions.append(version)
        return version

    def remove(self, skill: Skill) -> None:
        """With all its versions."""
        del self._skills[skill.id]

    def remove_version(self, skill: Skill, version: SkillVersion) -> None:
        """Raises 400 for the only one, since every skill has a latest version."""
        if len(skill.versions) == 1:
            raise invalid("the only version of a skill cannot be deleted: delete the skill")
        skill.versions.remove(version)

    def get(self, skill_id: str) -> Skill:
        if skill_id not in self._skills:
            raise not_found(f"skill {skill_id}")
        return self._skills[skill_id]

    def all(self) -> list[Skill]:
        return list(self._skills.values())

    def references(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The `skills` of an agent as responses show them: existing skills, each with a version or `latest`."""
        return [self._reference(entry) for entry in list_field(body, "skills")]

    def _reference(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        match entry.get("type"):
            case "custom":
                version = entry.get("version") or LATEST
                if not isinstance(entry.get("skill_id"), str) or not isinstance(version, str):
                    raise invalid("skills: expected skill_id and version to be strings")
                self.get(entry["skill_id"]).version(version)
                return {"type": "custom", "skill_id": entry["skill_id"], "version": version}
            case "anthropic":
                raise not_offline("skills of type anthropic")
            case other:
                raise invalid(f"skills: unknown type {other!r}")

    def _version(self, skill_id: str, uploads: Sequence[Upload]) -> SkillVersion:
        top, files = _one_directory(uploads)
        head = _frontmatter(files)
        name = head.get("name") or top
        if not isinstance(name, str) or not _SLUG.fullmatch(name) or len(name) > _LONGEST_SLUG:
            raise invalid(f"SKILL.md: the name must be words of a-z and 0-9 with hyphens, {_LONGEST_SLUG} at most")
        description = head.get("description") or ""
        if not isinstance(description, str):
            raise invalid("SKILL.md: the description must be a text")
        return SkillVersion(
            new_id("skillver"), next(self._sequence), skill_id, name, description, self._clock.now(), files
        )


def _one_directory(uploads: Sequence[Upload]) -> tuple[str, dict[str, bytes]]:
    """The directory that all files are in, and the files by their path below it."""
    tops: set[str] = set()
    files: dict[str, bytes] = {}
    for name, content in uploads:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or len(path.parts) < 2:
            raise invalid(f"files: {name[:100]!r} is not a path below the skill's directory")
        tops.add(path.parts[0])
        files[str(PurePosixPath(*path.parts[1:]))] = content
    if len(tops) != 1:
        raise invalid("files: all files must be in the same top-level directory")
    if "SKILL.md" not in files:
        raise invalid("files: there must be a SKILL.md at the root of the directory")
    return tops.pop(), files


def _frontmatter(files: Mapping[str, bytes]) -> dict[str, Any]:
    """The YAML between the first two lines `---` of SKILL.md; nothing if there is none."""
    try:
        text = files["SKILL.md"].decode()
        found = re.match(r"---\r?\n(.*?)^---\s*$", text, re.DOTALL | re.MULTILINE)
        head = yaml.safe_load(found[1]) if found else {}
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise invalid(f"SKILL.md: unreadable: {type(error).__name__}") from None
    if not isinstance(head or {}, dict):
        raise invalid("SKILL.md: the frontmatter must be a mapping")
    return dict(head or {})
