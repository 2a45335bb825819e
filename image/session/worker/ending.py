"""How a worker ends: one exception that carries the exit status, raised wherever the end is decided."""

from __future__ import annotations

from image.session.claim import Exit


class Ended(Exception):
    """The run is over. `detail` is shown to the operator, so it holds no secret."""

    def __init__(self, exit_status: Exit, detail: str = "") -> None:
        super().__init__(detail or exit_status.name)
        self.exit_status = exit_status
        self.detail = detail
