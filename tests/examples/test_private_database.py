"""examples/tools/postgres over a real PostgreSQL server: the agent gets answers, and not the password."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from image.session.claim import USER_VARIABLE, Exit
from tests.image.session.worker.harness import make_claim
from tests.image.session.worker.service import running
from tests.image.session.worker.test_hand_over_spy import NOBODY, sandbox_of_nobody
from tests.image.session.worker.test_private_tools import SECRET, image_with_private_tools, other_users, search
from tests.support.checkout import ROOT
from tests.support.waiting import PATIENCE, until

PROGRAMS: Final = ("postgres", "initdb", "psql")
TABLE: Final = "CREATE TABLE stock (article text PRIMARY KEY, pieces int); INSERT INTO stock VALUES ('B-7', 12)"


def program(name: str) -> str:
    """Debian keeps the server's programs off PATH, beside each other. Empty where it is not installed."""
    beside = Path(shutil.which("postgres") or "/").resolve().parent
    return shutil.which(name) or shutil.which(name, path=str(beside)) or ""


@contextlib.contextmanager
def database() -> Iterator[dict[str, str]]:
    """A server with one table, run by a user that is neither root nor an agent: variables that lead into it."""
    owner = pwd.getpwnam("daemon")
    run: Any = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": [], "cwd": "/"}
    with tempfile.TemporaryDirectory(prefix="hands-database-") as folder, socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
        chosen.close()
        data, password = f"{folder}/data", Path(folder, "password")
        password.write_text(SECRET)
        for path in (folder, password):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        made = [program("initdb"), "--pgdata", data, "--username=shop", "--auth=scram-sha-256", "--no-sync"]
        subprocess.run([*made, f"--pwfile={password}", "--no-locale"], check=True, capture_output=True, **run)
        password.unlink()
        sockets = ["-c", f"unix_socket_directories={folder}", "-c", "fsync=off", "-c", "autovacuum=off"]
        server = subprocess.Popen(
            [program("postgres"), "-D", data, "-p", str(port), "-h", "127.0.0.1", *sockets],
            stderr=subprocess.DEVNULL,
            **run,
        )
        address = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "shop", "PGDATABASE": "postgres"}
        inside = {**address, "PGPASSWORD": SECRET}
        try:

            def there() -> bool:
                asked = ["psql", "-Xqc", TABLE]
                return subprocess.run(asked, env={**os.environ, **inside}, capture_output=True).returncode == 0

            until(there, "the database does not answer")
            yield inside
        finally:
            server.send_signal(3)  # at once, without a last checkpoint
            server.wait(PATIENCE)


@other_users
@pytest.mark.skipif(not all(map(program, PROGRAMS)), reason="PostgreSQL is not installed")
def test_the_agent_reads_one_row_by_a_private_tool_and_finds_the_databases_password_nowhere() -> None:
    with database() as inside, sandbox_of_nobody() as box:
        image = image_with_private_tools(box, ROOT / "examples" / "tools" / "postgres")
        address = " ".join(f"{name}={value}" for name, value in inside.items() if name != "PGPASSWORD")
        by_hand = f"env {address} psql -Xwc 'SELECT * FROM stock' 2>&1; env {address} PGPASSWORD=shop psql -Xc '' 2>&1"
        calls: list[tuple[str, dict[str, object]]] = [
            ("in_stock", {"article": "B-7"}),
            ("in_stock", {"article": "' OR true --"}),
            ("bash", {"command": f"{search(box)}; {by_hand}"}),
        ]
        with running(tool_calls=calls, state="starting") as service:
            claim = make_claim(service.url, box.workdir, tool_secrets=inside)
            worker = box.start(claim, env={USER_VARIABLE: str(NOBODY)}, wrapper=image)
            assert worker.exit(PATIENCE) is Exit.SERVED, worker.report()
            told, injected, spied = (result["content"][0]["text"] for result in service.results)
    assert told == "B-7: 12"
    assert injected == """there is no article "' OR true --\""""
    assert json.loads(spied.splitlines()[0])["found"] == []
    assert "no password supplied" in spied and "password authentication failed" in spied
    assert SECRET not in spied
