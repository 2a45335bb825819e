"""docs/reference/http-api.md and openapi.json, from the models of what the functions take and answer."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import TypeAdapter

from infra.cli.environ import CHECKOUT
from shared.races.events import ErrorBody, Event
from shared.races.report import RaceReport
from shared.races.request import RaceRequest
from shared.races.status import RaceStatus
from shared.reports import DrainReport, ReconcileReport, TickReport

_REF: Final = "#/components/schemas/{model}"
_MODELS: Final[tuple[tuple[str, Literal["validation", "serialization"], TypeAdapter[Any]], ...]] = (
    ("request", "validation", TypeAdapter(RaceRequest)),
    ("report", "serialization", TypeAdapter(RaceReport)),
    ("status", "serialization", TypeAdapter(RaceStatus)),
    ("event", "serialization", TypeAdapter(Event)),
    ("error", "serialization", TypeAdapter(ErrorBody)),
    ("tick", "serialization", TypeAdapter(TickReport)),
    ("drain", "serialization", TypeAdapter(DrainReport)),
    ("reconcile", "serialization", TypeAdapter(ReconcileReport)),
)

ERRORS: Final[Mapping[int, str]] = {
    400: "The body or a field is wrong. `field` names it.",
    401: "The signature or the token is missing or wrong.",
    403: "An agent's token may not ask for this.",
    404: "There is no such source, or no such race.",
    405: "Another method than this one.",
    406: "Neither form of the answer is accepted.",
    408: "The body did not come in time.",
    409: "The source cannot be checkpointed so, or the race of this key was lost with the copy that ran it.",
    413: "The body is larger than 1 MiB (a webhook's: 64 KiB).",
    422: "The set-up script failed (the message has the end of its output), or the key was used for another request.",
    429: "Too many calls, or too many races at once. `retry-after` says when to come again.",
    501: "No race can go on behind its answer here: the runtime stops what runs then.",
    502: "A service answered in a way that is no answer.",
    503: "A secret of this endpoint is not set, or a service cannot be reached. Try again later.",
}


@dataclass(frozen=True, slots=True)
class DescribedEndpoint:
    path: str
    method: Literal["get", "post", "delete"]
    summary: str
    description: str
    security: tuple[str, ...]
    errors: tuple[int, ...]
    body: Mapping[str, Any] | None
    answers: Mapping[int, tuple[str, Mapping[str, Mapping[str, Any]]]]
    """Status to its meaning and, by media type, its schema."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Those of a request that change what it does."""


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": _REF.format(model=name)}


_ANY_OBJECT: Final = {"type": "object"}
_DELIVERY: Final = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "type": {"type": "string"},
        "data": {
            "type": "object",
            "required": ["type"],
            "properties": {"type": {"type": "string"}, "id": {"type": "string"}},
        },
    },
}
_WOKEN: Final = {
    "type": "object",
    "description": "One of the three. A list holds reports; a word says that the work goes on after the answer.",
    "properties": {
        "drains": {
            "anyOf": [{"type": "array", "items": _ref("DrainReport")}, {"enum": ["begun", "enqueued"]}],
        },
        "reconciled": {
            "anyOf": [{"type": "array", "items": _ref("ReconcileReport")}, {"enum": ["begun", "enqueued"]}],
        },
        "ignored": {"type": "string"},
        "error": {"type": "string"},
    },
}

ENDPOINTS: Final = (
    DescribedEndpoint(
        "/on_run_started",
        "post",
        "Anthropic's webhook",
        "Standard Webhooks. A delivery is a wake-up: what a drain could not do is still on the queue, so a valid one is"
        " answered 200 even when its drain failed. `POST /` is the same.",
        ("webhook",),
        (400, 401, 405, 408, 413, 503),
        _DELIVERY,
        {200: ("What was done, begun or ignored.", {"application/json": _WOKEN})},
    ),
    DescribedEndpoint(
        "/poll_tick",
        "post",
        "One drain and one repair pass",
        "For a schedule. What the body says does not matter; a CloudEvent is answered 204.",
        ("operator",),
        (401, 403, 405, 408, 413, 429, 503),
        None,
        {
            200: ("What was claimed and repaired.", {"application/json": _ref("TickReport")}),
            204: ("The answer to a CloudEvent.", {}),
        },
    ),
    DescribedEndpoint(
        "/fork_best_of_n",
        "post",
        "One race",
        "With `Accept: application/x-ndjson` each line is an event, the last one `report` or `error`. A caller that"
        " hangs up ends the race, unless the call has an `Idempotency-Key` or `Prefer: respond-async`.",
        ("operator", "capability"),
        (400, 401, 403, 404, 405, 406, 408, 409, 413, 422, 429, 501, 502, 503),
        _ref("RaceRequest"),
        {
            200: (
                "The race is over, with a winner or without one.",
                {"application/json": _ref("RaceReport"), "application/x-ndjson": _ref("Event")},
            ),
            202: (
                "The race runs on. `location`, relative to this path, is where it is read back.",
                {"application/json": _ref("RaceStatus")},
            ),
        },
        {
            "Idempotency-Key": "1 to 255 printable characters: a repeat of the same request finds the same race.",
            "Prefer": "`respond-async` is answered 202 while it runs; `wait=N` first waits N seconds (25 at most).",
        },
    ),
    DescribedEndpoint(
        "/fork_best_of_n/{race_id}",
        "get",
        "One race read back",
        "How a race fares that was asked for with `Prefer: respond-async` or an `Idempotency-Key`, from any copy of the"
        " functions, for `RACE_RECORD_SECONDS`. An agent reads the races of its own session.",
        ("operator", "capability"),
        (401, 403, 404, 429, 503),
        None,
        {200: ("How it fares, with its report or its error.", {"application/json": _ref("RaceStatus")})},
    ),
    DescribedEndpoint(
        "/fork_best_of_n/{race_id}",
        "delete",
        "One race ended",
        "Ends a race that can be read back, from any copy of the functions; again does nothing more. What had finished"
        " stands in its report, nobody wins and nothing is promoted. An agent ends the races of its own session.",
        ("operator", "capability"),
        (401, 403, 404, 429, 503),
        None,
        {
            200: ("It is over: ended before, or by itself.", {"application/json": _ref("RaceStatus")}),
            202: ("It ends now; read it back.", {"application/json": _ref("RaceStatus")}),
        },
    ),
    DescribedEndpoint(
        "/healthz",
        "get",
        "Alive",
        "Answers while the SDKs are still being imported. Closed without a token in a server sandbox.",
        (),
        (401, 403, 503),
        None,
        {200: ("The server lives.", {"application/json": _ANY_OBJECT})},
    ),
    DescribedEndpoint(
        "/readyz",
        "get",
        "Ready",
        "503 until the SDKs are imported. Closed without a token in a server sandbox.",
        (),
        (401, 403, 503),
        None,
        {200: ("The server is ready.", {"application/json": _ANY_OBJECT})},
    ),
    DescribedEndpoint(
        "/status",
        "get",
        "How this server fares",
        "Counters since its start, and its calls of both services against their budgets.",
        ("operator",),
        (401, 403, 503),
        None,
        {200: ("Counters by name.", {"application/json": _ANY_OBJECT})},
    ),
    DescribedEndpoint(
        "/metrics",
        "get",
        "Metrics",
        "Prometheus' text format, with `OTEL_METRICS_EXPORTER=prometheus` (docs/observability.md).",
        ("operator",),
        (401, 403, 404, 503),
        None,
        {200: ("The metrics of this process.", {"text/plain": {"type": "string"}})},
    ),
    DescribedEndpoint(
        "/ui/",
        "get",
        "The page",
        "Where the functions are served with it (`hands serve --ui`, docs/ui.md): sessions, races and alarms, and below"
        " it `races`, `alarms`, `races/ID` and `sessions/ID`. Reads only. `FUNCTIONS_TOKEN` may be the password of HTTP"
        " Basic authentication as well.",
        ("operator", "browser"),
        (401, 403, 405, 503),
        None,
        {
            200: ("The page.", {"text/html": {"type": "string"}}),
            502: ("A page that says which service could not be asked.", {"text/html": {"type": "string"}}),
        },
    ),
)


def schemas() -> dict[str, Any]:
    """Components by name, in the order of names."""
    _, document = TypeAdapter.json_schemas(_MODELS, ref_template=_REF)
    found = dict(document["$defs"])
    event = TypeAdapter(Event).json_schema(mode="serialization", ref_template=_REF)
    found["Event"] = {key: value for key, value in event.items() if key != "$defs"}
    found["Error"] = {"type": "object", "required": ["error"], "properties": {"error": _ref("ErrorBody")}}
    return {name: found[name] for name in sorted(found)}


def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    paths: dict[str, Any] = {}
    for each in ENDPOINTS:
        operation: dict[str, Any] = {
            "operationId": _operation_id(each),
            "summary": each.summary,
            "description": each.description,
            "security": [{scheme: []} for scheme in each.security],
            "responses": dict(_responses(each)),
        }
        if parameters := list(_parameters(each)):
            operation["parameters"] = parameters
        if each.body is not None:
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": each.body}}}
        paths.setdefault(each.path, {})[each.method] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Serverless hands for Claude Managed Agents",
            "version": version,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {
                "operator": {"type": "http", "scheme": "bearer", "description": "FUNCTIONS_TOKEN"},
                "browser": {"type": "http", "scheme": "basic", "description": "FUNCTIONS_TOKEN is the password"},
                "capability": {"type": "http", "scheme": "bearer", "description": "An agent's token for its session"},
                "webhook": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "webhook-signature",
                    "description": "Standard Webhooks: with webhook-id and webhook-timestamp",
                },
            },
        },
    }


def _operation_id(endpoint: DescribedEndpoint) -> str:
    name = endpoint.path.strip("/").replace("/{", "_by_").rstrip("}")
    return f"delete_{name}" if endpoint.method == "delete" else name


def _parameters(endpoint: DescribedEndpoint) -> Iterator[dict[str, Any]]:
    text = {"type": "string"}
    for name in re.findall(r"{(\w+)}", endpoint.path):
        yield {"name": name, "in": "path", "required": True, "schema": text}
    for name, meaning in endpoint.headers.items():
        yield {"name": name, "in": "header", "description": meaning, "schema": text}


def _responses(endpoint: DescribedEndpoint) -> Iterator[tuple[str, Any]]:
    for status, (meaning, content) in endpoint.answers.items():
        answer: dict[str, Any] = {"description": meaning}
        if content:
            answer["content"] = {media: {"schema": schema} for media, schema in content.items()}
        yield str(status), answer
    for status in endpoint.errors:
        yield (
            str(status),
            {"description": ERRORS[status], "content": {"application/json": {"schema": _ref("Error")}}},
        )


def openapi() -> str:
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


_HEAD = """# HTTP API

The functions' endpoints. [openapi.json](openapi.json) is the same as OpenAPI 3.1.

An error is `{"error": {"type": ..., "message": ..., "field": ...}}`; `field` is there where one is wrong. Who may call:
`webhook` is Anthropic's signature, `operator` a bearer token (`FUNCTIONS_TOKEN`) or an identity that Cloud Run has
checked, `browser` the same token as a password, `capability` an agent's own token ([security](../security.md)).

This page is generated from the functions' models.
"""


def page() -> str:
    return "\n".join([_HEAD, *_endpoints(), *_models()]).rstrip() + "\n"


def _endpoints() -> Iterator[str]:
    for each in ENDPOINTS:
        yield f"## {each.method.upper()} {each.path}\n"
        yield f"{each.summary}. {each.description}\n"
        yield f"Who may call: {' or '.join(each.security) or 'everybody'}.\n"
        if each.headers:
            yield "| header | meaning |\n|---|---|"
            yield from (f"| `{name}` | {meaning} |" for name, meaning in each.headers.items())
            yield ""
        yield "| status | meaning |\n|---|---|"
        for status, (meaning, content) in each.answers.items():
            kinds = ", ".join(f"`{media}`: {_kind(schema)}" for media, schema in content.items())
            yield f"| {status} | {meaning} {kinds} |"
        for status in each.errors:
            yield f"| {status} | {ERRORS[status]} |"
        yield ""


def _models() -> Iterator[str]:
    yield "## Models\n"
    for name, schema in schemas().items():
        yield f"### {name}\n"
        yield f"{' '.join(schema.get('description', '').split())}\n"
        if "properties" in schema:
            yield "| field | type | default | meaning |\n|---|---|---|---|"
            for field, each in schema["properties"].items():
                default = "required" if field in schema.get("required", ()) else _default(each)
                meaning = " ".join(each.get("description", "").split()).replace("|", "\\|")
                yield f"| `{field}` | {_kind(each)} | {default} | {meaning} |"
            yield ""
        else:
            yield f"{_kind(schema)}\n"


def _default(schema: Mapping[str, Any]) -> str:
    return f"`{json.dumps(schema['default'])}`" if schema.get("default") is not None else ""


def _kind(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_kind(each) for each in schema[key]))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_kind(schema['additionalProperties'])}"
    return str(schema.get("type", "anything"))
