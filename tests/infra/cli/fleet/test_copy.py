"""Files between this machine and a session's sandbox, over the offline platform's sockets."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from infra.cli.environ import Loaded
from infra.cli.fleet import copy
from shared.errors import SettingsError
from shared.ports import CommandOutput, SandboxStatus
from shared.service import Service
from tests.infra.cli.fork.test_command import environ_of
from tests.support.admin import fault
from tests.support.waiting import until
from tests.support.world import API_KEY, Place, running


async def at_rest(place: Place, prompt: str) -> str:
    """A session whose sandbox sleeps."""
    session = place.session(prompt)
    async with place.dispatcher() as dispatcher:
        await dispatcher.drain()
        await asyncio.to_thread(until, lambda: place.item(session)["state"] == "stopped")
        assert await dispatcher.host.suspend(running(await dispatcher.host.find(place.sandbox(session))).id) is None
    return session


async def seen(place: Place, session: str, script: str) -> str:
    service = Service(place.settings)
    try:
        box = running(await service.host.find(place.sandbox(session)))
        assert box.status is SandboxStatus.RUNNING
        ran = await service.host.run(
            box.id, "sh", ("-c", script), env={}, user="agent", working_dir="/workspace", timeout=60
        )
    finally:
        await service.aclose()
    assert isinstance(ran, CommandOutput), ran
    return ran.stdout


def test_files_go_in_and_out_of_a_sandbox_that_sleeps(
    place: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded({**environ_of(place), "ANTHROPIC_API_KEY": API_KEY}, None)
    links = "ln -s /etc/passwd out/away && ln -s r.csv out/near"
    session = asyncio.run(at_rest(place, f"$ mkdir -p out && echo a,b > out/r.csv && {links}"))
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    (data / "big").write_bytes(os.urandom(2_500_000))
    (data / "deep" / "tool.sh").write_text("#!/bin/sh\necho ran\n")
    (data / "deep" / "tool.sh").chmod(0o755)

    def cp(source: str, sink: str) -> str:
        assert asyncio.run(copy.copy(loaded, source, sink)) == 0
        return capfd.readouterr().err

    told = cp(str(data), f"{session}:data")
    assert "waking" in told and "2 files, 2.5 MB" in told
    assert "2 were there already" in cp(str(data), f"{session}:/workspace/data")
    here = hashlib.sha256((data / "big").read_bytes()).hexdigest()
    assert asyncio.run(seen(place, session, "data/deep/tool.sh; sha256sum < data/big")).split()[:2] == ["ran", here]

    asyncio.run(copy.entries(loaded, f"{session}:out", as_json=True))
    listed = json.loads(capfd.readouterr().out)["entries"]
    assert [(each["name"], each["kind"]) for each in listed] == [("away", "link"), ("near", "link"), ("r.csv", "file")]
    asyncio.run(copy.entries(loaded, f"{session}:out", as_json=False))
    assert "near -> r.csv" in capfd.readouterr().out
    assert asyncio.run(copy.show(loaded, f"{session}:out/r.csv")) == 0 and capfd.readouterr().out == "a,b\n"

    assert "left out: away (a link out of the folder)" in cp(f"{session}:out", str(tmp_path / "fetched"))
    assert {path.name for path in (tmp_path / "fetched").iterdir()} == {"r.csv", "near"}
    # The connection ends in the middle of the third part; the same command goes on behind the second one.
    admin, half, run = place.world.tensorlake_admin, tmp_path / f".big.{here[:16]}.part", "POST /api/v1/processes/run"
    cut = {"method": "POST", "path": "^/api/v1/processes/run$", "action": "truncate", "skip": 3, "times": 1}
    with fault(admin, cut), monkeypatch.context() as patch:
        patch.setattr(copy, "_AT_ONCE", 1)  # in the order of the parts
        assert asyncio.run(copy.copy(loaded, f"{session}:data/big", str(tmp_path))) == 1
    assert "the sandbox did not send" in capfd.readouterr().err
    assert 0 < half.stat().st_size < 2_500_000 and not (tmp_path / "big").exists()
    left, before = 2_500_000 - half.stat().st_size, int(admin.get("counts")["routes"][run])
    cp(f"{session}:data/big", str(tmp_path))
    assert (tmp_path / "big").read_bytes() == (data / "big").read_bytes() and not half.exists()
    assert int(admin.get("counts")["routes"][run]) - before == 1 + -(-left // 2**20)

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"by hand\n")))
    cp("-", f"{session}:notes.txt")
    assert asyncio.run(copy.copy(loaded, f"{session}:notes.txt", "-")) == 0
    assert capfd.readouterr().out == "by hand\n"

    for source, sink, said in (
        (f"{session}:out", "-", "a folder cannot go to standard output"),
        (f"{session}:none", str(tmp_path), "/none: No such file"),
        (str(tmp_path / "none"), f"{session}:x", f"on this machine: {tmp_path}/none: No such file"),
    ):
        assert asyncio.run(copy.copy(loaded, source, sink)) == 1
        assert said in capfd.readouterr().err
    assert asyncio.run(copy.show(loaded, f"{session}:out")) == 1
    with pytest.raises(SettingsError, match="one of both is in a sandbox"):
        asyncio.run(copy.copy(loaded, "a", "b"))


def test_a_place_is_told_from_a_path_by_its_session() -> None:
    assert copy.CopyEnd.read("sesn_01Ab:/x:y") == copy.CopyEnd("/x:y", "sesn_01Ab")
    assert copy.CopyEnd.read("sesn_01Ab:") == copy.CopyEnd(".", "sesn_01Ab")
    assert copy.CopyEnd.read("sesn_01Ab") == copy.CopyEnd(".", "sesn_01Ab")
    assert copy.CopyEnd.read("./sesn_01Ab:x") == copy.CopyEnd("./sesn_01Ab:x")
