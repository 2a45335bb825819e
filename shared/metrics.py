"""The metrics of the functions: each is declared here once, and recorded where something happens.

Off, which is the default, a record is one comparison: no library is imported (shared/otel.py switches it on). No
attribute holds a session's id, a secret, a prompt or what a tool said: each has a bounded number of values
(tests/functions/test_telemetry.py). docs/observability.md lists them for people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Literal, NamedTuple

Kind = Literal["counter", "gauge", "histogram", "observed"]
Attributes = Mapping[str, str | bool | int | float]

ENVIRONMENT: Final = "hands.environment.id"
SERVICE: Final = "peer.service"
OUTCOME: Final = "hands.outcome"

_SHORT: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds
_LONG: Final = (0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)


class Metric(NamedTuple):
    """`unit` is of UCUM, as OpenTelemetry has it. `observed` gauges are read when they are exported."""

    name: str
    kind: Kind
    unit: str
    meaning: str
    buckets: tuple[float, ...] = ()

    @property
    def prometheus(self) -> str:
        """Its name in `/metrics` and in a query; a histogram's series add _bucket, _count and _sum."""
        unit = {"s": "_seconds"}.get(self.unit, "")
        return f"{self.name.replace('.', '_')}{unit}{'_total' if self.kind == 'counter' else ''}"


QUEUE_DEPTH: Final = Metric("hands.queue.depth", "gauge", "{item}", "Work items that wait, as the last tick saw them.")
QUEUE_AGE: Final = Metric("hands.queue.oldest_age", "gauge", "s", "Age of the oldest that waits; 0 where none does.")
SERVED: Final = Metric(
    "hands.item.queued_to_served.duration",
    "histogram",
    "s",
    "From an item's creation until its worker is ready and it is acked.",
    _LONG,
)
ITEMS: Final = Metric("hands.items", "counter", "{item}", "Claimed items by what became of them.")
DEATHS: Final = Metric("hands.worker.deaths", "counter", "{worker}", "Workers that ended without an order.")
ALARMS: Final = Metric("hands.alarms", "counter", "{alarm}", "What a person should look at.")
REPAIRS: Final = Metric("hands.repairs", "counter", "{repair}", "What ticks repaired, or failed to.")
TICKS: Final = Metric("hands.tick.duration", "histogram", "s", "Ticks, from their start to their report.", _LONG)
CALLS: Final = Metric(
    "hands.service.call.duration", "histogram", "s", "Calls to the two services by route and outcome.", _SHORT
)
BUDGET: Final = Metric(
    "hands.call_budget.left", "observed", "{call}", "Calls that this process may make at once, of its own budget."
)
SANDBOXES: Final = Metric("hands.sandboxes", "gauge", "{sandbox}", "Sandboxes by state, as the last tick saw them.")
RACES: Final = Metric("hands.race.duration", "histogram", "s", "Races by how they ended.", _LONG)
BRANCHES: Final = Metric("hands.race.branches", "counter", "{branch}", "Branches of races by how they ended.")
REQUESTS: Final = Metric(
    "http.server.request.duration", "histogram", "s", "Calls of the functions by route and status.", _SHORT
)

CATALOGUE: Final = (
    *(QUEUE_DEPTH, QUEUE_AGE, SERVED, ITEMS, DEATHS, ALARMS, REPAIRS, TICKS, CALLS, BUDGET, SANDBOXES, RACES, BRANCHES),
    REQUESTS,
)

Reading = Callable[[], Iterable[tuple[float, Attributes]]]

_instruments: dict[Metric, Any] | None = None
_readings: list[tuple[Metric, Reading]] = []
_unrecorded: ContextVar[bool] = ContextVar("unrecorded", default=False)


def is_on() -> bool:
    return _instruments is not None


def record(metric: Metric, value: float, attributes: Attributes) -> None:
    """Add to a counter, set a gauge, or put a value into a histogram."""
    if _instruments is None or _unrecorded.get():
        return
    instrument = _instruments[metric]
    match metric.kind:
        case "counter":
            instrument.add(value, attributes)
        case "gauge":
            instrument.set(value, attributes)
        case "histogram":
            instrument.record(value, attributes)
        case "observed":
            raise TypeError(f"{metric.name} is read, not recorded")


def observe(metric: Metric, reading: Reading) -> None:
    """Have `reading` asked at each export, as long as the process lives."""
    if _instruments is not None and not _unrecorded.get():
        _readings.append((metric, reading))


@contextmanager
def unrecorded() -> Iterator[None]:
    """Nothing that the block does, or has tasks do, is recorded: a person's look at things is no tick."""
    before = _unrecorded.set(True)
    try:
        yield
    finally:
        _unrecorded.reset(before)


def switch_on(meter: Any) -> None:
    """`meter`: of OpenTelemetry."""
    global _instruments
    from opentelemetry.metrics import Observation

    def read(metric: Metric) -> Callable[[Any], Iterable[Observation]]:
        def callback(options: Any) -> Iterable[Observation]:
            for each, reading in list(_readings):
                if each is metric:
                    for value, attributes in reading():
                        yield Observation(value, dict(attributes))

        return callback

    made: dict[Metric, Any] = {}
    for each in CATALOGUE:
        said = {"unit": each.unit, "description": each.meaning}
        match each.kind:
            case "counter":
                made[each] = meter.create_counter(each.name, **said)
            case "gauge":
                made[each] = meter.create_gauge(each.name, **said)
            case "histogram":
                made[each] = meter.create_histogram(
                    each.name, explicit_bucket_boundaries_advisory=list(each.buckets), **said
                )
            case "observed":
                made[each] = meter.create_observable_gauge(each.name, [read(each)], **said)
    _instruments = made


def switch_off() -> None:
    global _instruments
    _instruments = None
    _readings.clear()
