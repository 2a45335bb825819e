"""`prepare`: the set-up of each environment is run once, for its sessions to start from (docs/setup.md)."""

from __future__ import annotations

import sys

from infra.cli.environ import Loaded
from shared.claims.dispatcher import utc_now
from shared.environment_settings import Environment
from shared.errors import SettingsError
from shared.prepared.preparation import Preparation, PreparationFailed
from shared.service import Service
from shared.settings import Settings
from shared.texts import printable


async def run(loaded: Loaded, environment: str = "", *, fresh: bool = False) -> int:
    """0 where each one has a prepared start, 1 where one could not be made. Raises SettingsError."""
    settings = Settings.from_environ(loaded.environ)
    chosen = _chosen(settings, environment)
    service = Service(settings)
    try:
        return max([await _one(service, each, fresh=fresh) for each in chosen])
    finally:
        await service.aclose()


def _chosen(settings: Settings, wanted: str) -> list[Environment]:
    if wanted:
        if wanted not in settings.environments:
            raise SettingsError(f"--environment: {wanted} is none of these settings' environments")
        return [settings.environments[wanted]]
    chosen = [each for each in settings.environments.values() if each.setup is not None and each.setup.base.work]
    if not chosen:
        raise SettingsError(
            "nothing to prepare: set SETUP_REPOSITORY, SETUP_FILES or SETUP_SCRIPT for what every session gets"
        )
    return chosen


async def _one(service: Service, environment: Environment, *, fresh: bool) -> int:
    def say(text: str) -> None:
        print(f"  {printable(text, 500)}", file=sys.stderr)

    print(f"{environment.id}:", file=sys.stderr)
    try:
        prepared = await Preparation(service.settings, environment, service.host, utc_now, say).run(fresh=fresh)
    except PreparationFailed as failed:
        print(f"{environment.id} is not prepared: {printable(str(failed), 2000)}", file=sys.stderr)
        return 1
    how = f"in {prepared.seconds:.1f} s" if prepared.made else "already"
    print(f"{environment.id} is prepared {how}: {prepared.name}, snapshot {printable(prepared.snapshot, 100)}")
    return 0
