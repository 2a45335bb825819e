"""A page from its template. Every value is escaped there, and made printable before: a title, a command or a sandbox's
name may be anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from infra.cli.fleet.survey import in_words
from shared.texts import printable


class Readable(str):
    """A text that was made printable already, and may be longer than others."""

    __slots__ = ()


def _printable(value: object) -> object:
    return printable(value, keep="\n") if type(value) is str else value


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["words"] = lambda seconds: "" if seconds is None else in_words(seconds)
    return made


_TEMPLATES: Final = _environment()


def drawn(request: Request, template: str, status: int, **facts: Any) -> HTMLResponse:
    shown = {"live": False, "back": "", "base": base(request), **facts}
    return HTMLResponse(_TEMPLATES.get_template(template).render(shown), status)


def base(request: Request) -> str:
    """From this page to the first one. Relative: whatever is before the pages' path, here or at a gateway, does not
    matter."""
    return "../" * (path_of(request).count("/") - 1) or "./"


def path_of(request: Request) -> str:
    """Below the pages' own path."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))
