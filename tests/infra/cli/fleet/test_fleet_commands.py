"""Seeing and steering over real sockets: a served offline platform, and commands as a user types them."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.local.platform import Options
from tests.infra.cli.session.test_session_command import asking_agent
from tests.support.admin import fault
from tests.support.command_line import CommandLine, command_line
from tests.support.waiting import PATIENCE, until

NOBODY = "sesn_000000000000000000000000"


_COMMITTED = """set -e
git init -q .; git config user.name n; git config user.email e@example.com; echo '*.log' > .gitignore
export GIT_AUTHOR_DATE=2020-01-01T00:00:00Z GIT_COMMITTER_DATE=2020-01-01T00:00:00Z
git add .; git commit -qm before; unset GIT_AUTHOR_DATE GIT_COMMITTER_DATE
echo more > kept.txt; git commit -qam after; echo new > new.txt; echo noise > noise.log
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """Workers that leave at once when their session rests, so that its sandbox is nobody's."""
    leaving = {"RUNNER_MAX_IDLE_SECONDS": "1", "SETUP_SCRIPT": "echo made-$((40+2))"}
    with command_line(tmp_path_factory.mktemp("checkout"), Options(lease_ttl=6.0), environ=leaving) as shell:
        yield shell


def new_session(shell: CommandLine, prompt: str = "write kept.txt: it was kept") -> str:
    done = shell.run("session", prompt)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[1]


def ps(shell: CommandLine, *args: str) -> dict[str, Any]:
    done = shell.run("ps", "--json", *args)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def row(shell: CommandLine, session: str, *args: str) -> dict[str, Any]:
    (found,) = [each for each in ps(shell, *args)["sessions"] if each["session"] == session]
    return dict(found)


def item_state(shell: CommandLine, session: str) -> str | None:
    """Of its newest item, asked of the platform: a command takes a hundred times as much of a core."""
    items = shell.platform.claude.get(f"state?session={session}")["items"]
    return str(items[-1]["state"]) if items else None


def called(shell: CommandLine, session: str) -> None:
    """Waits until a tool's result is waited for."""

    def open_calls() -> object:
        (found,) = [each for each in shell.sessions() if each["id"] == session]
        return found["open_calls"]

    until(open_calls, "it calls no tool")


def at_rest(shell: CommandLine, session: str) -> None:
    until(lambda: item_state(shell, session) == "stopped", "its worker did not leave")
    assert row(shell, session)["item_state"] == "stopped"


@pytest.fixture(scope="module")
def session(served: CommandLine) -> str:
    """One at rest, whose sandbox tests leave as awake as they find it."""
    made = new_session(served)
    at_rest(served, made)
    return made


def test_a_session_at_rest_is_seen_shown_and_entered(served: CommandLine) -> None:
    session = new_session(served)
    table = served.run("ps")
    assert table.returncode == 0 and session in table.stdout and "\x1b" not in table.stdout
    at_rest(served, session)
    assert row(served, session)["state"] == "idle"
    shown = served.run("show", session, "--json")
    facts = json.loads(shown.stdout)
    assert facts["session"]["id"] == session and facts["calls"] == []
    assert facts["sandbox"]["state"] == "running" and facts["items"][0]["state"] == "stopped"
    assert [each["exit_code"] for each in facts["workers"]] == [0] and facts["deaths"] == 0
    assert facts["worker_says"]["sdk"] and facts["worker_says"]["state"] == "ended"
    steps = facts["setup"]
    assert steps[0]["text"] == "begins" and steps[-1]["text"].startswith("done in")
    assert facts["session"]["created_at"] < steps[0]["at"] <= steps[-1]["at"] < time.time()
    assert facts["files"]["source"] == "times" and {"path": "kept.txt", "how": "written"} in facts["files"]["files"]
    served.run("run", session, "--", "sh", "-c", _COMMITTED)
    facts = json.loads(served.run("show", session, "--json").stdout)
    changed = {(each["how"], each["path"]) for each in facts["files"]["files"]}
    assert facts["files"]["source"] == "git" and changed == {("added", "new.txt"), ("changed", "kept.txt")}
    words = served.run("show", session)
    assert "changed" in words.stdout and "new.txt" in words.stdout
    assert words.returncode == 0 and facts["sandbox"]["id"] in words.stdout
    log = served.run("logs", session)
    assert log.returncode == 0 and "ready" in log.stdout and facts["workers"][0]["name"] in log.stderr
    assert "made-42" in log.stdout and "setup." in log.stdout


def test_a_followed_log_shows_what_is_written_later_and_later_workers_until_ctrl_c(served: CommandLine) -> None:
    session = new_session(served)
    at_rest(served, session)
    with served.terminal("logs", session, "-f", columns=200) as terminal:
        terminal.expect("SERVED")
        with served.start("session", "$ sleep 600", "--session", session) as working:
            terminal.expect(", runs")
            terminal.expect("executing tool")
            assert served.run("interrupt", session).returncode == 0
            working.communicate(timeout=PATIENCE)
            terminal.expect("session idle for")
        terminal.type("\x03")
        assert terminal.end() == 130
    assert "Traceback" not in terminal.seen and terminal.seen.count("── hands-") == 2


def test_a_command_runs_as_the_agent_and_its_exit_code_and_outputs_come_back(served: CommandLine, session: str) -> None:
    done = served.run("run", session, "--", "sh", "-c", "cat kept.txt; echo wrong >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == ("it was kept\n", "wrong\n", 7)
    long = served.run("run", session, "--", "seq", "30000")
    assert long.stdout.splitlines() == [str(number) for number in range(1, 30_001)]
    killed = served.run("run", session, "--", "sh", "-c", "kill -9 $$")
    assert killed.returncode == 137
    slow = served.run("run", session, "--timeout", "1", "--", "sleep", "60")
    assert slow.returncode == 1 and "ran longer than 1 s" in slow.stderr


BEATS = "while date +%N | tee beat && sleep 0.1; do :; done"
"""Ends where nobody reads its output any more."""


def test_ctrl_c_ends_a_command_with_all_that_it_started_and_two_leave_at_once(
    served: CommandLine, session: str
) -> None:
    command = "setsid sh -c 'echo $$ > child; exec sleep 600' & echo $$ > parent; exec sleep 600"
    still = "for each in parent child; do kill -0 $(cat $each) 2>/dev/null && echo $each; done; rm parent child; true"

    def begun() -> bool:
        return len(served.run("run", session, "--", "cat", "parent", "child").stdout.split()) == 2

    with served.terminal("run", session, "--", "sh", "-c", command) as terminal:
        until(begun, "the command does not begin")
        terminal.type("\x03")
        terminal.expect("Ending the command")
        assert terminal.end() == 130
    assert "may go on" not in terminal.seen and "Traceback" not in terminal.seen
    assert served.run("run", session, "--", "sh", "-c", still).stdout == ""
    hang = {"method": "POST", "path": "^/api/v1/processes/run$", "action": "hang"}
    with fault(served.platform.tensorlake, hang), served.terminal("run", session, "--", "sleep", "600") as terminal:
        until(lambda: served.platform.tensorlake.get("faults")["data"][0]["fired"], "nothing is asked")
        terminal.type("\x03")
        terminal.expect("Ending the command")
        terminal.type("\x03")
        terminal.expect("It may go on")
        assert terminal.end() == 130


def test_no_tick_puts_a_sandbox_to_sleep_while_a_persons_command_is_in_it(served: CommandLine, tmp_path: Path) -> None:
    session = new_session(served)  # where no earlier command has left its lock, as a second ctrl-C may
    at_rest(served, session)
    admin = served.platform.tensorlake

    def slept_after_a_tick() -> bool:
        assert served.run("tick", IDLE_GRACE_SECONDS="0").returncode == 0
        return bool(row(served, session)["sandbox_state"] == "suspended")

    def locks() -> int:
        return int(admin.get("counts")["routes"].get("POST /api/v1/processes", 0))

    (tmp_path / "words").write_text("words\n")
    hang = {"method": "PUT", "path": "^/api/v1/files$", "action": "hang"}
    before = locks()
    with fault(admin, hang), served.terminal("cp", str(tmp_path / "words"), f"{session}:w") as copy:
        until(lambda: locks() > before and admin.get("faults")["data"][0]["fired"], "the copy does not begin")
        assert not slept_after_a_tick()
        copy.type("\x03")
        assert copy.end() == 130
    until(slept_after_a_tick, "the lock has outlived its copy")


def test_a_sandbox_is_put_to_sleep_and_woken_and_a_command_wakes_it_too(served: CommandLine) -> None:
    session = new_session(served, f"$ echo it was kept > kept.txt; ({BEATS}) &")
    at_rest(served, session)
    asleep = served.run("suspend", session)
    assert asleep.returncode == 0 and "sleeps" in asleep.stdout
    assert (row(served, session)["state"], row(served, session)["sandbox_state"]) == ("asleep", "suspended")
    assert "sleeps already" in served.run("suspend", session).stdout
    assert json.loads(served.run("show", session, "--json").stdout)["files"] is None
    log = served.run("logs", session)
    assert log.returncode == 1 and "--wake" in log.stderr
    assert row(served, session)["sandbox_state"] == "suspended"
    awake = served.run("resume", session)
    assert awake.returncode == 0 and row(served, session)["sandbox_state"] == "running"
    served.run("suspend", session)
    done = served.run("run", session, "--", "cat", "kept.txt")
    assert (done.stdout, done.returncode) == ("it was kept\n", 0) and "waking" in done.stderr
    next_beat = 'seen=$(cat beat); until [ "$(cat beat)" != "$seen" ]; do sleep 0.05; done'
    lives = served.run("run", session, "--timeout", "60", "--", "sh", "-c", next_beat)
    assert lives.returncode == 0, "what the agent had left running did not outlive its worker and the sleep"


def test_a_running_session_is_seen_at_work_and_not_taken_away_and_interrupted(served: CommandLine) -> None:
    with served.start("session", "$ sleep 600") as watching:
        assert watching.stdout is not None
        session = watching.stdout.readline().split()[1]
        called(served, session)
        until(lambda: "bash sleep 600 for" in row(served, session)["state"], "it is not seen at work")
        until(lambda: item_state(served, session) == "active", "its item is not active")
        assert row(served, session)["item_state"] == "active"
        facts = json.loads(served.run("show", session, "--json").stdout)
        assert (facts["calls"][0]["input"], facts["calls"][0]["waits_for"]) == ("sleep 600", "a worker")
        assert facts["worker_says"]["leased"] and row(served, session)["deaths"] == 0
        assert facts["alarms"] == []
        for command in ("suspend", "keep"):
            refused = served.run(command, session, *(["--yes"] if command == "keep" else []))
            assert refused.returncode == 1 and f"hands stop {session}" in refused.stderr
        ended = served.run("interrupt", session)
        assert ended.returncode == 0 and "Interrupted" in ended.stdout and "was ended" in ended.stdout
        watching.communicate(timeout=PATIENCE)
    at_rest(served, session)  # sooner than the command would have ended
    assert row(served, session)["state"] in ("idle", "asleep")


LAST_WORDS = """$ sh -c 'trap "touch ended; exit 1" INT; touch begun; sleep 600'"""


def test_stopping_asks_first_and_is_done_when_it_says_so(served: CommandLine) -> None:
    with served.start("session", LAST_WORDS) as watching:
        assert watching.stdout is not None
        session = watching.stdout.readline().split()[1]
        until(lambda: item_state(served, session) == "active", "it was not served")
        unasked = served.run("stop", session)
        assert unasked.returncode == 1 and "--yes" in unasked.stderr
        with served.terminal("stop", session) as terminal:
            terminal.expect("its result may be lost. Go on? [y/N]")
            terminal.type("n\n")
            terminal.expect("Nothing was changed.")
            assert terminal.end() == 1
        assert row(served, session)["item_state"] == "active"
        wait = "until [ -e begun ]; do sleep 0.05; done"
        assert served.run("run", session, "--timeout", "60", "--", "sh", "-c", wait).returncode == 0
        stopped = served.run("stop", session, "--yes")
        assert stopped.returncode == 0 and "Stopped work_" in stopped.stdout
        assert served.run("run", session, "--", "ls", "ended").returncode == 0
        facts = json.loads(served.run("show", session, "--json").stdout)
        assert facts["items"][-1]["state"] == "stopped"
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=PATIENCE)


def test_a_kept_sandbox_is_nobodys_and_an_archived_session_takes_no_more(served: CommandLine) -> None:
    session = new_session(served)
    at_rest(served, session)
    before = row(served, session)["sandbox"]
    kept = served.run("keep", session, "--yes")
    assert kept.returncode == 0, kept.stderr
    assert "keep-" in kept.stdout
    assert [box["kind"] for box in ps(served)["sandboxes"] if box["name"].startswith("keep-")] == ["kept"]
    # Who serves has served it before, and would begin in that sandbox without a look at its name.
    again = served.run("session", "--session", session, "$ ls; touch more.txt")
    assert again.returncode == 0 and "THIS-WORKSPACE-IS-NEW.txt" in again.stdout and "kept.txt" not in again.stdout
    assert row(served, session)["sandbox"] not in (None, before)
    at_rest(served, session)
    archived = served.run("archive", session, "--yes")
    assert archived.returncode == 0, archived.stderr
    assert session not in [each["session"] for each in ps(served)["sessions"]]
    assert row(served, session, "--all")["state"] == "archived"


def test_a_sleeper_is_kept_too_and_where_workers_are_not_kept_out_it_says_for_how_long(served: CommandLine) -> None:
    session = new_session(served)
    at_rest(served, session)
    assert served.run("suspend", session).returncode == 0
    broken = {"path": "^/api/v1/processes/run$", "action": "status", "status": 403}
    with fault(served.platform.tensorlake, broken):
        kept = served.run("keep", session, "--yes")
    assert kept.returncode == 0, kept.stderr
    assert "is now keep-" in kept.stdout
    assert "send the session no message for 5 minutes" in kept.stdout


def test_a_deleted_session_is_gone_with_its_sandbox(served: CommandLine) -> None:
    session = new_session(served)
    at_rest(served, session)
    box = row(served, session)["sandbox"]
    gone = served.run("rm", session, "--yes")
    assert gone.returncode == 0, gone.stderr
    state = served.platform.tensorlake.get("state")["sandboxes"]
    assert [each["status"] for each in state if each["id"] == box] in ([], ["terminated"])
    again = served.run("rm", session, "--yes")
    assert again.returncode == 1 and "404" in again.stderr


def test_a_session_is_deleted_once_its_outputs_are_collected_and_not_before(
    served: CommandLine, tmp_path: Path
) -> None:
    session = new_session(served, "write outputs/report.csv: a,b")
    at_rest(served, session)
    (tmp_path / "file").write_text("in the way")
    refused = served.run("rm", session, "--yes", OUTPUTS_TO=f"file://{tmp_path}/file/results")
    assert refused.returncode == 1 and "its outputs are not collected: OUTPUTS_TO" in refused.stderr
    assert row(served, session)["sandbox_state"] is not None
    gone = served.run("rm", session, "--yes", OUTPUTS_TO=f"file://{tmp_path}/results")
    assert gone.returncode == 0, gone.stderr
    (report,) = (tmp_path / "results").rglob("report.csv")
    assert report.read_text().strip() == "a,b"
    assert session not in [each["session"] for each in ps(served, "--all")["sessions"]]


def test_a_call_that_waits_for_a_person_is_answered_by_a_flag_or_at_the_terminal(served: CommandLine) -> None:
    offline: dict[str, Any] = {**served.platform.environ, "ANTHROPIC_AGENT_ID": asking_agent(served)}
    with served.start("session", "$ echo one-$((40+2))", **offline) as watching:
        assert watching.stdout is not None
        session = watching.stdout.readline().split()[1]
        called(served, session)
        until(lambda: row(served, session)["state"].startswith("waits for a person: bash"), "it does not wait")
        unasked = served.run("confirm", session)
        assert unasked.returncode == 1 and "--allow" in unasked.stderr
        with served.terminal("confirm", session) as terminal:
            terminal.expect("? allow bash  echo one-$((40+2))   [y, n, n REASON]")
            terminal.type("y\n")
            terminal.expect("Allowed: bash")
            assert terminal.end() == 0
        out, _ = watching.communicate(timeout=PATIENCE)
    assert watching.returncode == 0 and "← one-42" in out
    assert served.run("confirm", session, "--allow").returncode == 0
    with served.start("session", "$ echo two", "--session", session, **offline) as watching:
        called(served, session)
        until(lambda: row(served, session)["state"].startswith("waits for a person: bash"), "it does not wait")
        denied = served.run("confirm", session, "--deny", "not on prod")
        assert denied.returncode == 0 and "Denied: bash" in denied.stdout
        out, _ = watching.communicate(timeout=PATIENCE)
    assert "· denied: not on prod" in out
    both = served.run("confirm", session, "--allow", "--deny", "x")
    assert both.returncode == 2


@pytest.mark.usefixtures("session")
def test_the_overviews_answer_for_people_and_for_programs(served: CommandLine) -> None:
    top = json.loads(served.run("top", "--json").stdout)
    (queue,) = top["queues"]
    assert queue["depth"] == 0 and queue["served_p50"] is not None and queue["served_p50"] <= queue["served_p99"]
    assert "served p50" in served.run("top").stdout
    cost = json.loads(served.run("cost", "--by", "environment", "--json").stdout)
    assert cost["complete"] and cost["rows"][0]["sessions"] == len(ps(served, "--all")["sessions"])
    assert served.run("cost", "--by", "week").returncode == 2
    alarms = served.run("alarms", "--json")
    assert alarms.returncode in (0, 1) and json.loads(alarms.stdout)[0]["sandboxes"] is not None
    assert served.run("alarms").stdout


def test_a_live_table_is_drawn_on_a_terminal_until_ctrl_c(served: CommandLine, session: str) -> None:
    with served.terminal("ps", "-w", columns=80) as terminal:
        terminal.expect("problem")
        terminal.expect(session)
        terminal.type("\x03")
        assert terminal.end() == 130
    assert "Traceback" not in terminal.seen


@pytest.mark.parametrize("command", ["show", "logs", "stop", "archive", "rm", "keep", "suspend", "resume", "confirm"])
def test_a_session_that_is_none_is_refused_in_one_line(served: CommandLine, command: str) -> None:
    wrong = served.run(command, "not-an-id")
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1 and "sesn_" in wrong.stderr
    absent = served.run(command, NOBODY)
    assert absent.returncode == 1 and len(absent.stderr.splitlines()) == 1 and "404" in absent.stderr


def test_a_shell_is_a_terminal_in_the_sandbox_with_sizes_signals_and_exit_code(
    served: CommandLine, session: str
) -> None:
    served.run("suspend", session)
    with served.terminal("shell", session, columns=90, rows=25) as terminal:
        terminal.expect("Waking")
        terminal.expect("stays awake")
        terminal.expect("$ ")
        terminal.type("stty size; pwd; cat kept.txt; tty | cut -c1-8\n")
        terminal.expect("25 90")
        terminal.expect("it was kept")
        terminal.expect("/dev/pts")
        terminal.resize(70, 20)
        terminal.type("while [ \"$(stty size)\" != '20 70' ]; do sleep 0.1; done; echo resized-$((40+2))\n")
        terminal.expect("resized-42")
        # A ctrl-C between a shell's fork and its exec is nobody's: the command says itself that it runs.
        terminal.type("sh -c 'echo begun-$((40+2)); exec sleep 600'; echo un-$((40+2))-interrupted\n")
        terminal.expect("begun-42")
        terminal.type("\x03")
        terminal.type("echo after-$((40+2))\n")
        terminal.expect("after-42")
        terminal.type("exit 7\n")
        assert terminal.end() == 7
    assert "un-42-interrupted" not in terminal.seen
    assert row(served, session)["sandbox_state"] == "running"


def test_a_shell_without_a_terminal_names_the_command_for_scripts(served: CommandLine) -> None:
    done = served.run("shell", NOBODY)
    assert done.returncode == 2 and f"hands run {NOBODY}" in done.stderr


def test_a_copy_shows_a_bar_at_a_terminal_and_goes_on_where_ctrl_c_cut_it(
    served: CommandLine, session: str, tmp_path: Path
) -> None:
    words = "".join(f"line {number:>10}\n" for number in range(5 * 2**16))  # 5 parts of 1 MiB
    (tmp_path / "words").write_text(words)
    bring = ("cp", str(tmp_path / "words"), f"{session}:words")
    admin = served.platform.tensorlake

    def parts_sent() -> int:
        return int(admin.get("counts")["routes"]["PUT /api/v1/files"])

    # What is asked first is a file, too; then two parts arrive.
    hang = {"method": "PUT", "path": "^/api/v1/files$", "action": "hang", "skip": 3}
    with fault(admin, hang), served.terminal(*bring) as terminal:
        assert "bringing" in terminal.expect("2.1/5.2 MB")
        terminal.type("\x03")
        assert terminal.end() == 130
    assert served.run("cat", f"{session}:words").returncode == 1
    before = parts_sent()
    done = served.run(*bring)
    assert done.returncode == 0 and done.stderr.startswith("1 file, 5.2 MB in "), done.stderr
    assert parts_sent() - before == 1 + 3
    out = served.run("cp", f"{session}:words", "-")
    assert out.returncode == 0 and out.stdout == words
    piped = served.run("cp", "-", f"{session}:again", given=words)
    assert piped.returncode == 0 and served.run("run", session, "--", "cmp", "words", "again").returncode == 0
    for each in (done, out, piped):
        assert len(each.stderr.splitlines()) == 1 and "\x1b" not in each.stderr
