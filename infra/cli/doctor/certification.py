"""When was this code tried against the services, and did all hold? From the committed reports (docs/certified)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.cli.certified import FOLDER, OFFLINE, last_certification, own_code, own_version
from infra.cli.doctor.context import DoctorContext
from infra.cli.doctor.findings import Say, info, ok


async def check_certification(context: DoctorContext, say: Say) -> None:
    version = own_version()
    last = last_certification(context.certified or FOLDER)
    if last is None:
        say(info("HANDS208", f"version {version} was never certified: make certify"))
        return
    differ = [str(row.get("id")) for row in last["checks"] if row.get("verdict") == "differs"]
    unseen = sum(row.get("verdict") == "not known" for row in last["checks"])
    told = f"{len(differ)} differ: {', '.join(differ)}" if differ else "nothing differs"
    told += f", {unseen} could not be made" if unseen else ""
    number = len(last["checks"]) + len(last.get("not_made") or ())  # a run of `--only` makes fewer of them
    of_this_code = _of_this_code(last)
    if of_this_code == number:
        whose, made = f"this code (version {version}) was", number
    elif of_this_code:
        whose, made = f"this code (version {version}) was in part", of_this_code
    else:
        whose, made = f"an earlier state of version {version} was", len(last["checks"])
    checks = f"{made}{'' if made == number else f' of {number}'} check{'' if number == 1 else 's'}"
    seen = f"{whose} certified against {last['where']} at {last['at']}, {checks}: {told}"
    if last["where"] == OFFLINE and not context.offline:
        say(info("HANDS208", f"{seen}; never against real services: make certify"))
    elif of_this_code != number:
        say(info("HANDS208", f"{seen}; make certify CERTIFY=--rest makes what this code lacks"))
    else:
        say(info("HANDS208", seen) if differ or unseen else ok("HANDS208", seen))


def _of_this_code(last: Mapping[str, Any]) -> int:
    """How many checks were made with it, but for those that an interrupted run was to make again."""
    unfinished = set(last.get("unfinished") or ())
    return sum(row.get("code") == own_code() and row.get("id") not in unfinished for row in last["checks"])
