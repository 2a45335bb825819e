"""Races over real sockets: the SDK, real processes and files, and nothing left of them."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest

from image.session.claim import STATE_DIRECTORY
from shared import names
from shared.ports import SandboxRecord
from shared.races.errors import SourceNotReady, SourceUnknown
from shared.races.events import BranchDecided, Event, PhaseBegan
from tests.shared.races.race_stage import SESSION, RaceStage, by_name, on_a_session
from tests.support.admin import fault
from tests.support.world import IMAGE, Place


def test_four_branches_start_from_the_sessions_files_and_leave_them_as_they_were(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        await stage.sh("mkdir -p src && echo 40 > src/number && echo hi > keep.txt")
        report = await stage.race(
            n=4,
            script="echo $(( $(cat src/number) + {i} )) > src/number; rm keep.txt; echo $BRANCH_NAME of $BRANCH_INDEX",
            judge={"type": "command", "script": "echo score=$(cat src/number)"},
        )
        assert report.winner == "b3"
        assert [branch.score for branch in report.branches] == [40.0, 41.0, 42.0, 43.0]
        assert [branch.stdout_tail for branch in report.branches] == [f"b{i} of {i}" for i in range(4)]
        assert await stage.sh("cat src/number keep.txt") == "40\nhi"
        assert len(report.reaped) == 9
        assert report.leftovers == ()

    on_a_session(place, test)


def test_an_accepted_branch_ends_slow_ones_at_once(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        decided: dict[str, float] = {}

        def tell(event: Event) -> None:
            if isinstance(event, BranchDecided):
                decided[event.report.name] = time.monotonic()
                if {"wrong", "crash"} <= decided.keys():
                    others_are_over.listen()

        with socket.socket() as others_are_over:  # sandboxes here share the machine's network
            others_are_over.bind(("127.0.0.1", 0))
            there = f"/dev/tcp/127.0.0.1/{others_are_over.getsockname()[1]}"
            waits = f"until (exec 3<>{there}) 2>/dev/null; do sleep 0.1; done; echo 0.9 > score"
            report = await stage.race(
                tell,
                branches=[
                    {"name": "wrong", "script": "echo 0.1 > score"},
                    {"name": "crash", "script": "echo before; echo oops >&2; exit 3"},
                    {"name": "hang", "script": "echo begun; sleep 600"},
                    {"name": "right", "command": ["bash", "-c", waits]},
                ],
                judge={"type": "command", "command": ["cat", "score"]},
                accept=0.8,
            )
        assert time.monotonic() - decided["right"] < 300  # the slow one sleeps for ten minutes
        assert report.winner == "right"
        got = by_name(report)
        assert (got["wrong"].status, got["wrong"].score) == ("ok", 0.1)
        assert (got["crash"].status, got["crash"].exit_code) == ("failed", 3)
        assert (got["crash"].stdout_tail, got["crash"].stderr_tail) == ("before", "oops")
        assert got["hang"].status == "cancelled"

    on_a_session(place, test)


def test_a_branch_out_of_time_is_killed_and_keeps_what_it_said(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        report = await stage.race(
            branches=[
                {"name": "hang", "script": "echo so far; echo so bad >&2; sleep 60", "timeout": 1},
                {"name": "fine", "script": "true"},
            ]
        )
        hang = by_name(report)["hang"]
        assert (hang.status, hang.stdout_tail, hang.stderr_tail) == ("timed_out", "so far", "so bad")
        assert report.winner == "fine"

    on_a_session(place, test)


def test_a_deadline_reports_what_finished(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        report = await stage.race(
            branches=[{"name": "fine", "script": "true"}, {"name": "hang", "script": "sleep 600"}], deadline=12
        )
        assert report.deadline_passed
        assert report.winner == "fine"
        assert by_name(report)["hang"].status == "cancelled"

    on_a_session(place, test)


def test_a_cancelled_race_leaves_nothing(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        runs = asyncio.Event()

        def tell(event: Event) -> None:
            if isinstance(event, PhaseBegan) and event.phase == "run":
                runs.set()

        task = asyncio.create_task(stage.race(tell, n=3, command=["sleep", "600"]))
        await asyncio.wait({task, asyncio.ensure_future(runs.wait())}, return_when=asyncio.FIRST_COMPLETED)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()

    on_a_session(place, test)


def test_files_and_input_reach_the_branch_as_the_agents_own(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        await stage.sh("mkdir -p outside && ln -s outside link && echo old > outside/x && ln -s x outside/y")
        report = await stage.race(
            branches=[
                {
                    "name": "a",
                    "script": "cat; cat notes/n.txt; od -An -tx1 b.bin; ./run.sh; [ -O notes/n.txt ] && echo mine",
                    "stdin": "from stdin\n",
                    "files": {
                        "notes/n.txt": "grüße\n",
                        "b.bin": {"base64": "AAH/"},
                        "run.sh": {"text": "#!/bin/sh\necho ran in $PWD\n", "executable": True},
                    },
                },
                {"name": "b", "script": "cat outside/y; cat outside/x", "files": {"outside/y": "new\n"}},
            ]
        )
        got = by_name(report)
        assert got["a"].stdout_tail.split("\n") == ["from stdin", "grüße", " 00 01 ff", "ran in /workspace", "mine"]
        # A link in the place of a file is replaced and not followed.
        assert got["b"].stdout_tail.split("\n") == ["new", "old"]

    on_a_session(place, test)


def test_a_child_does_not_say_that_it_is_its_session(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        await stage.host.write_file(stage.source, f"{STATE_DIRECTORY}/session", SESSION.encode())
        report = await stage.race(n=1, command=["cat", f"{STATE_DIRECTORY}/session"])
        assert report.branches[0].stdout_tail == f"race {report.race_id}"
        assert await stage.sh(f"cat {STATE_DIRECTORY}/session") == SESSION

    on_a_session(place, test)


def test_a_setup_runs_once_before_all_branches(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        report = await stage.race(
            source={"image": IMAGE},
            setup="echo x >> ready",
            n=2,
            script="cat ready; echo y >> ready; grep -c . ready",
        )
        assert [branch.stdout_tail for branch in report.branches] == ["x\n2", "x\n2"]

    on_a_session(place, test)


def test_what_runs_in_the_source_goes_on_during_a_race(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        await stage.sh("(while true; do date +%s%N > beat; sleep 0.05; done) >/dev/null 2>&1 &")
        await asyncio.sleep(0.3)
        report = await stage.race(n=2, script="cat beat; sleep 0.3; ls /proc | grep -c '^[0-9]'")
        assert {branch.status for branch in report.branches} == {"ok"}
        before = await stage.sh("cat beat")
        await asyncio.sleep(0.3)
        assert await stage.sh("cat beat") != before

    on_a_session(place, test)


def test_two_races_on_one_session_do_not_disturb_each_other(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        await stage.sh("echo same > file")
        reports = await asyncio.gather(*(stage.race(n=2, script="cat file") for _ in range(2)))
        assert {branch.stdout_tail for report in reports for branch in report.branches} == {"same"}
        assert len({report.race_id for report in reports}) == 2

    on_a_session(place, test)


def test_errors_of_the_service_cost_nothing_that_can_be_tried_again(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        lost = {"method": "POST", "path": "/sandboxes$", "action": "drop_after", "times": 1}
        slow = {"method": "DELETE", "path": "/sandboxes/", "action": "status", "status": 500, "times": 2}
        with fault(place.world.tensorlake_admin, lost), fault(place.world.tensorlake_admin, slow):
            report = await stage.race(n=3, command=["true"])
        assert [branch.status for branch in report.branches] == ["ok"] * 3
        assert report.leftovers == ()

    on_a_session(place, test)


def test_each_branchs_changes_come_as_a_patch_that_it_cannot_touch(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        await stage.sh("mkdir src && printf '1\\n2\\n' > src/a && echo old > gone && printf 'log\\n' > .gitignore")
        report = await stage.race(
            branches=[
                {
                    "name": "edit",
                    "script": "echo 3 >> src/a; rm gone; echo x > 'new file'; echo y > log; ln -s a src/b",
                },
                {"name": "none", "script": "echo {word}", "params": {"word": "quiet"}},
                {"name": "hide", "script": "git init -q; echo 3 >> src/a; rm -rf /tmp/race-*-base; exit 1"},
                {"name": "much", "script": "seq 1 100000 > numbers; head -c 9000 /dev/zero > zeros"},
            ],
            diff=True,
            artifacts=["src/a"],
        )
        got = by_name(report)
        edit = got["edit"].diff
        assert "\n+3\n" in edit and "deleted file mode 100644" in edit and "+++ b/new file\t\n" in edit, edit
        assert "new file mode 120000" in edit and "log" not in edit
        assert (got["none"].diff, got["none"].diff_reason, got["none"].stdout_tail) == ("", None, "quiet")
        assert got["none"].params == {"word": "quiet"}
        assert got["hide"].status == "failed" and ("\n+3\n" in got["hide"].diff or got["hide"].diff_reason)
        assert got["much"].diff.endswith("\n") and len(got["much"].diff) <= 262_144
        assert got["much"].diff_reason == "diff: only its first 262144 bytes are here"
        assert got["edit"].artifacts[0].size == 6
        await stage.sh("printf '1\\n2\\n' > src/a && test ! -e .git && echo old > gone")
        commit = "git -c user.name=x -c user.email=x@example.com commit -qm one"
        await stage.sh(f"git init -q repo && cd repo && echo 1 > b && git add b && {commit}")
        inside = f"cd repo && echo 2 >> b && {commit} -a && git rm -qf --cached b; echo 3 >> ../src/a"
        moved = "rm -r repo && ln -s /etc repo"
        nested = await stage.race(
            branches=[{"name": "in", "script": inside}, {"name": "moved", "script": moved}], diff=True
        )
        got = by_name(nested)
        assert "--- a/repo/b\n+++ b/repo/b\n@@ -1 +1,2 @@\n 1\n+2\n" in got["in"].diff, got["in"].diff
        assert "+++ b/src/a\n" in got["in"].diff and "Subproject" not in got["in"].diff
        assert got["in"].diff_reason is None and "passwd" not in got["moved"].diff
        written = await stage.host.write_file(stage.source, "/tmp/edit.patch", edit.encode())
        assert written is None
        assert (
            await stage.sh("git apply /tmp/edit.patch && cat src/a && test ! -e gone && cat 'new file'") == "1\n2\n3\nx"
        )

    on_a_session(place, test)


def test_files_are_judged_and_collected_as_the_agent_left_them(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        outside = "ln -s /etc/passwd m.json"
        report = await stage.race(
            branches=[
                {"name": "good", "script": 'echo \'{"runs": [{"loss": 0.5}]}\' > m.json; mkdir out; echo hi > out/log'},
                {"name": "none", "script": "mkdir m.json"},
                {"name": "link", "script": outside},
                {"name": "much", "script": "head -c 1048577 /dev/zero > m.json"},
            ],
            judge={"type": "file", "path": "m.json", "json_path": "runs.0.loss"},
            artifacts=["out/*", "m.json"],
        )
        got = by_name(report)
        assert got["good"].score == 0.5
        assert got["none"].reason == "judge: the file is not there"
        assert got["link"].reason == "judge: the file is a link out of the working directory"
        assert got["much"].reason == "judge: the file is too large"
        assert [(file.path, file.size) for file in got["good"].artifacts] == [("m.json", 26), ("out/log", 3)]
        assert got["good"].artifacts[1].base64 == "aGkK"
        assert got["link"].artifacts == ()
        (much,) = got["much"].artifacts
        assert (much.size, much.base64) == (1_048_577, None)
        assert {branch.artifacts_reason for branch in report.branches} == {None}

    on_a_session(place, test)


def test_the_winners_work_comes_into_the_session_and_the_judges_files_do_not(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        await stage.sh("mkdir tests && echo old > tests/check && echo 1 > number && echo kept > same")
        report = await stage.race(
            branches=[
                {"name": "worse", "script": "echo 2 > number"},
                {"name": "best", "script": "echo 3 > number; echo mine > tests/check; mkdir new; echo n > new/file"},
            ],
            judge={
                "type": "command",
                "script": "sh tests/check",
                "files": {"tests/check": "cat number; touch new/seen 2>/dev/null; rm -f new/seen", "more/deep/x": ""},
            },
            promote="workspace",
        )
        assert report.winner == "best"
        assert report.promotion is not None
        assert report.promotion.model_dump(exclude_defaults=True) == {
            "kind": "workspace", "done": True, "added": 2, "changed": 2,
        }, report.promotion  # fmt: skip
        assert (
            await stage.sh("cat number tests/check new/file same; ls") == "3\nmine\nn\nkept\nnew\nnumber\nsame\ntests"
        )
        assert report.leftovers == ()

    on_a_session(place, test)


def test_what_the_source_changed_meanwhile_refuses_the_promotion_and_not_the_report(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        await stage.sh("echo 1 > number")
        running = asyncio.Event()

        def tell(event: Event) -> None:
            if isinstance(event, PhaseBegan) and event.phase == "run":
                running.set()  # the checkpoint is made

        asked = {"n": 1, "script": "sleep 1; echo 2 > number", "promote": "workspace"}
        task = asyncio.create_task(stage.race(tell, **asked))
        await running.wait()
        await stage.sh("echo 5 > number")
        report = await task
        assert report.winner == "b0"
        assert report.promotion is not None
        assert (report.promotion.done, report.promotion.conflicts) == (False, ("number",))
        assert await stage.sh("cat number") == "5"

    on_a_session(place, test)


def test_a_winner_lives_on_as_a_sandbox_and_as_a_snapshot(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        name = f"best-{place.environment_id[-6:].lower().replace('_', 'x')}"
        await stage.sh("echo 1 > number")
        asked: dict[str, Any] = {"n": 1, "script": "echo 2 > number"}
        kept = await stage.race(**asked, promote="keep", keep={"name": name})
        assert kept.promotion is not None
        assert kept.promotion.done, kept.promotion
        box = await stage.host.find(f"keep-{name}")
        assert isinstance(box, SandboxRecord)
        assert box.id == kept.promotion.sandbox_id
        assert (box.timeout_seconds or 0) >= 3_600
        await stage.host.terminate(box.id)
        snapped = await stage.race(**asked, promote="snapshot")
        assert snapped.promotion is not None
        snapshot_id = snapped.promotion.snapshot_id
        assert snapshot_id is not None
        again = await stage.race(source={"snapshot_id": snapshot_id}, n=1, script="cat number")
        assert again.branches[0].stdout_tail == "2"
        assert await stage.host.delete_snapshot(snapshot_id) is None

    on_a_session(place, test)


def test_memory_and_live_start_from_the_same_files(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        await stage.sh("echo 40 > number")
        for kind in ("memory", "live"):
            report = await stage.race(n=2, script="expr $(cat number) + {i}", checkpoint=kind)
            assert [branch.stdout_tail for branch in report.branches] == ["40", "41"], report
            assert report.leftovers == ()

    on_a_session(place, test)


def test_a_race_larger_than_the_quota_takes_its_turns(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        admin = place.world.tensorlake_admin
        used = [box for box in admin.get("state")["sandboxes"] if box["status"] != "terminated"]
        admin.patch("settings", {"max_sandboxes": len(used) + 2})
        try:
            report = await stage.race(n=8, command=["true"])
        finally:
            admin.patch("settings", {"max_sandboxes": None})
        assert [branch.status for branch in report.branches] == ["ok"] * 8
        assert report.leftovers == ()

    on_a_session(place, test)


def test_a_sleeping_source_is_woken_with_its_files(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        await stage.sh("echo slept > file")
        assert await stage.host.suspend(stage.source) is None
        report = await stage.race(n=2, script="cat file")
        assert [branch.stdout_tail for branch in report.branches] == ["slept"] * 2

    on_a_session(place, test)


def test_a_sandbox_that_failed_to_start_is_made_again(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        tag = names.environment_tag(place.environment_id)
        admin = place.world.tensorlake_admin
        admin.patch("settings", {"start_faults": [{"outcome": "failed", "name_pattern": f"-{tag}-r"}]})
        try:
            report = await stage.race(n=2, command=["true"])
        finally:
            left = admin.get("settings")["start_faults"]
            admin.patch("settings", {"start_faults": []})
        assert left == [], "no sandbox failed"
        assert [branch.status for branch in report.branches] == ["ok"] * 2
        assert report.leftovers == ()

    on_a_session(place, test)


@pytest.mark.parametrize("what", ["run", "snapshot", "delete"])
def test_a_call_that_fails_for_ever_is_told_and_leaves_what_can_be_ended(place: Place, what: str) -> None:
    rules = {
        "run": {"method": "POST", "path": "/processes", "action": "status", "status": 500},
        "snapshot": {"method": "POST", "path": "/snapshot$", "action": "status", "status": 500},
        "delete": {"method": "DELETE", "path": "/sandboxes/", "action": "status", "status": 500},
    }

    async def test(stage: RaceStage) -> None:
        with fault(place.world.tensorlake_admin, rules[what]):
            if what == "snapshot":
                with pytest.raises((SourceNotReady, SourceUnknown)):
                    await stage.race(n=2, command=["true"])
                return
            report = await stage.race(n=2, command=["true"])
        made = [box for box in place.sandboxes() if box["id"] != stage.source]
        assert sorted(report.leftovers) == sorted(box["name"] for box in made)
        if what == "run":
            assert (report.winner, made) == (None, [])
            assert {branch.status for branch in report.branches} == {"failed"}
        else:
            assert {branch.status for branch in report.branches} == {"ok"}
            assert len(made) == 2
            for box in made:
                assert await stage.host.terminate(box["id"]) is None

    on_a_session(place, test)
