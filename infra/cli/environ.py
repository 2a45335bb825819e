"""Where a command's settings come from: the real services' keys, or else the offline platform that runs.

The rule, in order:
1. `.env`, then `.env.local`, on top of the process's environment. The files win, as in the reference quickstart: a key
   that an old shell still exports must not send work to another project. The placeholders of the example files
   (they end in `xxx`) count as not set.
2. Is a key set then (`KEYS`)? Then the real services are meant.
3. Otherwise the offline platform is used, where one runs in this checkout, and its variables replace ours.
4. Otherwise there is nothing to talk to: `NoServices`, which says how to start.

`OFFLINE=1` skips to step 3. `HANDS_OFFLINE_ENV` names another offline platform's file, where two run side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infra.local import discovery, dotenv
from infra.local.platform import REDIRECTING
from shared.errors import SettingsError

CHECKOUT: Final = Path(__file__).resolve().parents[2]
KEYS: Final = ("ANTHROPIC_API_KEY", "ANTHROPIC_ENVIRONMENT_KEY", "TENSORLAKE_API_KEY", "ENVIRONMENTS_FILE")
OFFLINE_FLAG: Final = "OFFLINE"
OFFLINE_FILE: Final = "HANDS_OFFLINE_ENV"
_PLACEHOLDER: Final = "xxx"


class NoServices(SettingsError):
    """No keys, and no offline platform. The text says how to get either."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The variables to use. `offline`: the file of the offline platform in use, or None for the real services."""

    environ: Mapping[str, str]
    offline: Path | None

    @property
    def where(self) -> str:
        """For people: what the command talks to."""
        return f"the offline platform ({self.offline.name})" if self.offline else "the real services"

    def need(self, name: str, how: str) -> str:
        """The variable's value. Raises SettingsError that names it and says how to get one."""
        value = self.environ.get(name, "").strip()
        if not value:
            raise SettingsError(f"{name} is not set: {how}")
        return value


def load(environ: Mapping[str, str], folder: Path = CHECKOUT) -> Loaded:
    """Apply the rule above. Raises NoServices; SettingsError for a file that cannot be read."""
    merged = dict(environ)
    try:
        for name in (".env", ".env.local"):
            merged.update(dotenv.read(folder / name))
    except dotenv.DotenvError as error:
        raise SettingsError(str(error)) from None
    _drop_placeholders(merged)
    forced = merged.get(OFFLINE_FLAG, "").strip().lower() in ("1", "true", "yes", "on")
    keys = [name for name in KEYS if merged.get(name, "").strip()]
    if keys and not forced:
        return Loaded(merged, None)
    named = merged.get(OFFLINE_FILE, "").strip()
    file = folder / named if named else discovery.find_running(folder)
    variables = discovery.read_if_running(file) if file is not None else None
    if file is None or variables is None:
        raise NoServices(_advice(keys, named))
    for name in (*KEYS, *REDIRECTING, "ANTHROPIC_WORKSPACE_ID"):
        merged.pop(name, None)  # nothing of the real services reaches the offline ones
    return Loaded(merged | variables, file)


def apply(loaded: Loaded, environ: MutableMapping[str, str]) -> None:
    """Make `environ` (this process's) equal to what was loaded: the SDKs read it when they are imported."""
    for name in set(environ) - set(loaded.environ):
        del environ[name]
    environ.update(loaded.environ)


def _drop_placeholders(variables: MutableMapping[str, str]) -> None:
    for name, value in list(variables.items()):
        if name.startswith(("ANTHROPIC_", "TENSORLAKE_")) and value.strip().endswith(_PLACEHOLDER):
            del variables[name]


def _advice(keys: list[str], named: str) -> str:
    if named:
        return f"{OFFLINE_FILE} names {named}, and no offline platform runs there. See what make up prints."
    if keys:
        return f"{OFFLINE_FLAG} is set, and no offline platform runs here. Start one in another terminal: make up"
    return (
        "No keys are set, and no offline platform runs here.\n"
        "  To try it on this machine:   make demo, or make up in another terminal\n"
        "  To use the real services:    cp .env.example .env; cp .env.local.example .env.local; fill them in"
    )
