"""What our log looks like: one printable line a record, whoever wrote the texts in it."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from shared.telemetry import JsonFormatter, TextFormatter

ROOT = Path(__file__).resolve().parents[2]
EVIL = "\x1b]0;owned\x07\x1b[31m\r\n09:99:99 ERROR ALARM: call 555-0100\x9b2J\u202e\u2028x\ud800"


def logged(formatter: logging.Formatter, say: str, *, fails_with: str | None = None) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    log = logging.Logger("shared.some")
    log.addHandler(handler)
    if fails_with is None:
        log.warning("sandbox.spoke text=%s", say)
    else:
        try:
            raise ValueError(fails_with)
        except ValueError:
            log.exception("sandbox.spoke text=%s", say)
    return stream.getvalue()


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()], ids=["text", "json"])
def test_a_record_is_one_line_of_printable_characters(formatter: logging.Formatter) -> None:
    said = logged(formatter, EVIL)
    assert said.endswith("\n") and said.count("\n") == 1
    assert said.removesuffix("\n").isprintable()
    assert "09:99:99" in said


def test_no_line_of_a_traceback_can_be_taken_for_a_record() -> None:
    first, *others = logged(TextFormatter(), "hello", fails_with=EVIL).removesuffix("\n").split("\n")
    assert first.endswith("ERROR sandbox.spoke text=hello")
    assert others and all(line.startswith("    | ") and line.isprintable() for line in others)
    assert any("09:99:99" in line for line in others)


def test_a_traceback_is_a_field_of_the_json_record() -> None:
    said = logged(JsonFormatter(), "hello", fails_with=EVIL)
    record = json.loads(said)
    assert said.count("\n") == 1
    assert record["message"] == "sandbox.spoke text=hello" and record["severity"] == "ERROR"
    assert record["exception"].startswith("Traceback") and "ValueError" in record["exception"]
    assert record["exception"].replace("\n", "").isprintable()


def test_a_record_is_bounded() -> None:
    assert len(logged(TextFormatter(), "x" * 1_000_000)) < 40_000
    assert len(logged(JsonFormatter(), "hello", fails_with="x" * 1_000_000)) < 80_000


def test_what_libraries_and_the_server_say_is_made_printable_too() -> None:
    program = (
        "import logging, os\n"
        "theirs = logging.getLogger('uvicorn'); theirs.addHandler(logging.StreamHandler()); theirs.propagate = False\n"
        "from shared.telemetry import configure_logging\n"
        "configure_logging({})\n"
        "for name in ('uvicorn.error', 'asyncio', 'anthropic', 'functions.x'):\n"
        "    logging.getLogger(name).warning('%s', 'before\\n09:99:99 \\x1b[2J')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stderr.removesuffix("\n").split("\n")
    assert len(lines) == 4 and all("before\\n09:99:99 \\x1b[2J" in line and line.isprintable() for line in lines)


def test_the_level_is_the_setting_s_and_a_wrong_one_means_info() -> None:
    program = (
        "import logging\nfrom shared.telemetry import configure_logging\n"
        "levels = []\n"
        "for level in ('warning', 'nonsense'):\n"
        "    configure_logging({'LOG_LEVEL': level}); levels.append(logging.getLogger('shared').level)\n"
        "assert levels == [logging.WARNING, logging.INFO], levels\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, check=True)


@pytest.mark.parametrize("library_level", ["NOTSET", "WARNING", "DEBUG"])
def test_no_address_of_a_request_is_logged_where_the_root_logger_is_open(library_level: str) -> None:
    """Signed addresses are secrets. The last level stands for ANTHROPIC_LOG, which the SDK reads after us."""
    program = (
        "import logging, sys\n"
        "logging.basicConfig(level=logging.DEBUG)\n"
        "from shared.telemetry import configure_logging\n"
        "configure_logging({'LOG_LEVEL': 'DEBUG'})\n"
        "import httpx2\n"
        "if sys.argv[1] != 'NOTSET': logging.getLogger('httpx2').setLevel(sys.argv[1])\n"
        "logging.getLogger('httpcore2.connection').debug('connect_tcp.started %s', 'secret-signature')\n"
        "with httpx2.Client(transport=httpx2.MockTransport(lambda _: httpx2.Response(200))) as http:\n"
        "    http.put('https://store.example/object?X-Amz-Signature=secret-signature')\n"
        "logging.getLogger('httpx2').warning('a warning is heard')\n"
        "logging.getLogger('other').info('the root is open')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, library_level], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert "a warning is heard" in done.stderr and "the root is open" in done.stderr
    assert "secret-signature" not in done.stderr
