"""A request's body as a model, and what was wrong with it as an answer.

Apart from http.py because pydantic takes a tenth of a second to import and a webhook has no need of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from functions.requests import HttpError

_MODEL = TypeVar("_MODEL", bound=BaseModel)
_LONGEST_MESSAGE: Final = 300
_LONGEST_FIELD: Final = 200


def read_model(model: type[_MODEL], body: bytes) -> _MODEL:
    """The body as this model. Raises HttpError 400 that names the first field that is wrong."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> HttpError:
    # Neither the inputs nor the contexts: the text of a value stays out of answers and logs.
    details = error.errors(include_url=False, include_context=True, include_input=False)
    first = details[0]
    if first["type"] == "json_invalid":
        return HttpError(400, "invalid_request", "the body is not JSON")
    field = dotted(first["loc"])
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    text = _text(first["type"], first["msg"], first.get("ctx", {}))
    message = f"{field}: {text}{more}" if field else f"{text}{more}"
    return HttpError(400, "invalid_request", message, field=field or None)


def _text(kind: str, message: str, context: dict[str, Any]) -> str:
    if kind == "union_tag_invalid":  # the one message of pydantic's that quotes what was sent
        message = f"{context['discriminator'].strip(chr(39))} must be one of {context['expected_tags']}"
    return message.removeprefix("Value error, ")[:_LONGEST_MESSAGE]


def dotted(location: Sequence[int | str]) -> str:
    """A pydantic location as a person would write it: `branches.0.name`."""
    return ".".join(str(part) for part in location if part != "[key]")[:_LONGEST_FIELD]
