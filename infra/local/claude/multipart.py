"""Reads a multipart/form-data body, byte-exact: what the SDK sends to upload files."""

from __future__ import annotations

from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser

from infra.local.claude.errors import invalid


@dataclass(frozen=True)
class Part:
    """One field of a form; `filename` None: a plain value. A file's name may be a path."""

    name: str
    filename: str | None
    content: bytes


def parse_form(content_type: str, body: bytes) -> list[Part]:
    """The parts in order. Raises 400 for anything else than a complete form."""
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_param("boundary")
    if header.get_content_type() != "multipart/form-data" or not isinstance(boundary, str) or not boundary:
        raise invalid("the body: expected multipart/form-data")
    delimiter = b"\r\n--" + boundary.encode("latin-1")
    _, *pieces = (b"\r\n" + body).split(delimiter)
    if not pieces or not pieces[-1].startswith(b"--"):
        raise invalid("the body: the form is not complete")
    return [_part(piece) for piece in pieces[:-1]]


def _part(piece: bytes) -> Part:
    head, blank, content = piece.partition(b"\r\n\r\n")
    headers = BytesHeaderParser().parsebytes(head.lstrip() + b"\r\n\r\n")
    name = headers.get_param("name", header="content-disposition")
    if not blank or not isinstance(name, str):
        raise invalid("the body: a part of the form has no name")
    return Part(name, headers.get_filename(), content)
