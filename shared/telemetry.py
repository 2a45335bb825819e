"""Logging for whoever serves: one line a record, as JSON where a platform collects it.

Nothing here runs at import. Log calls elsewhere use short constant event names with fields and hold no secret.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping


class JsonFormatter(logging.Formatter):
    """Fields that Cloud Logging and CloudWatch read: severity, message, time, logger."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "severity": record.levelname,
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logging(environ: Mapping[str, str]) -> None:
    """LOG_LEVEL (default INFO) and LOG_FORMAT (`text` or `json`), for our own loggers only.

    The SDKs' loggers stay as they are: what they would say at INFO is one line a request.
    """
    handler = logging.StreamHandler(sys.stderr)
    if environ.get("LOG_FORMAT") == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    level = environ.get("LOG_LEVEL", "INFO").upper()
    for name in ("functions", "shared"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level if level in logging.getLevelNamesMapping() else "INFO")
