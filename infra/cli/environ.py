"""Where a command's settings come from: the real services' keys, or else the offline platform that runs.

The rule, in order:
1. `.env`, then `.env.local`, on top of the process's environment. The files win, as in the reference quickstart: a key
   that an old shell still exports must not send work to another project. The placeholders of the example files
   (they end in `xxx`) count as not set.
2. Is a key set then (`KEYS`)? Then the services at its addresses are meant: the real ones, or an offline platform
   whose variables somebody exported, of this checkout or of another. The addresses say which, not where the
   variables came from: two on this machine are an offline platform's. If its file is at hand, what was not exported
   comes from there.
3. Otherwise the offline platform is used, where one runs in this checkout, and its variables replace ours.
4. Otherwise there is nothing to talk to: `NoServices`, which says how to start.

`OFFLINE=1` skips to step 3. `HANDS_OFFLINE_ENV` names another offline platform's file, where two run side by side.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infra.cli import network
from infra.local import discovery, dotenv
from shared.errors import SettingsError

CHECKOUT: Final = Path(__file__).resolve().parents[2]
KEYS: Final = ("ANTHROPIC_API_KEY", "ANTHROPIC_ENVIRONMENT_KEY", "TENSORLAKE_API_KEY", "ENVIRONMENTS_FILE")
ADDRESSES: Final = ("ANTHROPIC_BASE_URL", "TENSORLAKE_API_URL")
_OTHERS: Final = ("FUNCTIONS_URL", "WEBHOOK_URL")
_ELSEWHERE: Final = "https://elsewhere.invalid"
OFFLINE_FLAG: Final = "OFFLINE"
_PLACEHOLDER: Final = "xxx"


class NoServices(SettingsError):
    """No keys, and no offline platform. The text says how to get either."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The variables to use. `file`: of the offline platform in use, where it is known."""

    environ: Mapping[str, str]
    file: Path | None = None

    @property
    def offline(self) -> bool:
        """Whether both services are on this machine: stand-ins, that nothing outside can reach."""
        return all(url and network.is_this_machine(url) for url in _addresses(self.environ))

    @property
    def where(self) -> str:
        """For people: what the command talks to."""
        if self.file is not None:
            return f"the offline platform ({self.file.name})"
        moved = " and ".join(url for url in _addresses(self.environ) if url)
        if self.offline:
            return f"the offline platform at {moved}"
        return f"the services at {moved}" if moved else "the real services"

    def need(self, name: str, how: str) -> str:
        """The variable's value. Raises SettingsError that names it and says how to get one."""
        value = self.environ.get(name, "").strip()
        if not value:
            raise SettingsError(f"{name} is not set: {how}")
        return value


def load(environ: Mapping[str, str], folder: Path = CHECKOUT) -> Loaded:
    """Apply the rule above. Raises NoServices; SettingsError for a file that cannot be read, and for a proxy or a
    certificate file that cannot work."""
    return _on_the_network(_load(environ, folder))


def elsewhere(environ: Mapping[str, str]) -> Loaded:
    """The process's own variables, for a command that talks to served functions alone. Raises SettingsError."""
    return _on_the_network(Loaded(environ))


def _on_the_network(loaded: Loaded) -> Loaded:
    variables = dict(loaded.environ)
    served = [url for name in _OTHERS if (url := variables.get(name, "").strip())]
    network.prepare(variables, [each or _ELSEWHERE for each in _addresses(variables)] + served)
    return Loaded(variables, loaded.file)


def _load(environ: Mapping[str, str], folder: Path) -> Loaded:
    merged = with_files(environ, folder)
    forced = merged.get(OFFLINE_FLAG, "").strip().lower() in ("1", "true", "yes", "on")
    keys = [name for name in KEYS if merged.get(name, "").strip()]
    if keys and not forced:
        exported = _platform_at(_addresses(merged), folder, merged.get(discovery.OFFLINE_FILE, "").strip())
        return Loaded(merged) if exported is None else Loaded({**exported[1], **merged}, exported[0])
    named = merged.get(discovery.OFFLINE_FILE, "").strip()
    file = folder / named if named else discovery.find_running(folder)
    variables = discovery.read_if_running(file) if file is not None else None
    if file is None or variables is None:
        raise NoServices(_advice(keys, named))
    for name in (*KEYS, *discovery.REDIRECTING, "ANTHROPIC_WORKSPACE_ID"):
        merged.pop(name, None)  # nothing of the real services reaches the offline ones
    return Loaded(merged | variables, file)


def with_files(environ: Mapping[str, str], folder: Path | None = None) -> dict[str, str]:
    """Step 1 of the rule alone, for a command that needs neither keys nor services. Raises SettingsError."""
    merged = dict(environ) | in_files(folder)
    _drop_placeholders(merged)
    return merged


def in_files(folder: Path | None = None) -> dict[str, str]:
    """The variables of `.env` and `.env.local`, placeholders too. Raises SettingsError."""
    found: dict[str, str] = {}
    try:
        for name in (".env", ".env.local"):
            found.update(dotenv.read((folder or CHECKOUT) / name))
    except dotenv.DotenvError as error:
        raise SettingsError(str(error)) from None
    return found


def load_for_cloud(environ: Mapping[str, str], cloud: str) -> Mapping[str, str]:
    """The variables of the real services, for what is deployed to `cloud`. Raises NoServices, SettingsError."""
    loaded = load(environ)
    if loaded.offline:
        raise SettingsError(f"The offline platform cannot be reached from {cloud}: fill in .env with your own keys.")
    return loaded.environ


def apply(loaded: Loaded, environ: MutableMapping[str, str]) -> None:
    """Make `environ` (this process's) equal to what was loaded: the SDKs read it when they are imported."""
    for name in set(environ) - set(loaded.environ):
        del environ[name]
    environ.update(loaded.environ)


def _addresses(variables: Mapping[str, str]) -> tuple[str, ...]:
    """Where each service is; empty for where it always is."""
    return tuple(variables.get(name, "").strip().rstrip("/") for name in ADDRESSES)


def _platform_at(addresses: tuple[str, ...], folder: Path, named: str) -> tuple[Path, Mapping[str, str]] | None:
    """The running offline platform that has both addresses, by its file: the one `named`, or one of the `folder`."""
    if not all(addresses):
        return None
    files = itertools.chain([folder / named] if named else [], (file for file, _ in discovery.running(folder)))
    for file in files:
        variables = discovery.read_if_running(file)
        if variables is not None and _addresses(variables) == addresses:
            return file, variables
    return None


def _drop_placeholders(variables: MutableMapping[str, str]) -> None:
    for name, value in list(variables.items()):
        if name.startswith(("ANTHROPIC_", "TENSORLAKE_")) and value.strip().endswith(_PLACEHOLDER):
            del variables[name]


def _advice(keys: list[str], named: str) -> str:
    if named:
        return f"{discovery.OFFLINE_FILE} names {named}, and no offline platform runs there. See what make up prints."
    if keys:
        return f"{OFFLINE_FLAG} is set, and no offline platform runs here. Start one in another terminal: make up"
    return (
        "No keys are set, and no offline platform runs here.\n"
        "  To try it on this machine:   make demo, or make up in another terminal\n"
        "  To use the real services:    cp .env.example .env; cp .env.local.example .env.local; fill them in"
    )
