"""What a prepared start is made of, and the name of the sandbox that carries it (docs/setup.md#prepared-starts)."""

from __future__ import annotations

import json
import math
from typing import Final

from image.session.setup import SetupPolicy
from shared import names
from shared.environment_settings import Environment
from shared.settings import Settings

_MARGIN: Final = 300.0  # seconds


def prepared_names(settings: Settings, environment: Environment, now: float) -> tuple[str, ...]:
    """The sandboxes that sessions are started from, the newest first: of this time and of the one before. Empty where
    sessions start from none. `now` in seconds since the epoch."""
    policy, age = environment.setup, environment.prepared_seconds
    if policy is None or not policy.base.work or not 0 < age < math.inf:
        return ()
    code = names.recipe_code(_recipe(settings, environment, policy))
    times = (int(now // age * age), int((now // age - 1) * age))
    return tuple(names.prepared_name(settings.prefix, environment.id, code, since) for since in times if since >= 0)


def _recipe(settings: Settings, environment: Environment, policy: SetupPolicy) -> str:
    """All that decides what is in a prepared sandbox. CPUs, memory and the hosts that are reached are of each session
    (docs/wire/tensorlake.md#6-snapshots)."""
    from shared.claims.handover import bundle_sdk

    parts = {
        "setup": policy.base.digest(),
        "env": dict(policy.base.env),
        "depth": policy.depth,
        "image": environment.image,
        "disk": environment.disk_mb,
        "user": settings.sandbox_user,
        "workdir": settings.workdir,
        "sdk": bundle_sdk(),
    }
    return json.dumps(parts, sort_keys=True)


def making_seconds(settings: Settings, environment: Environment) -> float:
    """The longest that one preparation may take, from the sandbox's creation to its snapshot: after
    that nobody makes it any more."""
    longest = environment.setup.seconds if environment.setup is not None else 0.0
    return longest + 2 * settings.times.bind + settings.times.handover + _MARGIN
