"""The settings of an explored run: scaled down, in the order of the defaults."""

from __future__ import annotations

import functools
from dataclasses import fields
from typing import Any, Final

from image.session.setup import SetupPolicy
from shared.environment_settings import Environment
from shared.ports import PoolRecord
from shared.settings import Settings

ENVIRONMENT: Final = "env_01Explored"

# Scaled down: the order among them is the defaults'. Lock, gate and look-up times in the code are not scaled.
_SCALED: Final = {
    "ANTHROPIC_ENVIRONMENT_ID": ENVIRONMENT,
    "ANTHROPIC_ENVIRONMENT_KEY": "no-key",
    "TENSORLAKE_API_KEY": "no-key",
    "RECLAIM_SECONDS": "24",
    "BIND_SECONDS": "8",
    "HANDOVER_SECONDS": "12",
    "STRANDED_SECONDS": "40",
    "POISON_AGE_SECONDS": "300",
    "POISON_ATTEMPTS": "4",
    "DRAIN_DEADLINE_SECONDS": "30",
    "RUNNER_MAX_IDLE_SECONDS": "6",
    "SANDBOX_TIMEOUT_SECONDS": "90",
    "RECONCILE_SECONDS": "20",
    "IDLE_GRACE_SECONDS": "8",
    "END_GRACE_SECONDS": "15",
    "RETENTION_SECONDS": "240",
}
POOL: Final = "pool_1"
_EAGER: Final = {"IDLE_GRACE_SECONDS": "2", "END_GRACE_SECONDS": "6", "RETENTION_SECONDS": "12"}


@functools.cache
def settings_of(*, eager: bool, resume_suspended: bool, pooled: bool) -> Settings:
    settings = Settings.from_environ(
        {
            **_SCALED,
            **(_EAGER if eager else {}),
            "RESUME_SUSPENDED_SESSIONS": str(resume_suspended),
            "SANDBOX_POOL": POOL if pooled else "",
        }
    )
    environment = settings.environments[ENVIRONMENT]
    return settings._replace(environments={ENVIRONMENT: environment._replace(setup_given=_written(environment.setup))})


def _written(setup: SetupPolicy | None) -> SetupPolicy | None:
    """The same in each of thousands of claims, and made ready for them once."""
    if setup is None:
        return None
    wire = setup.to_wire()

    class Written(SetupPolicy):
        __slots__ = ()

        def to_wire(self) -> dict[str, Any]:
            return wire

    return Written(**{each.name: getattr(setup, each.name) for each in fields(setup)})


def pool_of(environment: Environment) -> PoolRecord:
    """One that fits."""
    return PoolRecord(
        POOL,
        environment.image,
        environment.cpus,
        environment.memory_mb,
        environment.disk_mb,
        environment.timeout_seconds,
        environment.egress,
    )


LEASE: Final = 30.0
