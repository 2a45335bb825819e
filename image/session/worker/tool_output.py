"""What the operator's tools print, as lines that may be shown: bounded, and without the secrets that they were given.
Standard library only."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from image.session.worker.output import Redactor

MOST_KEPT: Final = 1 << 20
"""Bytes of the log that one worker keeps of the tools of a kind, within what `hands logs` reads of a worker."""
LONGEST_LINE: Final = 2_000  # characters; the rest of a longer one is left out
_RECORD: Final = 128  # bytes of a record of the log beside its line
_SHORTEST_SECRET: Final = 4  # characters; a shorter one would mask half of each text
_SHORTEST_PART: Final = 8


def cost(line: str) -> int:
    """Bytes that the line takes of the log, at most."""
    return len(line.encode("utf-8", "replace")) + _RECORD


def redactor_of(secrets: Collection[str]) -> Redactor:
    return Redactor([text for text in secrets if len(text) >= _SHORTEST_SECRET])


def _by_line(secrets: Collection[str]) -> list[str]:
    """With each line of one that has several: it is printed line by line."""
    return [*secrets, *(line for text in secrets for line in text.splitlines() if len(line) >= _SHORTEST_PART)]


class MaskedLines:
    """Puts lines together from whatever pieces they come in."""

    def __init__(self, secrets: Collection[str]) -> None:
        self._redactor = redactor_of(_by_line(secrets))
        self._longest_secret = max((len(secret.encode("utf-8", "replace")) for secret in secrets), default=0)
        self._pending = b""
        self._skips = False  # the rest of a line that is too long

    def take(self, data: bytes) -> Iterator[str]:
        """The lines that are whole now."""
        *whole, rest = data.split(b"\n")
        for piece in whole:
            yield from self._line(piece, ended=True)
        yield from self._line(rest, ended=False)

    def rest(self) -> Iterator[str]:
        """What came after the last line: nothing follows."""
        return self._line(b"", ended=True)

    def _line(self, piece: bytes, *, ended: bool) -> Iterator[str]:
        if not self._skips:
            self._pending += piece
            most = 4 * LONGEST_LINE + 2 * self._longest_secret  # bytes of the characters that are shown, and more
            if ended or len(self._pending) > most:
                cut = len(self._pending) > most
                text = self._redactor.apply(self._pending[:most].decode("utf-8", "replace"))
                if cut and self._longest_secret:
                    text = text[: -self._longest_secret]  # it may end in half a secret, which no mask knows
                shown = text if len(text) <= LONGEST_LINE and not cut else f"{text[: LONGEST_LINE - 4]} ..."
                self._pending, self._skips = b"", cut
                if shown.strip():
                    yield shown.rstrip("\r")
        if ended:
            self._skips = False
