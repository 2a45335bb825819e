"""Reads a multipart/form-data body, byte-exact: what the SDK sends to upload files."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from infra.local.claude.errors import invalid


@dataclass(frozen=True)
class Part:
    """One field of a form; `filename` None: a plain value. A file's name may be a path."""

    name: str
    filename: str | None
    content: bytes
    content_type: str | None = None


@dataclass
class _FormReading:
    """What the parser has called back with so far."""

    parts: list[Part] = field(default_factory=list)
    headers: dict[str, bytes] = field(default_factory=dict)
    name: bytes = b""
    value: bytes = b""
    content: bytearray = field(default_factory=bytearray)
    complete: bool = False

    def begin(self) -> None:
        self.headers, self.content = {}, bytearray()

    def end_header(self) -> None:
        self.headers[self.name.decode("latin-1").lower()] = self.value
        self.name = self.value = b""

    def end(self) -> None:
        _, options = parse_options_header(self.headers.get("content-disposition", b""))
        if b"name" not in options:
            raise invalid("the body: a part of the form has no name")
        filename, kind = options.get(b"filename"), self.headers.get("content-type")
        self.parts.append(
            Part(
                options[b"name"].decode(errors="replace"),
                None if filename is None else filename.decode(errors="replace"),
                bytes(self.content),
                None if kind is None else kind.decode("latin-1"),
            )
        )


def parse_form(content_type: str, body: bytes) -> list[Part]:
    """The parts in order. Raises 400 for anything else than a complete form."""
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise invalid("the body: expected multipart/form-data")
    reading = _FormReading()

    def name(data: bytes, start: int, end: int) -> None:
        reading.name += data[start:end]

    def value(data: bytes, start: int, end: int) -> None:
        reading.value += data[start:end]

    def content(data: bytes, start: int, end: int) -> None:
        reading.content += data[start:end]

    def over() -> None:
        reading.complete = True

    parser = MultipartParser(
        options[b"boundary"],
        {
            "on_part_begin": reading.begin,
            "on_header_field": name,
            "on_header_value": value,
            "on_header_end": reading.end_header,
            "on_part_data": content,
            "on_part_end": reading.end,
            "on_end": over,
        },
    )
    try:
        parser.write(body)
    except FormParserError as error:
        raise invalid(f"the body: {error}") from None
    if not reading.complete:
        raise invalid("the body: the form is not complete")
    return reading.parts
