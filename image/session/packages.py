"""Packages of pip and npm that the operator wants in the image (docs/image.md#making-it-yours).

A list of names, with versions if need be, or `file:PATH`: a requirements file, or a package-lock.json with its
package.json beside it. What comes from a file is as exact as the file: one hash in it makes pip demand all of them, and
npm takes what its lock says and nothing else.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PIP_PLACE: Final = "/opt/python"
NPM_PLACE: Final = "/opt/npm"

_FILE: Final = "file:"
_LONGEST_FILE: Final = 4 << 20  # bytes
# PEP 508 without markers, URLs and paths: what such a list is for.
_PIP: Final = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?(?:\[[A-Za-z0-9._,-]+\])?"
    r"(?:(?:===?|~=|!=|<=?|>=?)[A-Za-z0-9.*+!_-]+(?:,(?:===?|~=|!=|<=?|>=?)[A-Za-z0-9.*+!_-]+)*)?"
)
_NPM: Final = re.compile(r"(?:@[a-z0-9~][a-z0-9._~-]*/)?[a-z0-9~][a-z0-9._~-]*(?:@[A-Za-z0-9^~][A-Za-z0-9.^~+_-]*)?")
_OPTION: Final = re.compile(r"-\S*")
_OPTIONS: Final = ("--no-binary", "--only-binary", "--prefer-binary", "--pre", "--require-hashes")
_CREDENTIAL: Final = re.compile(r"://[^/\s]*@")


class BadPackages(ValueError):
    """A list or a file that cannot be used. The text names the setting, and holds no credential."""


@dataclass(frozen=True, slots=True)
class Packages:
    """`pip` and `npm` are names; `requirements` is the text of a requirements file, `manifest` and `lock` those of
    package.json and package-lock.json, each instead of the names."""

    pip: tuple[str, ...] = ()
    requirements: str = ""
    npm: tuple[str, ...] = ()
    manifest: str = ""
    lock: str = ""

    @property
    def wants_npm(self) -> bool:
        return bool(self.npm or self.lock)

    def stage(self, directory: Path) -> None:
        """Writes what the steps copy into the image."""
        if self.pip or self.requirements:
            text = self.requirements or "".join(f"{each}\n" for each in self.pip)
            (directory / "requirements.txt").write_text(text, encoding="utf-8")
        if self.lock:
            (directory / "package.json").write_text(self.manifest, encoding="utf-8")
            (directory / "package-lock.json").write_text(self.lock, encoding="utf-8")

    def steps(self, context: str, python: str) -> Iterator[str]:
        """Of a Dockerfile. `python` is what the environment for pip is made of: it sees what the base has, too."""
        if self.pip or self.requirements:
            hashed = " --require-hashes" if "--hash=" in self.requirements else ""
            yield f"COPY --chown=root:root {context}/requirements.txt {PIP_PLACE}/requirements.txt"
            yield (
                f"RUN {python} -m venv --system-site-packages {PIP_PLACE}"
                f" && {PIP_PLACE}/bin/pip install --no-cache-dir{hashed} --requirement {PIP_PLACE}/requirements.txt"
            )
            yield f"ENV PATH={PIP_PLACE}/bin:$PATH"
        if self.lock:
            yield f"COPY --chown=root:root {context}/package.json {context}/package-lock.json {NPM_PLACE}/"
            yield f"RUN npm ci --omit=dev --no-audit --no-fund --prefix {NPM_PLACE}"
        elif self.npm:
            names = " ".join(shlex.quote(each) for each in self.npm)
            yield f"RUN mkdir {NPM_PLACE} && npm install --no-audit --no-fund --prefix {NPM_PLACE} {names}"
        if self.wants_npm:
            yield f"ENV PATH=$PATH:{NPM_PLACE}/node_modules/.bin NODE_PATH={NPM_PLACE}/node_modules"


def read_packages(pip: str, npm: str) -> Packages:
    """From the texts of SANDBOX_PIP_PACKAGES and SANDBOX_NPM_PACKAGES. Raises BadPackages."""
    requirements = manifest = lock = ""
    pips: tuple[str, ...] = ()
    npms: tuple[str, ...] = ()
    if pip.startswith(_FILE):
        requirements = _requirements(Path(pip.removeprefix(_FILE)))
    else:
        # A comma also stands between two versions of one name: `a>=1,<2`.
        words = re.sub(r",(?=\s*[A-Za-z0-9])", " ", pip).split()
        pips = _names("SANDBOX_PIP_PACKAGES", words, _PIP, "name, name==1.2 or name[extra]>=1,<2")
    if npm.startswith(_FILE):
        manifest, lock = _lock(Path(npm.removeprefix(_FILE)))
    else:
        npms = _names("SANDBOX_NPM_PACKAGES", npm.replace(",", " ").split(), _NPM, "name, name@1.2.3 or @scope/name")
    return Packages(pips, requirements, npms, manifest, lock)


def _names(setting: str, words: list[str], rule: re.Pattern[str], form: str) -> tuple[str, ...]:
    for word in words:
        if not rule.fullmatch(word):
            shown = _CREDENTIAL.sub("://[credential]@", word)[:100]
            raise BadPackages(f"{setting}: {shown!r} is no package as the list takes it: {form}, or file:PATH for all")
    return tuple(words)


def _text(setting: str, path: Path) -> str:
    try:
        if path.stat().st_size > _LONGEST_FILE:
            raise BadPackages(f"{setting}: {path} has more than {_LONGEST_FILE} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise BadPackages(f"{setting}: {path} cannot be read: {reason}") from None


def _requirements(path: Path) -> str:
    """A requirements file whose lines stand by themselves: other files and folders are not in the image, and an index
    with a credential would leave it there."""
    setting = "SANDBOX_PIP_PACKAGES"
    text = _text(setting, path)
    if _CREDENTIAL.search(text):
        raise BadPackages(f"{setting}: {path} has a URL with a credential, which the image would keep")
    for number, line in enumerate(re.sub(r"\\\r?\n", " ", text).splitlines(), 1):
        bare = line.split(" #")[0].strip()
        option = _OPTION.match(bare)
        if option is not None and option[0].split("=")[0] not in _OPTIONS:
            raise BadPackages(
                f"{setting}: {path}, requirement {number}: {option[0][:40]} is not taken into an image; write the "
                "packages themselves"
            )
        if bare.startswith((".", "/")):
            raise BadPackages(f"{setting}: {path}, requirement {number}: a path of this machine is not in the image")
    return text


def _lock(path: Path) -> tuple[str, str]:
    setting = "SANDBOX_NPM_PACKAGES"
    if path.name != "package-lock.json":
        raise BadPackages(f"{setting}: {path} is no package-lock.json")
    lock, manifest = _text(setting, path), _text(setting, path.with_name("package.json"))
    for name, text in ((path.name, lock), ("package.json", manifest)):
        try:
            whole = isinstance(json.loads(text), dict)
        except ValueError:
            whole = False
        if not whole:
            raise BadPackages(f"{setting}: {path.with_name(name)} is no JSON object")
        if _CREDENTIAL.search(text):
            raise BadPackages(
                f"{setting}: {path.with_name(name)} has a URL with a credential, which the image would keep"
            )
    return manifest, lock
