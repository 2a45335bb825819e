"""Tools of an operator, well and badly behaved."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from anthropic import beta_async_tool, beta_tool
from anthropic.lib.tools import ToolError
from anthropic.types.beta.beta_tool_result_block_param import Content as BetaContent


@beta_tool
def add(a: int, b: int) -> str:
    """Adds two numbers.

    Args:
        a: the first one
        b: the second one
    """
    print("adding")
    return str(a + b)


@beta_async_tool
async def where() -> str:
    """Says who runs it, and where."""
    await asyncio.sleep(0)
    return f"{os.getuid()} {Path.cwd()} {os.environ.get('DB_PASSWORD', '')} {os.getppid()}"


@beta_tool
def picture() -> list[BetaContent]:
    """Two blocks."""
    return [
        {"type": "text", "text": "look"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
    ]


@beta_tool
def break_it(how: str) -> str:
    """Misbehaves.

    Args:
        how: in which way
    """
    match how:
        case "raise":
            raise LookupError(f"no such order; password {os.environ.get('DB_PASSWORD', 'none')}")
        case "tool-error":
            raise ToolError("told so")
        case "leave":
            sys.exit("gone")
        case "die":
            print("last words", flush=True)
            os._exit(3)
        case "print":
            while True:
                print("x" * 10_000, flush=True)
        case "later":
            threading.Timer(0.2, print, ["printed later"]).start()
        case "long":
            return "y" * 200_000
        case _:
            child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
            Path(how).write_text(str(child.pid))
            time.sleep(1000)
    return ""
