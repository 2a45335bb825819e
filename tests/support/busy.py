"""The tests beside busy loops: none of them may depend on how fast the machine is.

    python -m tests.support.busy [ARGUMENTS OF PYTEST]

Exit status: pytest's.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Final

LOOPS: Final = 4
# Ends with its parent, however that ends: a loop that is left would slow the machine down unseen.
_LOOP: Final = """
import os, sys
parent = int(sys.argv[1])
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@contextlib.contextmanager
def busy(loops: int = LOOPS) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many processes that do nothing but compute, for as long as the block lasts."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(loops):
            running.append(subprocess.Popen([sys.executable, "-I", "-c", _LOOP, str(os.getpid())]))
        yield running
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


def main(arguments: Sequence[str]) -> int:
    with busy():
        return subprocess.run([sys.executable, "-m", "pytest", *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
