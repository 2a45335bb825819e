"""A webhook sender's side of Standard Webhooks, with keys that are no real ones."""

from __future__ import annotations

import base64
import itertools
import json
from datetime import UTC, datetime

from standardwebhooks.webhooks import Webhook

KEY = "whsec_" + base64.b64encode(b"0" * 32).decode()
OTHER_KEY = "whsec_" + base64.b64encode(b"1" * 32).decode()

_numbers = itertools.count(1)


def delivery(kind: str = "session.status_run_started", delivery_id: str = "whe_1") -> bytes:
    """The body of a delivery (docs/wire/anthropic.md#91-delivery)."""
    data = {"type": kind, "id": "sesn_1", "organization_id": "o", "workspace_id": "w"}
    return json.dumps({"type": "event", "id": delivery_id, "created_at": "2026-10-20T09:00:02Z", "data": data}).encode()


def signed(body: bytes, key: str = KEY, *, delivery_id: str = "", age: float = 0.0) -> dict[str, str]:
    """Headers of a delivery that was signed `age` seconds ago; of a new one where no id is given."""
    delivery_id = delivery_id or f"whe_{next(_numbers)}"
    stamp = datetime.fromtimestamp(datetime.now(UTC).timestamp() - age, UTC)
    return {
        "webhook-id": delivery_id,
        "webhook-timestamp": str(int(stamp.timestamp())),
        "webhook-signature": Webhook(key).sign(delivery_id, stamp, body.decode()),
    }
