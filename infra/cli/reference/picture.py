"""docs/demo.svg: what `make demo` shows, recorded from a terminal of its own: `make docs-picture`.

Not part of `make docs-reference`: each run has other ids, ports and times.
"""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from typing import Final

from infra.cli.environ import CHECKOUT

PICTURE: Final = CHECKOUT / "docs" / "demo.svg"
COLUMNS: Final = 108
_CONTROL: Final = re.compile(r"\x1b\[(?![0-9;]*m)[0-?]*[ -/]*[@-~]|\x1b\].*?(?:\x07|\x1b\\)|\r")

# Rich's own frame asks a server for a font, which a page that is read offline must not.
_FRAME: Final = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def record(argv: list[str], seconds: float = 120.0) -> str:
    """What a program writes to a terminal, colours and all. Raises CalledProcessError where it fails."""
    leader, follower = pty.openpty()
    environ = {**os.environ, "COLUMNS": str(COLUMNS), "LINES": "60", "TERM": "xterm-256color"}
    environ.pop("NO_COLOR", None)
    with subprocess.Popen(argv, cwd=CHECKOUT, stdin=follower, stdout=follower, stderr=follower, env=environ) as program:
        os.close(follower)
        parts: list[bytes] = []
        try:
            while part := os.read(leader, 65_536):
                parts.append(part)
        except OSError:
            pass  # Linux tells so that the other side has closed
        finally:
            os.close(leader)
        code = program.wait(seconds)
    shown = b"".join(parts).decode(errors="replace")
    if code:
        raise subprocess.CalledProcessError(code, argv, shown)
    return shown


def draw(shown: str, title: str) -> str:
    """An SVG that needs no network."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ " + title, style="bold"))
    console.print(Text.from_ansi(_CONTROL.sub("", shown).rstrip()))
    svg = console.export_svg(title=title, code_format=_FRAME, unique_id="demo")
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def main() -> int:
    PICTURE.write_text(
        draw(record([sys.executable, "-m", "infra.cli", "demo", "session"]), "make demo"), encoding="utf-8"
    )
    print(PICTURE.relative_to(CHECKOUT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
