"""Can the sandboxes of an environment's pool be used for its sessions (docs/pool.md)?"""

from __future__ import annotations

from infra.cli.doctor.context import DoctorContext
from infra.cli.doctor.findings import Say, error, ok, warning
from shared.claims.dispatcher import spec_of
from shared.claims.warm_pool import differences
from shared.environment_settings import Environment
from shared.ports import Absent, PoolRecord


async def check_pool(context: DoctorContext, environment: Environment, say: Say) -> None:
    """Says nothing where no pool is set."""
    if not environment.pool:
        return
    match await context.service.host.pool(environment.pool):
        case PoolRecord() as pool:
            found = differences(pool, spec_of(environment, "any"))
            if found:
                say(error("HANDS404", f"{environment.id}: the pool {pool.id} is not used: {'; '.join(found)}"))
            else:
                say(ok("HANDS404", f"{environment.id}: the sandboxes of the pool {pool.id} are what it wants"))
        case Absent():
            say(error("HANDS404", f"{environment.id}: there is no pool {environment.pool} in the key's project"))
        case problem:
            say(warning("HANDS001", f"the pool {environment.pool} could not be looked at: {problem.reason}"))
