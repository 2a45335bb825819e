"""docs/reference/doctor.md, from doctor's catalogue."""

from __future__ import annotations

from infra.cli.doctor.catalogue import CATALOGUE

_HEAD = """# Doctor

`make doctor` looks at settings, keys, both services, the queue, the image and the webhook (`WEBHOOK_URL`, or the
server sandbox's, which that wakes). It makes one probe sandbox, starts a worker in it, looks around from inside and
deletes it, and says what to do. It polls nothing and shows no secret. `DOCTOR="--json"` is for programs,
`DOCTOR="--no-probe"` makes no sandbox. `hands doctor` ends with 0, with 1 for a warning, with 2 for an error.

Offline an egress list is recorded and not enforced, and no daemon listens inside: doctor says so (`HANDS702`,
`HANDS703`) and proves nothing about the real service. What other commands say:
[troubleshooting](../troubleshooting.md).

This page is generated from `infra/cli/doctor/catalogue.py`.

| code | symptom | cause | fix |
|---|---|---|---|
"""


def page() -> str:
    rows = (f"| `{code}` | {each.symptom} | {each.cause} | {each.fix} |\n" for code, each in CATALOGUE.items())
    return _HEAD + "".join(rows)
