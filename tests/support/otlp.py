"""An OTLP receiver: what a collector would get, over HTTP, as protobuf from the functions and as JSON from workers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.http_stub import StubHandler, stub_server

_MESSAGES: Mapping[str, Any] = {"/v1/traces": ExportTraceServiceRequest, "/v1/metrics": ExportMetricsServiceRequest}


class Received:
    """Thread-safe enough for a test: lists that only grow."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[Mapping[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []

    @property
    def spans(self) -> Sequence[Mapping[str, Any]]:
        """In the order of their ends; trace and span ids as hexadecimal texts, attributes as a mapping."""
        return [
            {**span, "attributes": _attributes(span)}
            for body in list(self.bodies)
            for resource in body.get("resourceSpans", ())
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]

    def span(self, name: str, **attributes: str) -> Mapping[str, Any] | None:
        """The first of this name with these attributes, dots written as two underscores."""
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        for span in self.spans:
            if span["name"] == name and wanted.items() <= span["attributes"].items():
                return span
        return None

    @property
    def metrics(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """By name, the points that came."""
        found: dict[str, list[Mapping[str, Any]]] = {}
        for body in list(self.bodies):
            for resource in body.get("resourceMetrics", ()):
                for scope in resource["scopeMetrics"]:
                    for metric in scope["metrics"]:
                        data = metric.get("gauge") or metric.get("sum") or metric.get("histogram") or {}
                        points = [{**point, "attributes": _attributes(point)} for point in data.get("dataPoints", ())]
                        found.setdefault(metric["name"], []).extend(points)
        return found


def _attributes(of: Mapping[str, Any]) -> Mapping[str, str]:
    return {each["key"]: str(next(iter(each["value"].values()))) for each in of.get("attributes", ())}


@contextlib.contextmanager
def otlp_receiver() -> Iterator[Received]:
    received = Received()

    class Handler(StubHandler):
        def do_POST(self) -> None:
            raw = self.body()
            message = _MESSAGES[self.path]()
            if self.headers["content-type"] == "application/json":
                _hex_to_bytes(message, raw.decode())
            else:
                message.ParseFromString(raw)
            received.headers.append(dict(self.headers))
            received.bodies.append(_with_hex_ids(json_format.MessageToDict(message)))
            self.answer(200)

    with stub_server(Handler) as received.url:
        yield received


_IDS = ("traceId", "spanId", "parentSpanId")


def _hex_to_bytes(message: Any, text: str) -> None:
    """OTLP's JSON has ids in hexadecimal, protobuf's own in base 64."""
    import base64
    import json

    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: base64.b64encode(bytes.fromhex(each)).decode() if key in _IDS else changed(each)
                for key, each in value.items()
            }
        return [changed(each) for each in value] if isinstance(value, list) else value

    json_format.Parse(json.dumps(changed(json.loads(text))), message)


def _with_hex_ids(value: Any) -> Any:
    import base64

    if isinstance(value, dict):
        return {
            key: base64.b64decode(each).hex() if key in _IDS else _with_hex_ids(each) for key, each in value.items()
        }
    return [_with_hex_ids(each) for each in value] if isinstance(value, list) else value
