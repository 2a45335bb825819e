"""The Azure entry point in process, as the worker calls it: nobody has run it on Azure."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
from types import ModuleType
from typing import Any

import azure.functions as func
import pytest

from shared.settings import Settings
from tests.support.capabilities import issued
from tests.support.checkout import ROOT
from tests.support.signing import KEY, delivery, signed
from tests.support.world import Place

TOKEN = "a-token-of-nobody-in-particular-at-all"


class AzureContext:
    function_directory = ""
    function_name = "http_app_func"
    invocation_id = "1"
    thread_local_storage = None
    trace_context = None
    retry_context = None


@pytest.fixture
def module(place: Place, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    environ = {**place.environ, "FUNCTIONS_TOKEN": TOKEN, "ANTHROPIC_WEBHOOK_SIGNING_KEY": KEY, "DRAIN_MODE": "inline"}
    environ |= {"AGENT_FORK": "true", "FUNCTIONS_PUBLIC_URL": "https://hands.example.com"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return importlib.reload(importlib.import_module("infra.azure.function_app"))


def post(path: str, body: bytes, headers: dict[str, str]) -> func.HttpRequest:
    return func.HttpRequest("POST", f"https://hands.example.com{path}", headers=headers, params={}, body=body)


def test_http_and_timer_are_there_and_serve_a_session(module: ModuleType, place: Place) -> None:
    functions = {each.get_function_name(): each.get_user_function() for each in module.app.get_functions()}
    assert set(functions) == {"http_app_func", "scheduled_tick"}

    class Timer:
        past_due = True

    async def main() -> list[int]:
        async def answer(path: str, body: bytes, headers: dict[str, str]) -> Any:
            return await functions["http_app_func"](post(path, body, headers), AzureContext())

        async def call(path: str, body: bytes, headers: dict[str, str]) -> int:
            return int((await answer(path, body, headers)).status_code)

        try:
            body = delivery()
            answers = [
                await call("/on_run_started", body, signed(body)),
                await call("/on_run_started", body, {}),
                await call("/poll_tick", b"{}", {}),
                await call("/nothing", b"", {}),
            ]
            agent = {"authorization": f"Bearer {await issued(Settings.from_environ(os.environ))}"}
            known = await answer("/fork_best_of_n", b"{}", agent)
            assert b"session_over" in known.get_body(), "the token counts, and its work item is looked for"
            answers.append(await call("/fork_best_of_n", b"{}", {"authorization": "Bearer of-nobody"}))
            session = place.session("$ echo served by a timer")
            await functions["scheduled_tick"](Timer())
            await asyncio.to_thread(place.wait_done, session)
            return answers
        finally:
            await module.app.middleware.notify_shutdown()
            module.app.startup_task_done = False  # else its finalizer shuts down once more, in another loop

    assert asyncio.run(main()) == [200, 401, 401, 404, 401]


def test_the_timer_runs_once_a_minute_and_paths_have_no_prefix(module: ModuleType) -> None:
    source = (ROOT / "infra" / "azure" / "function_app.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) < 50
    host = json.loads((ROOT / "infra" / "azure" / "host.json").read_text(encoding="utf-8"))
    assert host["extensions"]["http"]["routePrefix"] == ""
    triggers = [each.get_trigger().get_dict_repr() for each in module.app.get_functions()]
    assert [each["schedule"] for each in triggers if each["type"] == "timerTrigger"] == ["0 * * * * *"]
