"""Where a command meets the shell: its settings come in, its exit code and its errors go out.

Exit codes: 0 it was done, 1 it was not, 2 a setting or an argument is wrong, 3 a key is refused for good, 130 ctrl-C.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Coroutine, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import typer

if TYPE_CHECKING:
    from infra.cli.environ import Loaded

EXIT_NOT_DONE: Final = 1
EXIT_NOT_CONFIGURED: Final = 2
EXIT_INTERRUPTED: Final = 130
_LONGEST: Final = 20_000  # characters of an error; what a service said may be in it
EXIT_CODES: Final = "Exit codes: 0 done, 1 not done, 2 a setting or an argument is wrong, 130 ctrl-C."


def load(*, served_elsewhere: bool = False) -> Loaded:
    """The settings, which are this process's environment from now on: the SDKs read it when they are imported.

    `served_elsewhere`: the functions at an address have the services; here no key is needed. Raises SettingsError.
    """
    from infra.cli import environ

    try:
        loaded = environ.load(os.environ)
    except environ.NoServices:
        if not served_elsewhere:
            raise
        loaded = environ.elsewhere(os.environ)
    environ.apply(loaded, os.environ)
    if "OPERATOR_CODE" in os.environ:
        from infra import operator_code

        operator_code.on_the_path(os.environ, sys.path)
    return loaded


def load_files() -> Mapping[str, str]:
    """The settings of a command that asks no service: the environment and the .env files, whatever is missing."""
    from infra.cli import environ

    os.environ.update(environ.with_files(os.environ))
    return os.environ


def finish(work: Coroutine[Any, Any, int]) -> None:
    """Run it; its result is the exit code."""
    raise typer.Exit(asyncio.run(work))


@contextlib.contextmanager
def edge() -> Iterator[None]:
    """Errors that are meant for people become one text and an exit code; a bug keeps its traceback."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except Exception as error:
        from shared.texts import printable

        code = _code(error)
        if code is None:
            raise
        print(printable(str(error), _LONGEST, keep="\n\t"), file=sys.stderr)
        raise typer.Exit(code) from None


def _code(error: Exception) -> int | None:
    """None for a bug of ours."""
    from infra.cli.session.follow import FeedBroken, FeedRefused
    from shared.errors import HandsError

    match error:
        case FeedBroken() | FeedRefused():
            return EXIT_NOT_DONE
        case HandsError():
            return EXIT_NOT_CONFIGURED
        case _:
            return None
