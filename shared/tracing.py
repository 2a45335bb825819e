"""Spans of the functions: webhook, poll, item, bind, hand over, ack; tick and repairs; race and branches.

Off, which is the default, a span is an object that forgets everything: no library is imported (shared/otel.py switches
it on). Attributes are ids, names of states and numbers. No secret, no prompt and no tool output is ever one
(tests/functions/test_telemetry.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final, Literal, Protocol

Value = str | bool | int | float
Kind = Literal["internal", "server", "client"]

ENVIRONMENT: Final = "hands.environment.id"
SESSION: Final = "gen_ai.conversation.id"
WORK: Final = "hands.work.id"
SANDBOX: Final = "hands.sandbox.name"
OUTCOME: Final = "hands.outcome"

_tracer: Any = None


class Span(Protocol):
    """What happens now."""

    def set(self, attributes: Mapping[str, Value]) -> None: ...

    def fail(self, kind: str) -> None:
        """`kind`: the name of what went wrong, no text of anybody's."""
        ...


class _NoSpan:
    def set(self, attributes: Mapping[str, Value]) -> None:
        pass

    def fail(self, kind: str) -> None:
        pass


class _RealSpan:
    def __init__(self, span: Any) -> None:
        self._span = span

    def set(self, attributes: Mapping[str, Value]) -> None:
        self._span.set_attributes(dict(attributes))

    def fail(self, kind: str) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("error.type", kind)
        self._span.set_status(StatusCode.ERROR)


_OFF: Final = nullcontext[Span](_NoSpan())


def is_on() -> bool:
    return _tracer is not None


def span(
    name: str,
    attributes: Mapping[str, Value] | None = None,
    *,
    kind: Kind = "internal",
    causes: Sequence[Any] = (),
) -> AbstractContextManager[Span]:
    """What runs within is its child. An exception that leaves it is its failure, by its class alone.

    causes: what `here` told where it was asked for; then this is a child of the first of them, linked to the others,
        and not of the span around it: a task that serves many callers runs in the context of whoever was first.
    """
    return _OFF if _tracer is None else _recorded(name, attributes or {}, kind, causes)


@contextmanager
def _recorded(name: str, attributes: Mapping[str, Value], kind: Kind, causes: Sequence[Any]) -> Iterator[Span]:
    from opentelemetry import trace

    parent = trace.set_span_in_context(trace.NonRecordingSpan(causes[0])) if causes else None
    with _tracer.start_as_current_span(
        name,
        parent,
        kind=trace.SpanKind[kind.upper()],
        attributes=dict(attributes),
        links=[trace.Link(each) for each in causes[1:]],
        record_exception=False,  # its text may quote anybody
        set_status_on_exception=False,
    ) as made:
        found = _RealSpan(made)
        try:
            yield found
        except BaseException as error:
            found.fail(type(error).__name__)
            raise


def here() -> Sequence[Any]:
    """The current span, to be linked to from elsewhere; empty where there is none."""
    if _tracer is None:
        return ()
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    return (context,) if context.is_valid else ()


def traceparent() -> str | None:
    """The current span as W3C Trace Context has it; None where there is none or it is not sampled."""
    for context in here():
        if context.trace_flags.sampled:
            return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
    return None


def switch_on(tracer: Any) -> None:
    """`tracer`: of OpenTelemetry."""
    global _tracer
    _tracer = tracer


def switch_off() -> None:
    global _tracer
    _tracer = None
