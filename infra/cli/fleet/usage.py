"""What sandboxes used and cost, from the service's usage API: of an organisation, as its sandboxes' ids tell.

Wire: docs/wire/tensorlake.md#111-usage. It needs the organisation's id, and a key that may read its usage.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from shared.settings import Settings
from shared.texts import printable
from shared.unanswered import certificate_advice, unanswered, was_not_sent

ORGANIZATION: Final = "TENSORLAKE_ORGANIZATION_ID"
_WINDOW: Final = "30d"
_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Use:
    """Of some sandboxes. Hours of one core and of one GiB of memory; money in minor units, None where none is told."""

    vcpu_hours: Decimal = Decimal(0)
    memory_gib_hours: Decimal = Decimal(0)
    amount_minor: int | None = None

    def __add__(self, other: Use) -> Use:
        told = [each.amount_minor for each in (self, other) if each.amount_minor is not None]
        return Use(
            self.vcpu_hours + other.vcpu_hours,
            self.memory_gib_hours + other.memory_gib_hours,
            sum(told) if told else None,
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """Of the last thirty days, by the sandbox's id. `currency` is empty where no price is told."""

    sandboxes: Mapping[str, Use]
    currency: str

    def of(self, ids: Iterable[str]) -> Use:
        return sum((self.sandboxes[each] for each in ids if each in self.sandboxes), Use())

    def price(self, use: Use) -> str:
        return f"{Decimal(use.amount_minor) / 100:.2f} {self.currency}" if use.amount_minor is not None else ""


async def read(settings: Settings, organization: str) -> Usage | str:
    """A text says why it could not be read."""
    import tensorlake.usage  # noqa: F401 - not in the thread: one that imports the package meanwhile sees half of it

    try:
        async with asyncio.timeout(_SECONDS):
            return await asyncio.to_thread(_read, settings, organization)
    except TimeoutError:
        return f"no answer in {_SECONDS:g} s"
    except Exception as error:  # the edge: the SDK's errors have no common class of their own
        if was_not_sent(error):
            return unanswered(error, settings.tensorlake_url)
        return certificate_advice(error) or printable(_said(error), 300)


def _said(error: Exception) -> str:
    """The SDK imports the whole of itself to put an error into words of its own, which fails in a process with Google's
    libraries (both bring `google.rpc.Status`). Then what the error was about is told."""
    about = error.__context__ if isinstance(error, TypeError | ImportError) else None
    if about is None or len(about.args) != 3:
        return f"{type(error).__name__}: {error}"
    _, status, message = about.args
    return "the key is not authorized for it (HTTP 403)" if status == 403 else f"HTTP {status}: {message}"


def _read(settings: Settings, organization: str) -> Usage:
    from tensorlake.usage import UsageClient

    key = settings.tensorlake_key.reveal()
    with UsageClient(api_key=key, organization_id=organization, api_url=settings.tensorlake_url) as client:
        export = client.sandboxes(last=_WINDOW)
    charged = export.attributed_usage_charge or export.attributed_usage_value
    currency = printable(charged.currency.upper(), 10) if charged is not None else ""
    return Usage({each.sandbox_id: _use(each) for each in export.sandboxes}, currency)


def _use(row: Any) -> Use:
    amount = row.attributed_amount_minor if row.attributed_amount_minor is not None else row.usage_value_amount_minor
    return Use(row.resources.cpu.quantity, row.resources.memory.quantity, amount)
