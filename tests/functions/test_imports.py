"""What a handler's path may import (docs/wire/runtimes.md#0-findings): an SDK at module level crashes or hangs servers
that fork."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("anthropic", "tensorlake", "grpc", "boto3", "botocore", "fsspec", "aiohttp")


@functools.cache
def modules_after(statement: str) -> set[str]:
    """Names of the top-level packages in a fresh interpreter after this statement."""
    code = f"import sys\n{statement}\nprint(' '.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["main", "asgi", "aws_lambda", "on_run_started", "poll_tick", "fork_best_of_n"])
def test_no_sdk_is_imported_by_importing_a_handler(module: str) -> None:
    assert not modules_after(f"import functions.{module}") & set(HEAVY)


@pytest.mark.parametrize("module", ["asgi", "aws_lambda", "on_run_started", "poll_tick", "fork_best_of_n"])
def test_only_main_imports_functions_framework(module: str) -> None:
    assert "functions_framework" not in modules_after(f"import functions.{module}")


def test_the_webhook_needs_no_pydantic() -> None:
    assert "pydantic" not in modules_after("import functions.on_run_started, functions.poll_tick, functions.aws_lambda")


def test_building_a_service_imports_no_sdk() -> None:
    environ = {
        "ANTHROPIC_ENVIRONMENT_ID": "env_1",
        "ANTHROPIC_ENVIRONMENT_KEY": "no-key",
        "TENSORLAKE_API_KEY": "no-key",
    }
    statement = (
        "from functions.state import FunctionsState\nfrom shared.service import Service\n"
        "from shared.settings import Settings\n"
        f"FunctionsState(Service(Settings.from_environ({environ!r})), background=False)"
    )
    assert not modules_after(statement) & set(HEAVY)


def test_no_thread_is_started_by_importing_main() -> None:
    code = "import threading, functions.main\nprint(threading.active_count())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "1"


def test_the_worker_is_importable_without_anything_of_ours_but_its_own_package() -> None:
    loaded = modules_after("import image.session.claim")
    assert not loaded & {"functions", "shared", "infra", *HEAVY}


def test_the_standard_librarys_json_is_imported_where_the_page_says_why() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    excused = set(
        re.findall(r"`((?:functions|shared)/[\w/]+\.py)`", page.split("standard library's `json`")[1].split("\n## ")[0])
    )
    importing = {
        str(path.relative_to(ROOT))
        for folder in ("functions", "shared")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"^\s*(?:import json|from json import)\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert importing == excused
