"""A regular expression from a request against a candidate's output, with an end in sight.

Python's `re` cannot be interrupted, and pattern and text together may keep it busy indefinitely. So it runs in a
process of its own that is killed: here and not in the branch's sandbox, because no image has to bring a Python for it
and no candidate can replace it. The process has an empty environment (no secret of this one), a processor and a memory
limit, and the lowest priority.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from typing import Final

from shared.tasks import shielded

LONGEST: Final = 10.0  # seconds, the start of the process on a busy machine included
_PROCESSOR_SECONDS: Final = 2
_MEMORY: Final = 1 << 30
_NO_PATTERN, _NO_GROUP = 3, 4  # exit codes

_PROGRAM: Final = f"""
import json, os, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, ({_PROCESSOR_SECONDS}, {_PROCESSOR_SECONDS}))
    resource.setrlimit(resource.RLIMIT_AS, ({_MEMORY}, {_MEMORY}))
    os.nice(19)
except (ImportError, OSError, ValueError):
    pass
asked = json.load(sys.stdin)
group = asked["group"]
try:
    pattern = re.compile(asked["pattern"], re.MULTILINE)
except (re.error, OverflowError, RecursionError, ValueError):
    sys.exit({_NO_PATTERN})
if not (group in pattern.groupindex if isinstance(group, str) else (group or 0) <= pattern.groups):
    sys.exit({_NO_GROUP})
last = None
for last in pattern.finditer(asked["text"]):
    pass
if group is None and pattern.groups:
    group = 1
found = {{"matched": last is not None}}
if last is not None and group is not None:
    found["text"] = (last.group(group) or "")[:200]
json.dump(found, sys.stdout)
"""


@dataclass(frozen=True, slots=True)
class Found:
    """Whether the pattern matched, and the text of the last match's group where there is one (200 characters)."""

    matched: bool
    text: str | None = None


class BadPattern(Exception):
    """It is no pattern, or has no such group. The text is fit for an error about the request."""


class NotSearched(Exception):
    """It took too long, or could not be done. The text is fit for a report."""


async def search(pattern: str, text: str, group: int | str | None) -> Found:
    """The last match. Raises BadPattern and NotSearched.

    The pattern is compiled in that process, too: a thousand characters can take `re` seconds.
    """
    asked = json.dumps({"pattern": pattern, "text": text, "group": group}).encode()
    # What a Python that is not in its usual place needs to start at all.
    needed = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            "-c",
            _PROGRAM,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=needed,
        )
    except OSError as error:
        raise NotSearched(f"the pattern could not be tried ({type(error).__name__})") from None
    try:
        async with asyncio.timeout(LONGEST):
            answer, _ = await process.communicate(asked)
    except TimeoutError:
        raise NotSearched("the pattern took too long") from None
    finally:
        if process.returncode is None:
            process.kill()
            await shielded(process.wait())
    if process.returncode == _NO_PATTERN:
        raise BadPattern("is not a regular expression of Python's re")
    if process.returncode == _NO_GROUP:
        raise BadPattern("the pattern has no such group")
    if process.returncode != 0:
        raise NotSearched("the pattern took too long, or too much memory")
    found = json.loads(answer)
    return Found(found["matched"], found.get("text"))
