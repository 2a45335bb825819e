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
from tests.support.http_stub import StubHandler, stub_server
from tests.support.signing import KEY, delivery, signed
from tests.support.world import IMAGE, Place

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
    environ["RACE_DEADLINE_SECONDS"] = "540"
    environ |= {"AGENT_FORK": "true", "FUNCTIONS_PUBLIC_URL": "https://hands.example.com"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return importlib.reload(importlib.import_module("infra.azure.function_app"))


def http(method: str, path: str, body: bytes, headers: dict[str, str]) -> func.HttpRequest:
    return func.HttpRequest(method, f"https://hands.example.com{path}", headers=headers, params={}, body=body)


def post(path: str, body: bytes, headers: dict[str, str]) -> func.HttpRequest:
    return http("POST", path, body, headers)


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


def test_a_race_that_nobody_waits_for_is_a_call_of_its_own(
    module: ModuleType, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The app calls its own address, which hears the call in another thread and brings it to the same entry point."""
    functions = {each.get_function_name(): each.get_user_function() for each in module.app.get_functions()}
    entry = functions["http_app_func"]
    operator = {"authorization": f"Bearer {TOKEN}"}
    race = json.dumps({"source": {"image": IMAGE}, "n": 1, "script": "echo through"}).encode()

    async def main() -> Any:
        loop = asyncio.get_running_loop()

        class Front(StubHandler):
            def do_POST(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                called = entry(post(self.path, self.body(), headers), AzureContext())
                answer = asyncio.run_coroutine_threadsafe(called, loop).result(90)
                self.answer(answer.status_code, answer.get_body())

        with stub_server(Front) as url:
            monkeypatch.setenv("RACES_HANDED_TO", f"{url}/fork_best_of_n")
            try:
                asked = post("/fork_best_of_n", race, {**operator, "prefer": "respond-async"})
                answer = await entry(asked, AzureContext())
                told = json.loads(answer.get_body())
                where, state = f"/fork_best_of_n/{told['race_id']}", ""
                while state in ("", "running"):
                    found = json.loads((await entry(http("GET", where, b"", operator), AzureContext())).get_body())
                    state = found["state"]
                    await asyncio.sleep(0.2)
                return state, found["report"]["winner"]
            finally:
                await module.app.middleware.notify_shutdown()
                module.app.startup_task_done = False

    assert asyncio.run(main()) == ("finished", "b0")


def test_the_app_knows_its_own_address_and_no_race_is_longer_than_it_may_run(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEBSITE_HOSTNAME", "your-app.azurewebsites.net")
    for name in ("RACES_HANDED_TO", "RACE_DEADLINE_SECONDS"):
        monkeypatch.setenv(name, "")  # so that it is undone
        monkeypatch.delenv(name)
    importlib.reload(module)
    settings = Settings.from_environ(os.environ)
    assert settings.races.handed_at == "https://your-app.azurewebsites.net/fork_best_of_n"
    host = json.loads((ROOT / "infra" / "azure" / "host.json").read_text(encoding="utf-8"))
    minutes = int(host["functionTimeout"].split(":")[1])
    assert settings.races.deadline < minutes * 60


def test_the_timer_runs_once_a_minute_and_paths_have_no_prefix(module: ModuleType) -> None:
    source = (ROOT / "infra" / "azure" / "function_app.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) < 50
    host = json.loads((ROOT / "infra" / "azure" / "host.json").read_text(encoding="utf-8"))
    assert host["extensions"]["http"]["routePrefix"] == ""
    triggers = [each.get_trigger().get_dict_repr() for each in module.app.get_functions()]
    assert [each["schedule"] for each in triggers if each["type"] == "timerTrigger"] == ["0 * * * * *"]
