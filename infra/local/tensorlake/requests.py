"""Bodies of the lifecycle plane, checked (docs/wire/tensorlake.md#51-create, docs/wire/tensorlake.md#59-update)."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from infra.local.tensorlake.errors import bad_request
from infra.local.tensorlake.records import DAEMON_PORT, NetworkPolicy, Resources


def _user_port(port: int) -> int:
    if port == DAEMON_PORT:
        raise ValueError(f"port {DAEMON_PORT} is reserved")
    return port


UserPort = Annotated[int, Field(ge=1, le=65_535), AfterValidator(_user_port)]


class CreateRequest(BaseModel):
    """Unknown keys are ignored, as the service is assumed to do."""

    model_config = ConfigDict(extra="ignore")

    image: str | None = None
    resources: Resources | None = None
    timeout_secs: int | None = Field(default=None, ge=0)
    entrypoint: list[str] = []
    network: NetworkPolicy | None = None
    snapshot_id: str | None = None
    name: str | None = None
    exposed_ports: list[UserPort] = []
    allow_unauthenticated_access: bool = False
    file_systems: list[dict[str, Any]] = []
    wait: bool = True
    max_pending_secs: int | None = Field(default=None, ge=0)
    auto_resume: bool = True


class UpdateRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str | None = None
    exposed_ports: list[UserPort] | None = None
    allow_unauthenticated_access: bool | None = None
    auto_resume: bool | None = None
    network: NetworkPolicy | None = None
    resources: dict[str, Any] | None = None


Model = TypeVar("Model", bound=BaseModel)


async def parsed(model: type[Model], request: Request) -> Model:
    """The JSON body as `model` (no body: an empty object), or a 400 that names the field."""
    raw = await request.body()
    try:
        return model.model_validate_json(raw or b"{}")
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, item['loc'])) or 'body'}: {item['msg']}" for item in error.errors())
        raise bad_request("; ".join(problems)) from None


def milliseconds(request: Request, parameter: str) -> float | None:
    """A query parameter in milliseconds as seconds; None if absent."""
    return _seconds(parameter, request.query_params.get(parameter))


def create_budget(request: Request) -> float | None:
    """How long a blocking create may take: the client's time-out less its grace (docs/wire/tensorlake.md#31-timeouts),
    in seconds."""
    timeout = _seconds("time-out", request.headers.get("x-tensorlake-request-timeout-ms"))
    grace = _seconds("grace", request.headers.get("x-tensorlake-request-timeout-grace-ms"))
    return None if timeout is None else max(timeout - (grace or 0.0), 0.0)


def _seconds(what: str, text: str | None) -> float | None:
    if text is None:
        return None
    if not text.isdigit():
        raise bad_request(f"{what} must be a number of milliseconds")
    return int(text) / 1000
