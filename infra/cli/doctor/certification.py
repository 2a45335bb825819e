"""When was this version tried against the services, and did all hold? From the committed reports (docs/certified)."""

from __future__ import annotations

from infra.cli.certified import FOLDER, OFFLINE, last_certification, own_version
from infra.cli.doctor.context import DoctorContext
from infra.cli.doctor.findings import Say, info, ok


async def check_certification(context: DoctorContext, say: Say) -> None:
    version = own_version()
    last = last_certification(context.certified or FOLDER)
    if last is None:
        say(info("HANDS208", f"version {version} was never certified: make certify"))
        return
    differ = [str(row.get("id")) for row in last["checks"] if row.get("verdict") == "differs"]
    told = f"{len(differ)} differ: {', '.join(differ)}" if differ else "nothing differs"
    number = len(last["checks"])  # a run of `--only` has fewer, and says less
    checks = f"{number} check{'s' if number != 1 else ''}"
    seen = f"version {version} was certified against {last['where']} at {last['at']}, {checks}: {told}"
    if last["where"] == OFFLINE and not context.offline:
        say(info("HANDS208", f"{seen}; never against real services: make certify"))
    else:
        say(info("HANDS208", seen) if differ else ok("HANDS208", seen))
