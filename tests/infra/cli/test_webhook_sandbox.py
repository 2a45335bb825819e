"""The server in a sandbox, start to end on the offline platform: real processes, real sockets, the real SDKs."""

from __future__ import annotations

import concurrent.futures
import threading
from types import SimpleNamespace

import httpx2
import pytest
from tensorlake.sandbox import Sandbox

from infra.cli import webhook_sandbox
from infra.sandbox import plan, server
from infra.sandbox.account import Account
from infra.sandbox.look import described
from shared import names
from tests.infra.cli.conftest import SandboxStage
from tests.support.waiting import until

PROMPT = "create hello.txt with 'hi' then read it back"
QUIET = {"SELF_TICK_SECONDS": "0"}


def test_webhooks_that_meet_it_falling_asleep_and_waking_are_answered_and_their_sessions_served(
    stage: SandboxStage,
) -> None:
    seen = stage.up(STANDSTILL_SECONDS="1", **QUIET)  # no tick of its own: what is served was announced by a webhook
    before = stage.process()["pid"]
    assert seen.report is not None
    stage.platform.tensorlake.patch("settings", {"suspend_seconds": 1.0, "resume_seconds": 1.2})
    expiry = threading.Thread(target=stage.platform.tensorlake.post, args=(f"sandboxes/{stage.box()['id']}/expire", {}))
    expiry.start()
    until(lambda: stage.box()["status"] == "suspending", "it does not begin to fall asleep")
    sessions = [stage.run_session(PROMPT)]
    expiry.join()
    assert stage.box()["status"] == "suspended"  # and on its way up already: a webhook waits for it
    sessions.append(stage.run_session(PROMPT))
    until(lambda: stage.box()["status"] == "running", "no webhook wakes it")
    until(lambda: [stage.answers(session) for session in sessions] == [1, 1], "a session was not served")
    until(stage.delivered, "a webhook was not answered")
    # It stood still for longer than STANDSTILL_SECONDS, which it cannot feel, and noticed.
    noticed = stage.look().report
    assert noticed is not None and noticed["stood_still"] >= seen.report["stood_still"] + 1
    stage.platform.tensorlake.patch("settings", {"suspend_seconds": 0.0})
    stage.put_to_sleep()
    process = stage.process()  # its state was intact
    assert (process["pid"], process["managed"]["restart_count"]) == (before, 0)


def test_its_own_ticks_serve_what_no_webhook_announced(stage: SandboxStage) -> None:
    stage.up(SELF_TICK_SECONDS="0.3")
    for endpoint in stage.platform.claude.get("webhooks")["data"]:
        stage.platform.claude.delete(f"webhooks/{endpoint['id']}")
    session = stage.run_session(PROMPT)
    until(lambda: stage.answers(session) == 1, "no tick found the session")


def test_without_requests_it_falls_asleep_by_itself_whatever_it_does_itself(stage: SandboxStage) -> None:
    assert webhook_sandbox.remove(stage.loaded()) == 0
    stage.up(WEBHOOK_SANDBOX_TIMEOUT_SECONDS="1", SELF_TICK_SECONDS="0.1")
    until(lambda: stage.box()["status"] == "suspended", "its own ticks keep it awake")
    assert webhook_sandbox.remove(stage.loaded()) == 0  # nobody else's test wants one that is so sleepy


def test_a_second_run_attaches_and_only_a_change_restarts(
    stage: SandboxStage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = stage.up(**QUIET)
    pid = stage.process()["pid"]
    again = stage.up(**QUIET)
    assert (again.name, again.url, again.current) == (first.name, first.url, True)
    assert stage.process()["pid"] == pid
    # Its port is in the URL that the Console has: another one for the next sandbox moves nothing of this one.
    capsys.readouterr()
    moved = stage.up(WEBHOOK_SANDBOX_PORT="1", **QUIET)
    told = capsys.readouterr()
    assert "up to date" in told.out and "its port is" in told.err
    assert moved.url == first.url and stage.process()["pid"] == pid
    assert httpx2.post(first.url, content=b"{}", trust_env=False).status_code == 401
    # A setting: the same code, another process.
    other = stage.up(LOG_LEVEL="WARNING", **QUIET)
    assert (other.name, other.url, other.current) == (first.name, first.url, True)
    assert stage.look(stage.loaded(**QUIET)).current is False
    # New code, brought into the running sandbox.
    files = {**plan.plan_from(stage.loaded().environ).files, "functions/just_added.py": b"MARK = 1\n"}
    monkeypatch.setattr(plan, "source_files", lambda: files)
    newer = stage.up(LOG_LEVEL="WARNING", **QUIET)
    assert newer.name == first.name and newer.current is True
    process = stage.process()
    folder = process["args"][process["args"].index("--app-dir") + 1]
    assert folder == f"/var/lib/hands/{plan.plan_from(stage.loaded().environ).folder}"
    # Code that cannot start is not put in place of the code that runs.
    monkeypatch.setattr(plan, "source_files", lambda: {**files, "functions/asgi.py": b"import nothing_like_it\n"})
    assert webhook_sandbox.up(stage.loaded(LOG_LEVEL="WARNING", **QUIET)) == 1
    assert stage.process()["pid"] == process["pid"]


def test_the_url_comes_before_the_signing_key(stage: SandboxStage, capsys: pytest.CaptureFixture[str]) -> None:
    first = stage.up(ANTHROPIC_WEBHOOK_SIGNING_KEY="", **QUIET)
    assert "run make webhook-sandbox again" in capsys.readouterr().out
    assert httpx2.post(first.url, content=b"{}", trust_env=False).status_code == 503
    assert any("no signing key yet" in line for line in described(first))
    second = stage.up(**QUIET)
    assert (second.url, second.current) == (first.url, True)
    assert httpx2.post(second.url, content=b"{}", trust_env=False).status_code == 401


def test_a_server_that_dies_comes_back(stage: SandboxStage) -> None:
    seen = stage.up(**QUIET)
    process = stage.process()
    headers = {"host": f"{seen.sandbox_id}.local", "authorization": f"Bearer {stage.platform.keys.sandboxes}"}
    url = f"{stage.platform.tensorlake.url}/api/v1/processes/{process['pid']}/signal"
    assert httpx2.post(url, json={"signal": 9}, headers=headers, trust_env=False).status_code == 200
    until(lambda: stage.look().restarts == 1, "it was not restarted")
    until(lambda: stage.look().report is not None, "it does not answer again")


def test_who_follows_the_log_reads_on_when_another_server_takes_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stage: SandboxStage
) -> None:
    class Ended(Exception):
        """The person has read enough."""

    stage.up(**QUIET)
    wrote: list[tuple[str, int, list[str]] | None] = [
        ("server-a", 7, ["one", "two"]),
        ("server-a", 7, ["one", "two", "three"]),
        ("server-a", 8, ["four", "five", "six", "seven"]),  # restarted
        None,
        None,
        ("server-b", 9, ["eight", "nine", "ten", "eleven\x1b[2J\rtwelve"]),  # other settings
    ]
    turn = iter(wrote)
    now: list[str] = []

    def live(_: object) -> list[SimpleNamespace]:
        match next(turn, ()):
            case None:
                return []
            case (name, pid, lines):
                now[:] = lines
                return [SimpleNamespace(pid=pid, managed=SimpleNamespace(name=name))]
        raise Ended

    def output(_: Sandbox, name: str) -> SimpleNamespace:
        assert name.startswith("server-")
        return SimpleNamespace(value=SimpleNamespace(lines=list(now)))

    monkeypatch.setattr(webhook_sandbox, "live_servers", live)
    monkeypatch.setattr(Sandbox, "get_output", output)
    monkeypatch.setattr(webhook_sandbox, "FOLLOW_SECONDS", 0.0)
    capsys.readouterr()
    with pytest.raises(Ended):
        webhook_sandbox.logs(stage.loaded(), True, False)
    wanted = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven\\x1b[2J\\rtwelve"]
    assert capsys.readouterr().out.split() == wanted
    monkeypatch.setattr(webhook_sandbox, "live_servers", lambda _: [])
    assert webhook_sandbox.logs(stage.loaded(), True, False) == webhook_sandbox.logs(stage.loaded(), False, False) == 1
    assert "No server runs in it" in capsys.readouterr().err


def test_a_server_that_cannot_run_is_said_with_its_last_words_and_mended(
    stage: SandboxStage, capsys: pytest.CaptureFixture[str]
) -> None:
    good = stage.up(**QUIET)
    port = stage.box()["exposed_ports"][0]
    holder = f"import socket,time; s=socket.create_server(('127.0.0.1', {port})); time.sleep(600)"
    handle = Account.from_environ(stage.loaded().environ).connect(good.sandbox_id)
    handle.kill_process(stage.process()["managed"]["name"])
    handle.start_process("/opt/hands/venv/bin/python", ["-c", holder], name="holder", restart={"policy": "never"})
    assert webhook_sandbox.up(stage.loaded(**QUIET)) == 1
    assert "last words" in capsys.readouterr().err
    handle.kill_process("holder")
    mended = stage.up(**QUIET)  # a server of this very name ran here before
    assert mended.current is True and mended.report is not None


def test_two_who_bring_it_up_at_once_make_one_server(stage: SandboxStage) -> None:
    assert webhook_sandbox.remove(stage.loaded()) == 0
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: webhook_sandbox.up(stage.loaded(**QUIET)), range(2))) == [0, 0]
    assert stage.process()["managed"]["restart_count"] == 0
    assert len(stage.platform.claude.get("webhooks")["data"]) == 1


def test_a_second_server_sandbox_is_shown_and_ended_when_it_is_old_enough_to_be_nobodys(
    stage: SandboxStage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = stage.up(**QUIET)
    account = Account.from_environ(stage.loaded().environ)
    name = names.new_server_name("hands")
    Sandbox.create(name=name, image="hands-server", api_url=account.api_url, api_key=account.api_key.reveal())
    seen = stage.up(**QUIET)
    assert (seen.name, seen.url, seen.others) == (first.name, first.url, (name,))
    assert name in capsys.readouterr().err and any(name in line for line in described(seen))
    monkeypatch.setattr(server, "OTHERS_SECONDS", -60.0)
    assert stage.up(**QUIET).others == ()
    assert stage.box()["name"] == first.name


def test_strangers_find_one_door_and_are_counted(stage: SandboxStage) -> None:
    seen = stage.up(**QUIET)
    assert seen.report is not None and seen.outside_ticks is not None
    before = seen.report["visits"]["strangers"]["count"]
    with httpx2.Client(base_url=seen.url, trust_env=False) as stranger:
        answers = [stranger.get(path).status_code for path in ("healthz", "readyz", "status", ".env", "poll_tick")]
        assert answers == [401, 401, 401, 404, 405]
        assert stranger.post("poll_tick").status_code == stranger.post("fork_best_of_n", json={}).status_code == 401
    after = stage.look()
    assert after.report is not None and after.report["visits"]["strangers"]["count"] == before + 7
    assert any(line.startswith(f"strangers {before + 7}") for line in described(after))
    token = {"authorization": f"Bearer {stage.platform.keys.functions}"}
    assert httpx2.post(f"{seen.url}poll_tick", headers=token, timeout=60, trust_env=False).status_code == 200
    assert stage.look().outside_ticks == seen.outside_ticks + 1


def test_no_secret_is_in_an_argument_a_file_or_the_sandboxes_record(stage: SandboxStage) -> None:
    stage.up(**QUIET)
    keys = stage.platform.keys
    told = repr(stage.box())
    assert "uvicorn" in told
    for secret in (keys.environment, keys.sandboxes, keys.signing, keys.functions, keys.api):
        assert secret not in told
    variables = plan.plan_from(stage.loaded().environ).variables
    assert keys.api not in variables.values() and keys.environment in variables.values()
    assert not [name for name in variables if name.startswith("OFFLINE_") or name == "ANTHROPIC_API_KEY"]


def test_a_status_wakes_nobody_and_after_rm_there_is_none(
    stage: SandboxStage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert webhook_sandbox.remove(stage.loaded()) == 0
    assert webhook_sandbox.status(stage.loaded(), False) == 1
    assert "make webhook-sandbox" in capsys.readouterr().out
    name = stage.up(**QUIET).name
    assert isinstance(names.parse("hands", name), names.ServerSandbox)
    stage.put_to_sleep()
    assert webhook_sandbox.status(stage.loaded(), False) == 0
    assert "suspended" in capsys.readouterr().out
    assert webhook_sandbox.logs(stage.loaded(), False, False) == 1
    assert stage.box()["status"] == "suspended"
    assert webhook_sandbox.remove(stage.loaded()) == 0
    assert stage.platform.claude.get("webhooks")["data"] == []
    assert webhook_sandbox.logs(stage.loaded(), False, False) == 1
