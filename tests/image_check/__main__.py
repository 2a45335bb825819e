"""The three images' Dockerfiles, carried out for real without Docker, and what comes of them used
(`make image-check`): the sessions', the functions' and the one of the server that lives in a sandbox.

Exit codes: 0 all is as it should be, 1 something is not, 2 this machine does not let anybody check.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from image.server import definition as server_definition
from image.server.code import code_digest, source_files
from image.server.definition import BAKED, BROUGHT, PYTHON, SERVER_USER, folder_name, server_recipe
from image.session.archive import build_archive, digest
from image.session.claim import AGENT_USER, STATE_DIRECTORY, WORKER_PYTHON, modules_path, worker_path
from image.session.definition import DEFAULT_GIT_NAME, Recipe, Variant, stage
from infra.sandbox.server import server_arguments
from shared.reports import ItemEnd
from shared.service import Service
from tests.image_check.findings import RootFinding
from tests.image_check.on_the_platform import on_the_platform
from tests.image_check.root import CannotCheck, bootstrap, require, require_packages
from tests.image_check.served import RootHost
from tests.image_check.steps import BuiltRoot, StepFailed, build, to_stderr
from tests.support.ports import free_port
from tests.support.waiting import until
from tests.support.world import ROOT, OfflineWorld, offline_world

_SECONDS: Final = 120.0
_SLIM: Final = ("bash", "curl", "git", "ps", "rg", "unzip")
_FULL: Final = (*_SLIM, "cc", "make", "file", "git-lfs", "jq", "less", "ssh", "rsync", "sqlite3", "tree", "wget", "zip")
_NODE: Final = ("node", "npm", "npx")


def session_image(built: BuiltRoot, variant: Variant) -> Iterator[RootFinding]:
    """What the dispatcher, the worker, doctor and an agent rely on, as the agent's user sees it."""

    def said(script: str) -> str:
        done = built.root.run(
            ["/bin/bash", "-c", script], env=built.environ, user=built.user, folder=built.folder, timeout=_SECONDS
        )
        return done.stdout.strip()

    archive = digest(build_archive())
    worker = worker_path(archive)
    locked = re.search(r"^anthropic==(\S+)", (ROOT / "requirements/worker.lock").read_text(), re.MULTILINE)
    assert locked is not None
    yield RootFinding("the user", AGENT_USER, said("id -un"))
    yield RootFinding("the worker's content", archive, said(f"sha256sum < {worker} | cut -d' ' -f1"))
    yield RootFinding("the worker is root's", "root 644", said(f"stat -c '%U %a' {worker}"))
    yield RootFinding("its Python runs and is not read", "root 111", said(f"stat -c '%U %a' {WORKER_PYTHON}"))
    compiled = (
        f"{WORKER_PYTHON} -I -v {worker} 2>&1 < /dev/null | grep -c 'code object from.*{modules_path(archive)}/.*pyc'"
    )
    yield RootFinding("its byte code is used", "yes", said(f"test $({compiled}) -gt 5 && echo yes"))
    wanted = f"{WORKER_PYTHON} -I -c 'import importlib.metadata as m; print(m.version(\"anthropic\"))'"
    yield RootFinding("its SDK is the locked one", locked[1], said(wanted))
    yield RootFinding("the state directory is the agent's", AGENT_USER, said(f"stat -c %U {STATE_DIRECTORY}"))
    yield RootFinding(
        "a file of root's stays so", "no", said(f"(echo x > {worker}) 2> /dev/null && echo yes || echo no")
    )
    commit = "cd $(mktemp -d) && git init -q . && git commit -q --allow-empty -m x && git log --format=%an"
    yield RootFinding("git commits", DEFAULT_GIT_NAME, said(commit))
    programs = (*_FULL, *_NODE) if variant is Variant.FULL else _SLIM
    missing = said(f"for each in {' '.join(programs)}; do command -v $each > /dev/null || echo $each; done")
    yield RootFinding(f"{len(programs)} programs are on PATH, missing", "", missing)
    login = said(f'for each in {" ".join(programs)}; do bash -lc "command -v $each" > /dev/null || echo $each; done')
    yield RootFinding("  and in a login shell, missing", "", login)


def served(built: BuiltRoot, place: Path) -> Iterator[RootFinding]:
    """A session of the offline platform, brought to its worker by the real dispatcher: the worker starts as root and
    becomes the agent's user."""
    with offline_world() as world:
        here = world.place()
        session = here.session("$ id -un; pwd; echo hi > hello.txt; cat hello.txt")
        host = RootHost(built, place)

        async def play() -> None:
            service = Service(here.settings)
            try:
                dispatcher = replace(service.dispatcher(here.environment), host=host)
                report = await dispatcher.drain()
                ends = [
                    f"{item.end.value} {item.reason}" for item in report.items if item.end is not ItemEnd.HANDED_OVER
                ]
                assert not ends, ends
                await asyncio.to_thread(until, lambda: here.done(session), "the session is not served")
            finally:
                await service.aclose()

        try:
            asyncio.run(play())
            results = _results(world, session)
        finally:
            host.end()
        yield RootFinding("a session's call, served", f"{AGENT_USER} /workspace hi", " ".join(results.split()))
        owner = built.root.within("/workspace/hello.txt").stat().st_uid
        yield RootFinding("its file is the agent's", str(built.root.ids(AGENT_USER)[0]), str(owner))


def _results(world: OfflineWorld, session: str) -> str:
    texts: list[str] = []
    for event in world.api.beta.sessions.events.list(session):
        if event.type == "user.tool_result":
            texts += [block.text for block in event.content or () if block.type == "text"]
    return "\n".join(texts)


def functions_image(built: BuiltRoot, place: Path) -> Iterator[RootFinding]:
    """Its own CMD, as its own user, answers."""
    user = f"{built.user}:{built.user}" if built.user.isdigit() else built.user
    port = free_port()
    with _answering(built, built.command, user, port, place):
        yield RootFinding("/healthz of the functions", "200", "200")
    there = built.root.run(["/bin/sh", "-c", "test -w /opt/hands && echo yes || echo no"], env=built.env, user=user)
    yield RootFinding("their user may write their code", "no", there.stdout.strip())


def server_image(built: BuiltRoot, folder: str, place: Path) -> Iterator[RootFinding]:
    """The server for a sandbox, started on the code that the image has, as infra/sandbox/server.py starts it."""
    port = free_port()
    with _answering(built, [PYTHON, *server_arguments(folder, "127.0.0.1", port)], built.user, port, place):
        yield RootFinding("/healthz of the server for a sandbox", "200", "200")

    def said(script: str) -> str:
        done = built.root.run(["/bin/sh", "-c", script], env=built.environ, user=built.user, folder=built.folder)
        return done.stdout.strip()

    yield RootFinding("its user", SERVER_USER, said("id -un"))
    sources = f"find {folder} -name '*.py' | wc -l"
    yield RootFinding("each file of its code has byte code", said(sources), said(sources.replace("*.py", "*.pyc")))
    yield RootFinding("its user may write the image's code", "no", said(f"test -w {folder} && echo yes || echo no"))
    yield RootFinding("  and newer code beside it", "yes", said(f"test -w {BROUGHT} && echo yes || echo no"))


@contextlib.contextmanager
def _answering(built: BuiltRoot, command: Sequence[str], user: str, port: int, place: Path) -> Iterator[None]:
    """A server that answers 200 to /healthz for as long as the block lasts."""
    settings = {"ANTHROPIC_ENVIRONMENT_ID": "env_1", "ANTHROPIC_ENVIRONMENT_KEY": "k", "TENSORLAKE_API_KEY": "k"}
    settings |= {"ANTHROPIC_WEBHOOK_SIGNING_KEY": "whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQ=", "FUNCTIONS_TOKEN": "t" * 40}
    with (place / "server.log").open("wb") as log:
        server = subprocess.Popen(
            built.root.command(command, user=user, folder=built.folder),
            env={**built.env, **settings, "PORT": str(port)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def answers() -> bool:
        assert server.poll() is None, (place / "server.log").read_text()[-2000:]
        try:
            with opener.open(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        until(answers, "the server does not answer")
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def main() -> int:
    parser = argparse.ArgumentParser(prog="make image-check", description=__doc__)
    parser.add_argument("--base", type=Path, help="a folder with a Debian root that has Python 3.11 or newer with venv")
    parser.add_argument("--suite", default="trixie", help="without --base: what mmdebstrap makes one of")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian", help="and from where")
    parser.add_argument("--keep", type=Path, help="where the session image's root stays, for make up IMAGE_ROOT=")
    parser.add_argument("--variant", type=Variant, default=Variant.FULL, choices=list(Variant))
    chosen = parser.parse_args()
    began = time.monotonic()
    findings: list[RootFinding] = []
    place = Path(tempfile.mkdtemp(prefix="image-check-")).resolve()
    try:
        if chosen.keep is not None and chosen.keep.exists():
            raise CannotCheck(f"{chosen.keep} is there already; --keep makes a new folder")
        require()
        base = chosen.base or place / "base"
        if chosen.base is None:
            bootstrap(base, chosen.suite, chosen.mirror)
            to_stderr(f"a base of {chosen.suite}: {time.monotonic() - began:.0f} s")
        require_packages(base.resolve(), place)
        for finding in _findings(base.resolve(), place, chosen.variant, chosen.keep):
            findings.append(finding)
            wanted = "" if finding.good else f" (wanted: {finding.wanted or '-'})"
            print(f"{'ok ' if finding.good else 'BAD'} {finding.what}: {finding.seen or '-'}{wanted}", flush=True)
    except CannotCheck as error:
        print(f"image-check: not on this machine: {error}", file=sys.stderr)
        return 2
    except StepFailed as error:
        print(f"image-check: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(place, ignore_errors=True)
    bad = sum(not finding.good for finding in findings)
    print(f"{len(findings)} checks, {bad} bad, {time.monotonic() - began:.0f} s")
    return 1 if bad else 0


def megabytes(folder: Path) -> int:
    """On the disk, in millions of bytes."""
    said = subprocess.run(["du", "-sxB1", str(folder)], capture_output=True, text=True, check=True).stdout
    return int(said.split()[0]) // 1_000_000


def _findings(base: Path, place: Path, variant: Variant, keep: Path | None) -> Iterator[RootFinding]:
    context = place / "context"
    context.mkdir()
    dockerfile = stage(Recipe("agent-cli", variant=variant), context)
    (place / "session").mkdir()
    began = time.monotonic()
    built = build(dockerfile.read_text(), context, base, place / "session", to_stderr)
    grown = megabytes(built.root.directory) - megabytes(base)
    to_stderr(f"the session image, {variant}: {time.monotonic() - began:.0f} s, {grown} MB more than its base")
    if keep is not None:
        built.root.kept(keep)
    yield from session_image(built, variant)
    yield from on_the_platform(built, place)
    yield from served(built, place)
    (place / "functions").mkdir()
    text = (ROOT / "Dockerfile").read_text()
    yield from functions_image(build(text, ROOT, base, place / "functions", to_stderr), place)
    for folder in ("server", "server-context"):
        (place / folder).mkdir()
    context = place / "server-context"
    text = server_definition.stage(server_recipe(), context).read_text()
    yield from server_image(
        build(text, context, base, place / "server", to_stderr),
        f"{BAKED}/{folder_name(code_digest(source_files()))}",
        place,
    )


if __name__ == "__main__":
    sys.exit(main())
