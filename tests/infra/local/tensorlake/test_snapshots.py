"""Filesystem snapshots, restores, and what children share and do not share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorlake.sandbox import CheckpointType, Sandbox, SandboxStatus
from tensorlake.sandbox.exceptions import RemoteAPIError, SandboxError

from infra.local.tensorlake.box import DEEPEST_STACK
from tests.infra.local.tensorlake.conftest import TensorlakeStage, out
from tests.support.waiting import until


def checkpoint(sandbox: Sandbox, **options: object) -> str:
    snapshot = sandbox.checkpoint(poll_interval=0.05, **options)
    assert snapshot is not None
    snapshot_id: str = snapshot.snapshot_id
    return snapshot_id


def test_a_child_has_the_sources_files_and_neither_sees_the_other(each_level: TensorlakeStage) -> None:
    source = each_level.named()
    source.write_file("/workspace/kept.txt", b"one")
    source.write_file("/workspace/deep/er/gone.txt", b"x")
    source.write_file("/opt/hands/program.py", b"v1")
    out(source, "mkdir gone; touch gone/f; chmod 750 deep; ln -s kept.txt link; rm -r gone")
    snapshot_id = checkpoint(source)
    one, two = (each_level.named(snapshot_id=snapshot_id) for _ in range(2))
    out(one, "echo changed > kept.txt; rm deep/er/gone.txt; touch only-one")
    one.write_file("/opt/hands/program.py", b"v2")
    source.write_file("/workspace/later.txt", b"x")
    assert out(two, "cat link; echo; ls; ls deep/er; stat -c %a deep").split() == (
        ["one", "deep", "kept.txt", "link", "gone.txt", "750"]
    )
    assert two.read_file("/opt/hands/program.py").value == b"v1"
    assert out(one, "cat kept.txt; ls deep/er") == "changed"
    assert out(source, "cat kept.txt") == "one"


def test_deletions_and_replaced_directories_survive_generations(each_level: TensorlakeStage) -> None:
    sandbox = each_level.named()
    out(sandbox, "mkdir -p d/old; touch d/old/f a b")
    generations = DEEPEST_STACK + 3 if each_level.level == "overlay" else 3
    for generation in range(generations):
        child = each_level.named(snapshot_id=checkpoint(sandbox))
        out(child, f"touch g{generation}; rm -f a; rm -rf d; mkdir d; touch d/new{generation}")
        sandbox.terminate()
        sandbox = child
    expected = ["b", "d", *sorted(f"g{number}" for number in range(generations))]
    assert out(sandbox, "LC_ALL=C ls").split() == expected
    assert out(sandbox, "ls d") == f"new{generations - 1}"


def test_processes_do_not_survive_a_filesystem_snapshot_and_run_on_in_the_source(each_level: TensorlakeStage) -> None:
    source = each_level.named()
    source.start_process("sleep", ["60"], name="s", restart={"policy": "never"})
    child = each_level.named(snapshot_id=checkpoint(source))
    assert list(child.list_processes()) == []
    assert str(source.get_process("s").value.status.value) == "running"
    assert source.status is SandboxStatus.RUNNING


def test_with_overlays_a_fork_copies_the_changes_and_never_the_base(stage: TensorlakeStage) -> None:
    if stage.level != "overlay":
        pytest.skip("overlays do not work here")
    source = stage.named()
    out(source, "head -c 30000000 /dev/zero > big")
    middle = stage.named(snapshot_id=checkpoint(source))
    out(middle, "echo small > little")
    child = stage.named(snapshot_id=checkpoint(middle))
    assert out(child, "wc -c < big; cat little").split() == ["30000000", "small"]
    state = {row["id"]: row for row in stage.admin.get("state")["sandboxes"]}
    for sandbox in (middle, child):
        upper = Path(state[sandbox.sandbox_id]["box"]["directory"]) / "upper"
        assert sum(file.stat().st_size for file in upper.rglob("*") if file.is_file()) < 1000
    sizes = [row["size_bytes"] for row in stage.raw.get("/snapshots").json()["snapshots"]]
    assert sizes[0] >= 30_000_000 and sizes[1] < 1000


def test_layers_live_as_long_as_somebody_stands_on_them(each_level: TensorlakeStage) -> None:
    source = each_level.named()
    source.write_file("/workspace/f", b"x")
    snapshot_id = checkpoint(source)
    child = each_level.named(snapshot_id=snapshot_id)
    Sandbox.delete_snapshot(snapshot_id, **each_level.sdk)
    source.terminate()
    assert child.read_file("/workspace/f").value == b"x"
    root = Path(each_level.admin.get("state")["sandboxes"][-1]["box"]["directory"]).parents[1]
    before = len(list((root / "l").iterdir()))
    child.terminate()
    until(lambda: len(list((root / "l").iterdir())) < before or each_level.level != "overlay")
    assert list((root / "s").iterdir()) == []


def test_a_snapshot_passes_through_its_stages(stage: TensorlakeStage) -> None:
    stage.settings(snapshot_local_seconds=0.2, snapshot_completed_seconds=0.2)
    source = stage.named()
    answer = stage.post(f"/sandboxes/{source.sandbox_id}/snapshot")
    assert (answer.status_code, answer.json()["status"]) == (202, "in_progress")
    path = f"/snapshots/{answer.json()['snapshot_id']}"
    seen: list[str] = []

    def completed() -> bool:
        status = stage.raw.get(path).json()["status"]
        if status not in seen:
            seen.append(status)
        return "completed" in seen

    until(completed)
    assert seen == ["in_progress", "local_ready", "completed"]


def test_an_unfinished_failed_or_unknown_snapshot_is_not_restored(stage: TensorlakeStage) -> None:
    source = stage.named()
    stage.settings(snapshot_local_seconds=0.5)
    unfinished = stage.post(f"/sandboxes/{source.sandbox_id}/snapshot").json()["snapshot_id"]
    assert stage.post("/sandboxes", {"snapshot_id": unfinished}).status_code == 400
    stage.settings(snapshot_local_seconds=0.0, snapshot_failures=1)
    until(lambda: source.status is SandboxStatus.RUNNING)
    with pytest.raises(SandboxError):
        checkpoint(source)
    assert source.status is SandboxStatus.RUNNING
    failed = stage.raw.get(f"/sandboxes/{source.sandbox_id}/snapshots").json()["snapshots"][-1]
    assert failed["status"] == "failed" and failed["error"]
    assert stage.post("/sandboxes", {"snapshot_id": failed["id"]}).status_code == 400
    with pytest.raises(RemoteAPIError) as unknown:
        stage.named(snapshot_id="nothing")
    assert unknown.value.status_code == 404


def test_a_memory_snapshot_is_taken_where_no_process_runs_and_says_so(stage: TensorlakeStage) -> None:
    source = stage.named(cpus=2, memory_mb=2048)
    source.write_file("/workspace/f", b"kept")
    out(source, "echo more >> /workspace/f")
    taken = source.checkpoint(checkpoint_type=CheckpointType.MEMORY)
    assert taken is not None
    listed = stage.raw.get(f"/snapshots/{taken.snapshot_id}").json()
    assert listed["snapshot_type"] == "memory" and "no processes" in listed["note"]
    child = stage.named(snapshot_id=taken.snapshot_id)
    assert child.read_file("/workspace/f").value == b"keptmore\n"
    assert child.info().resources.cpus == 2
    locked = stage.post("/sandboxes", {"snapshot_id": taken.snapshot_id, "resources": {"cpus": 4}})
    assert locked.status_code == 400 and "memory snapshot" in locked.json()["error"]


@pytest.mark.parametrize("asleep", [False, True])
def test_a_running_process_is_never_cloned(stage: TensorlakeStage, asleep: bool) -> None:
    source = stage.named()
    source.start_process("sleep", ["60"])
    if asleep:
        source.suspend()
    path = f"/sandboxes/{source.sandbox_id}"
    refusal = stage.post(f"{path}/snapshot", {"snapshot_type": "memory"})
    assert refusal.status_code == 400 and "a process runs" in refusal.json()["error"]
    copied = stage.post(f"{path}/copy?times=2")
    assert copied.status_code == (409 if asleep else 400)
    assert not stage.raw.get(f"{path}/snapshots").json()["snapshots"]
    assert stage.raw.get(path).json()["status"] == ("suspended" if asleep else "running")
    assert source.checkpoint() is not None


def test_live_copies_are_sandboxes_of_their_own_without_a_name(each_level: TensorlakeStage) -> None:
    source = each_level.named(timeout_secs=77)
    source.write_file("/workspace/f", b"source")
    copies = source.copy(times=2).value
    assert copies.source_sandbox_id == source.sandbox_id
    handles = [Sandbox.connect(row.sandbox_id, **each_level.sdk) for row in copies.sandboxes]
    assert len({source.sandbox_id, *(handle.sandbox_id for handle in handles)}) == 3
    assert [row.status for row in copies.sandboxes] == ["running", "running"]
    handles[0].write_file("/workspace/f", b"copy")
    assert [handle.read_file("/workspace/f").value for handle in (source, *handles)] == [b"source", b"copy", b"source"]
    assert [(handle.info().name, handle.info().timeout_secs) for handle in handles] == [(None, 77), (None, 77)]
    for handle in handles:
        handle.terminate()


def test_a_copy_beyond_the_quota_fails_for_itself(stage: TensorlakeStage) -> None:
    source = stage.named()
    stage.settings(max_sandboxes=2)
    answer = stage.post(f"/sandboxes/{source.sandbox_id}/copy?times=2")
    stage.settings(max_sandboxes=None)
    assert answer.status_code == 207
    rows = answer.json()["sandboxes"]
    assert sorted(row["status"] for row in rows) == ["failed", "running"]
    assert "quota" in next(row["reason"] for row in rows if row["status"] == "failed")
    for times in ("0", "x", "65"):
        assert stage.post(f"/sandboxes/{source.sandbox_id}/copy?times={times}").status_code == 400


def test_a_busy_source_is_refused(stage: TensorlakeStage) -> None:
    source = stage.named()
    path = f"/sandboxes/{source.sandbox_id}/snapshot"
    stage.settings(snapshot_local_seconds=60)
    try:
        assert [stage.post(path).status_code for _ in range(2)] == [202, 409]
    finally:
        stage.settings(snapshot_local_seconds=0.0)


def test_a_sleeper_is_snapshotted_without_being_woken(stage: TensorlakeStage) -> None:
    source = stage.named()
    source.write_file("/workspace/f", b"asleep")
    source.suspend()
    snapshot_id = checkpoint(source)
    assert source.status is SandboxStatus.SUSPENDED
    assert stage.named(snapshot_id=snapshot_id).read_file("/workspace/f").value == b"asleep"


def test_snapshots_are_listed_found_and_deleted(stage: TensorlakeStage) -> None:
    source, other = stage.named(), stage.named()
    mine = checkpoint(source)
    checkpoint(other)
    assert [row.snapshot_id for row in source.list_snapshots()] == [mine]
    assert len(stage.raw.get("/snapshots").json()["snapshots"]) == 2
    found = Sandbox.get_snapshot(mine, **stage.sdk)
    assert (found.sandbox_id, str(found.snapshot_type.value)) == (source.sandbox_id, "filesystem")
    Sandbox.delete_snapshot(mine, **stage.sdk)
    with pytest.raises(RemoteAPIError) as gone:
        Sandbox.get_snapshot(mine, **stage.sdk)
    assert gone.value.status_code == 404
