"""The words of a race's request: texts, names, paths, files and times, each with its bounds.

Everything is strict, and errors never show the values that they are about.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

LONGEST_ARGUMENT: Final = 100_000  # bytes; Linux takes 131,072 for one argument
LONGEST_SECONDS: Final = 86_400.0
OUR_VARIABLES: Final = ("BRANCH_INDEX", "BRANCH_NAME", "RACE_ID", "RACE_RUN")


class Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
        serialize_by_alias=True,
    )


def _argument(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a NUL character")
    if len(text.encode(errors="surrogatepass")) > LONGEST_ARGUMENT:
        raise ValueError(f"is longer than {LONGEST_ARGUMENT} bytes")
    return text


def _webhook(text: str) -> str:
    if not (text.isascii() and text.isprintable()) or " " in text or len(text) > 2_000:
        raise ValueError("is an address of at most 2,000 printable characters")
    try:
        parts = urlsplit(text)
        known = parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or parts.username is not None or parts.password is not None or "#" in text:
        raise ValueError("is an address such as https://host/path, without user and fragment")
    return text


def _path(text: str) -> str:
    if text.startswith("/") or any(part in ("", ".", "..") for part in text.split("/")):
        raise ValueError("a path is relative to the working directory, without empty, . or .. parts")
    if any(ord(character) < 32 for character in text):
        raise ValueError("a path holds no control characters")
    return text


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("a variable's name has letters, digits and _, and no digit first")
    if name in OUR_VARIABLES:
        raise ValueError("this variable is set by the race")
    return name


def begins_with_a_program(command: Sequence[str]) -> bool:
    return bool(command[0]) and "=" not in command[0]


def _executable(command: tuple[str, ...]) -> tuple[str, ...]:
    if not begins_with_a_program(command):
        raise ValueError("begins with the name of a program, without =")
    return command


Argument = Annotated[str, AfterValidator(_argument)]
Script = Annotated[str, Field(min_length=1), AfterValidator(_argument)]
# Not strict about list or tuple: behind a validator function pydantic no longer knows that a list came from JSON.
Command = Annotated[
    tuple[Argument, ...], Field(min_length=1, max_length=256, strict=False), AfterValidator(_executable)
]
Seconds = Annotated[float, Field(gt=0, le=LONGEST_SECONDS)]
BranchName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Variables = Annotated[
    dict[
        Annotated[str, Field(max_length=128), AfterValidator(_variable)], Annotated[Argument, Field(max_length=8_192)]
    ],
    Field(max_length=64),
]


def _parameter(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name == "i":
        raise ValueError("a parameter's name has letters, digits and _, no digit first, and is not i")
    return name


ParameterValue = Annotated[str, Field(max_length=8_192), AfterValidator(_argument)] | bool | int | float
Parameters = Annotated[
    dict[Annotated[str, Field(max_length=64), AfterValidator(_parameter)], ParameterValue],
    Field(min_length=1, max_length=64),
]


class File(Model):
    """A file's content: `text`, or `base64` for bytes."""

    text: str | None = None
    base64: str | None = Field(default=None, repr=False)
    executable: bool = False

    @model_validator(mode="after")
    def _one_content(self) -> Self:
        if (self.text is None) == (self.base64 is None):
            raise ValueError("needs exactly one of text and base64")
        self.data()
        return self

    def data(self) -> bytes:
        if self.text is not None:
            try:
                return self.text.encode()
            except UnicodeEncodeError:
                raise ValueError("text holds half a character; use base64 for bytes") from None
        try:
            return base64.b64decode(self.base64 or "", validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("is not base64") from None


def _file(value: Any) -> Any:
    return {"text": value} if isinstance(value, str) else value


Files = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_path)],
        Annotated[File, BeforeValidator(_file)],
    ],
    Field(max_length=200),
]


def _glob(text: str) -> str:
    return _path(text.removeprefix("./"))


def _json_path(text: str) -> str:
    if any(not part for part in text.split(".")):
        raise ValueError("a JSON path is keys and indices with dots between, such as metrics.0.loss")
    return text


Path = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_path)]
Glob = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_glob)]
JsonPath = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_json_path)]
WebhookUrl = Annotated[str, AfterValidator(_webhook)]
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,199}$")]
ImageName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:-]{0,199}$")]
PluginName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
KeptName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?$")]
