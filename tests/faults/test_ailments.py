"""Each ailment of the soak's copy (tests/support/ailments.py) is one to the program that has it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.ailments import (
    AilingSurroundings,
    CannotAil,
    Names,
    enough_memory,
    full_disk,
    little_memory,
    wrong_clock,
)

LOOP = """
import sys
for line in sys.stdin:
    try: {}
    except Exception as error: print(type(error).__name__)
    sys.stdout.flush()
"""


@contextmanager
def asking(surroundings: AilingSurroundings, code: str) -> Iterator[subprocess.Popen[str]]:
    """A Python that runs `code` for each line that it gets, and prints a line for it."""
    with subprocess.Popen(
        [*surroundings.prefix, sys.executable, "-I", "-S", "-c", LOOP.format(code)],
        env={"PATH": os.environ["PATH"], **surroundings.environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        yield program


@contextmanager
def possible() -> Iterator[None]:
    try:
        yield
    except CannotAil as error:
        pytest.skip(str(error))


def ask(program: subprocess.Popen[str], text: str = "") -> str:
    assert program.stdin is not None and program.stdout is not None
    program.stdin.write(f"{text}\n")
    program.stdin.flush()
    return program.stdout.readline().strip()


def test_names_fail_in_the_c_library_and_come_back(tmp_path: Path) -> None:
    with possible():
        names = Names(tmp_path)
    with asking(names.surroundings, "import socket; print(socket.gethostbyname('localhost'))") as program:
        assert ask(program) == "127.0.0.1"
        names.fail()
        assert ask(program) == "gaierror"
        names.mend()
        assert ask(program) == "127.0.0.1"


def test_a_full_disk_takes_no_file_and_no_other_program_notices(tmp_path: Path) -> None:
    code = (
        "import os; f = open(os.path.join(os.environ['TMPDIR'], 'new'), 'w'); f.write('x'); f.flush(); print('written')"
    )
    with possible():
        surroundings = full_disk(tmp_path)
    with asking(surroundings, code) as program:
        assert ask(program) == "OSError"
    (tmp_path / "new").write_text("x")


def test_a_wrong_clock_tells_another_day_and_counts_the_same_seconds(tmp_path: Path) -> None:
    code = "import datetime, time; print(time.time(), datetime.datetime.now().timestamp(), time.monotonic())"
    with possible():
        surroundings = wrong_clock(tmp_path, 86_400)
    with asking(surroundings, code) as program:
        shown, dated, counted = map(float, ask(program).split())
    assert shown - time.time() == pytest.approx(86_400, abs=600)
    assert dated == pytest.approx(shown, abs=1)
    assert counted == pytest.approx(time.monotonic(), abs=600)


def test_a_clock_that_jumps_is_ahead_and_behind_in_turn(tmp_path: Path) -> None:
    with possible():
        surroundings = wrong_clock(tmp_path, 86_400, every=1)
    with asking(surroundings, "import time; print(time.time())") as program:
        end = time.monotonic() + 60
        seen: set[int] = set()
        while seen != {-1, 1} and time.monotonic() < end:
            seen.add(round((float(ask(program)) - time.time()) / 86_400))
    assert seen == {-1, 1}


def test_memory_that_is_short_is_refused_until_there_is_enough() -> None:
    with asking(AilingSurroundings(), "len(bytearray(50_000_000)); print('had')") as program:
        assert ask(program) == "had"
        little_memory(program.pid)
        assert ask(program) == "MemoryError"
        enough_memory(program.pid)
        assert ask(program) == "had"
