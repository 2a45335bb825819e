"""Logging for whoever serves: one line a record, as JSON where a platform collects it.

Nothing here runs at import. Log calls elsewhere use short constant event names with fields and hold no secret. This is
the one place where records become lines, so it is where foreign text in them is made printable: a sandbox, a service
or a caller can neither forge a line nor reach the terminal of whoever reads it. tests/shared/test_telemetry.py
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Final

from shared.texts import printable

LONGEST_MESSAGE: Final = 32_768
"""Characters of one record; platforms cut or split longer ones (systemd's journal at 48 KiB)."""
_LONGEST_TRACE: Final = 32_768
_OWN: Final = ("functions", "shared")
# They log whole addresses at INFO and DEBUG, and a signed address is a secret (on_finish, OUTPUTS_TO).
_TELL_ADDRESSES: Final = ("httpx2", "httpcore2", "httpx", "httpcore")
_SERVERS: Final = ("uvicorn", "uvicorn.error", "uvicorn.access", "gunicorn.error")


class TextFormatter(logging.Formatter):
    """`HH:MM:SS LEVEL message`; each line of a traceback begins with four blanks and a bar, as no record does."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        head = f"{self.formatTime(record, self.datefmt)} {record.levelname} {_message(record)}"
        return "\n    | ".join((head, *_trace(self, record).splitlines()))


class JsonFormatter(logging.Formatter):
    """Fields that Cloud Logging and CloudWatch read: severity, message, time, logger; and exception where one is."""

    def format(self, record: logging.LogRecord) -> str:
        import orjson

        line = {
            "severity": record.levelname,
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "logger": record.name,
            "message": _message(record),
        }
        trace = _trace(self, record)
        if trace:
            line["exception"] = trace
        return orjson.dumps(line).decode()


def configure_logging(environ: Mapping[str, str]) -> None:
    """LOG_LEVEL (default INFO) and LOG_FORMAT (`text` or `json`), for our own loggers.

    The SDKs' loggers keep their levels: what they would say at INFO is one line a request. Their warnings, and what
    the server's own loggers say, may quote foreign text too, so these go through the same formatter. The HTTP
    libraries say warnings alone, whatever the root's level is.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if environ.get("LOG_FORMAT") == "json" else TextFormatter())
    level = environ.get("LOG_LEVEL", "INFO").upper()
    for name in _OWN:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level if level in logging.getLevelNamesMapping() else "INFO")
    for name in _TELL_ADDRESSES:
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).addFilter(_is_warning)  # ANTHROPIC_LOG=info lowers the level of the first one later
    for name in _SERVERS:
        for theirs in logging.getLogger(name).handlers:
            theirs.setFormatter(handler.formatter)
    root = logging.getLogger()
    if not root.handlers:  # else the standard library writes warnings to stderr as they are
        root.addHandler(handler)


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _message(record: logging.LogRecord) -> str:
    return printable(record.getMessage(), LONGEST_MESSAGE)


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """The traceback, and the stack where one was asked for, with the line breaks that Python made: its exceptions'
    texts may hold others, which look the same, so whoever prints this marks each of its lines."""
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return printable("\n".join(parts)[-_LONGEST_TRACE:], _LONGEST_TRACE, keep="\n")  # the cause is told last
