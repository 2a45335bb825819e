"""The last look at every text that leaves doctor: no secret in it, whatever a check or a service put there.

Checks name variables and never values. This stands behind them, for the words of a service that quotes what it was
sent, and for a key that was pasted into a variable which is none (tests/infra/cli/doctor/test_secrecy.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import quote

HIDDEN: Final = "[hidden]"
_SECRET_NAMES: Final = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS?|_PAT|CUSTOM_HEADERS)$")
_SHAPES: Final = re.compile(r"(?:sk-ant-|whsec_|tl[_-](?=[A-Za-z0-9_-]*\d)|Bearer )[A-Za-z0-9+/=_.-]{6,}")
_SHORTEST: Final = 6  # characters; what is shorter is no secret and may stand in any text
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


class ReportRedactor:
    """Knows the values of this run; `clean` takes them out of a text, along with control characters."""

    def __init__(self, values: Iterable[str]) -> None:
        parts = {part for value in values for part in (value.strip(), *value.replace(",", " ").split())}
        known = {form for part in parts if len(part) >= _SHORTEST for form in (part, quote(part, safe=""))}
        self._known = sorted(known, key=len, reverse=True)

    @classmethod
    def of(cls, environ: Mapping[str, str], more: Iterable[str] = ()) -> ReportRedactor:
        """`more`: secrets that were read from where a setting says they live."""
        named = [value for name, value in environ.items() if _SECRET_NAMES.search(name)]
        return cls([*named, *more])

    def clean(self, text: str) -> str:
        for value in self._known:
            text = text.replace(value, HIDDEN)
        return _CONTROLS.sub(" ", _SHAPES.sub(HIDDEN, text))
