"""The operator's part of what sessions start with, from settings (docs/setup.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from image.session.setup import (
    CALLER_KEYS,
    LARGEST_POLICY,
    BadSetup,
    SetupPolicy,
    Wishes,
    check_path,
    check_ref,
    check_repository,
    check_script_names,
    check_variables,
    read_files,
)
from shared.egress import EgressPolicy
from shared.errors import SettingsError

_FILE: Final = "file:"


def read_setup(where: str, table: Mapping[str, Any], egress: EgressPolicy) -> SetupPolicy:
    """`table` has a value for each `setup_` key (shared/settings_table.py). Raises SettingsError, which begins with
    `where`; ValueError where a number is none."""
    try:
        policy = SetupPolicy(
            base=_base(where, table),
            scripts={name: _script(where, text) for name, text in table["setup_scripts"].items()},
            callers=_callers(where, table["setup_caller_keys"]),
            foreign=tuple(table["setup_other_keys"]),
            seconds=float(table["setup_seconds"]),
            go_on=table["setup_on_failure"] == "continue",
            depth=int(table["setup_clone_depth"]),
            hosts=egress.allow or None,
        )
        check_script_names(policy.scripts)
        for url in (policy.base.repo, *(each.url for each in policy.base.files)):
            if url and not url.startswith(("s3:", "gs:")):
                policy.reaches(url)
    except BadSetup as error:
        raise SettingsError(f"{where}: set-up: {error}") from None
    if not policy.seconds > 0:
        raise SettingsError(f"{where}: setup_seconds must be above 0")
    size = len(json.dumps(policy.to_wire()))
    if size > LARGEST_POLICY:
        raise SettingsError(
            f"{where}: set-up has {size} bytes, and {LARGEST_POLICY} at most travel with a claim; put the longest "
            "script into the image or the repository, and call it"
        )
    return policy


def inlined(environ: Mapping[str, str]) -> dict[str, str]:
    """SETUP_SCRIPT and SETUP_SCRIPTS, where they are set, with the text of each file in its path's place: where these
    settings go, no such file is. Raises SettingsError."""
    import shlex

    from shared.settings_table import SessionStart

    found = {}
    if SessionStart.SETUP_SCRIPT.text(environ):
        found[SessionStart.SETUP_SCRIPT.name] = _script("SETUP_SCRIPT", SessionStart.SETUP_SCRIPT.read(environ))
    if SessionStart.SETUP_SCRIPTS.text(environ):
        scripts = SessionStart.SETUP_SCRIPTS.read(environ).items()
        pairs = [f"{name}={_script('SETUP_SCRIPTS', text)}" for name, text in scripts]
        found[SessionStart.SETUP_SCRIPTS.name] = shlex.join(pairs)
    return found


def inlined_table(where: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a checked table of ENVIRONMENTS_FILE."""
    made = dict(table)
    if "setup_script" in made:
        made["setup_script"] = _script(where, made["setup_script"])
    if "setup_scripts" in made:
        made["setup_scripts"] = {name: _script(where, text) for name, text in made["setup_scripts"].items()}
    return made


def _base(where: str, table: Mapping[str, Any]) -> Wishes:
    """Raises BadSetup, SettingsError."""
    repo, ref, subdir = (table[f"setup_{each}"].strip() for each in ("repository", "revision", "subdir"))
    if (ref or subdir) and not repo:
        raise SettingsError(f"{where}: setup_revision and setup_subdir are of setup_repository, which is not set")
    check_variables(table["setup_env"])
    script = table["setup_script"]
    return Wishes(
        repo=check_repository(repo) if repo else "",
        ref=check_ref(ref) if ref else "",
        subdir=check_path("setup_subdir", subdir) if subdir else "",
        files=read_files(table["setup_files"]),
        scripts=(_script(where, script),) if script.strip() else (),
        env=dict(table["setup_env"]),
    )


def _script(where: str, text: str) -> str:
    """A file's text without white space around it: as a variable it has none, and both are the same set-up."""
    if not text.startswith(_FILE):
        return text
    from pathlib import Path  # a cold start without such a file does without it

    path = text.removeprefix(_FILE)
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{where}: the set-up script {path} cannot be read ({type(error).__name__})") from None


def _callers(where: str, keys: list[str]) -> tuple[str, ...]:
    if keys == ["none"]:
        return ()
    for key in keys:
        if key not in CALLER_KEYS and not (key.startswith("env.") and len(key) > len("env.")):
            raise SettingsError(
                f"{where}: setup_caller_keys has {key!r}; there are {', '.join(CALLER_KEYS)}, env.NAME and env.*"
            )
    return tuple(keys)
