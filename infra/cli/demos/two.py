"""`make demo-two`: two environments with images, egress, set-ups and keys of their own, served by one copy of the
functions. The key of one is revoked, then its queue answers nobody: the other one is served as before, and what waited
is served as soon as the trouble is over.

Everything is on this machine and ends with it. Exit code 0 only when all of that was seen to happen.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from infra.cli.demos.play import DemoFailed, play
from infra.cli.demos.screens import QuietWatcher
from infra.cli.environ import Loaded
from infra.cli.session.command import open_client, watch
from infra.cli.session.follow import Finish
from infra.cli.session.render import Line, LineStyle
from infra.cli.session.screen import Screen
from infra.local.platform import Isolation, Platform

_LONGEST_TURN: Final = 60.0
_TICK_SECONDS: Final = 2
_HANGS_SECONDS: Final = 5.0
PROMPT: Final = '$ echo "$TEAM: $(cat WELCOME)"'
WEB, DOCS = "web", "docs"


@dataclass(frozen=True, slots=True)
class Team:
    """One environment, for a team of its own. `key_file` has its key: the functions read it anew when it is refused."""

    name: str
    environment_id: str
    image: str
    allow_out: Sequence[str]
    key_file: Path

    @property
    def answer(self) -> str:
        """What PROMPT prints in a sandbox with this environment's set-up."""
        return f"{self.name}: set up for {self.name}"

    def table(self) -> str:
        """Its part of ENVIRONMENTS_FILE."""
        values: Mapping[str, str | Sequence[str]] = {
            "key": f"file:{self.key_file}",
            "image": self.image,
            "allow_out": self.allow_out,
            "setup_script": f"echo set up for {self.name} > WELCOME",
        }
        lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]  # such JSON is TOML
        return "\n".join((f"[environments.{self.environment_id}]", *lines, f'setup_env = {{ TEAM = "{self.name}" }}\n'))


@dataclass(frozen=True, slots=True)
class Served:
    """A turn that came to its end. `seconds`: from the session's creation."""

    session_id: str
    seconds: float


def run(isolation: Isolation) -> int:
    """The exit code."""
    threading.Thread(target=__import__, args=("anthropic",), daemon=True).start()

    def act(platform: Platform) -> str:
        with tempfile.TemporaryDirectory(prefix="hands-two-") as folder:
            return act_two(platform, Path(folder), Screen())

    return play(isolation, act)


def act_two(platform: Platform, folder: Path, screen: Screen) -> str:
    """All of the demo on a platform whose functions are not served yet; what was shown, in a line. `folder`: for the
    keys and the environments' file. Raises DemoFailed."""
    teams = tuple(_team(platform, folder, *each) for each in _TEAMS)
    file = folder / "environments.toml"
    file.write_text("\n".join(team.table() for team in teams), encoding="utf-8")
    functions = {"ENVIRONMENTS_FILE": str(file), "SELF_TICK_SECONDS": str(_TICK_SECONDS)}
    platform.serve_functions(environ=functions)
    screen.say(Line("Offline, on this machine only. One copy of the functions serves two environments:"))
    for team in teams:
        hosts = ", ".join(team.allow_out)
        screen.say(Line(f"  {team.name:<4}  {team.environment_id}  image {team.image}, may reach {hosts}"))
    return asyncio.run(_Demo(platform, Loaded({**platform.environ, **functions}, None), teams, screen).play())


# Their names, images, and hosts that their sandboxes may reach.
_TEAMS: Final = ((WEB, "agent-cli", ("pypi.org",)), (DOCS, "agent-cli-docs", ("docs.example",)))


def _team(platform: Platform, folder: Path, name: str, image: str, hosts: Sequence[str]) -> Team:
    from image.session.definition import build, recipe_from

    environ = {**platform.environ, "SANDBOX_IMAGE_NAME": image}
    if image != platform.environ["SANDBOX_IMAGE_NAME"]:
        build(recipe_from(environ), api_key=platform.keys.sandboxes, api_url=environ["TENSORLAKE_API_URL"])
    environment_id = environ["ANTHROPIC_ENVIRONMENT_ID"] if name == WEB else _new_environment(environ)
    team = Team(name, environment_id, image, hosts, folder / f"{name}.key")
    new_key(platform, team)
    return team


def _new_environment(environ: Mapping[str, str]) -> str:
    from anthropic import Anthropic

    with Anthropic(api_key=environ["ANTHROPIC_API_KEY"], base_url=environ["ANTHROPIC_BASE_URL"]) as client:
        return client.beta.environments.create(name=DOCS, config={"type": "self_hosted"}).id


def new_key(platform: Platform, team: Team) -> None:
    """A fresh key for the environment, where the functions read it."""
    key = platform.claude.post("keys/environment", {"environment_id": team.environment_id})["value"]
    team.key_file.touch(mode=0o600)
    team.key_file.write_text(str(key), encoding="utf-8")


class _Demo:
    def __init__(self, platform: Platform, loaded: Loaded, teams: Sequence[Team], screen: Screen) -> None:
        self._platform = platform
        self._loaded = loaded
        self._web, self._docs = teams
        self._screen = screen

    async def play(self) -> str:
        began = time.monotonic()
        self._step("A session in each:")
        both = await asyncio.gather(self._served(self._web), self._served(self._docs))
        self._apart(both)

        self._step("The key of docs is revoked. A session in each:")
        self._platform.claude.delete("keys", {"value": self._docs.key_file.read_text(encoding="utf-8")})
        async with self._waiting():
            await self._served(self._web)
            await self._refused()
            self._step("docs gets a new key, in the file that the functions read:")
            new_key(self._platform, self._docs)

        self._step(f"Each call to the queue of docs takes {_HANGS_SECONDS:g} s and fails. A session in each:")
        async with self._waiting() as waits:
            with self._hanging():
                await self._served(self._web)
                if waits.done():
                    raise DemoFailed("the session of docs was served, though its queue answers nobody")
            self._step("The queue of docs is well again:")

        self._step("\n> make ps")
        await self._ps()
        return (
            "Shown: one copy of the functions served two environments, and the trouble of one did not touch the "
            f"other; {time.monotonic() - began:.1f} s."
        )

    def _step(self, text: str) -> None:
        self._screen.say(Line(text, LineStyle.STRONG))

    async def _served(self, team: Team) -> Served:
        """One session of the team's environment, to the end of its turn."""
        quiet, began = QuietWatcher(), time.monotonic()
        async with open_client(self._loaded) as client:
            session = await client.beta.sessions.create(
                agent=self._loaded.environ["ANTHROPIC_AGENT_ID"], environment_id=team.environment_id, title=team.name
            )
            try:
                async with asyncio.timeout(_LONGEST_TURN):
                    finish = await watch(client, session.id, PROMPT, quiet, offline=True)
            except TimeoutError:
                raise DemoFailed(f"a session of {team.name} was not served within {_LONGEST_TURN:g} s") from None
        served = Served(session.id, time.monotonic() - began)
        if finish is not Finish.DONE or not any(team.answer in result.splitlines() for result in quiet.results):
            raise DemoFailed(f"a session of {team.name} did not get its own set-up: {quiet.results}")
        self._screen.say(Line(f"  {team.name:<4}  {session.id}  done in {served.seconds:.1f} s   {team.answer}"))
        return served

    @contextlib.asynccontextmanager
    async def _waiting(self) -> AsyncIterator[asyncio.Task[Served]]:
        """A session of docs that is asked for now, and has to be served once the block has ended."""
        waits = asyncio.create_task(self._served(self._docs))
        try:
            yield waits
            await waits
        finally:
            waits.cancel()
            await asyncio.wait([waits])

    async def _refused(self) -> None:
        """Until the functions have asked with the revoked key, so that it is seen what they do then."""
        path = f"/v1/environments/{self._docs.environment_id}/work/poll"

        def refused() -> bool:
            log = self._platform.claude.get("requests")["recent"]
            return any(each["path"] == path and each["status"] in (401, 403) for each in log)

        await _until(refused, "nobody asked with the revoked key")

    @contextlib.contextmanager
    def _hanging(self) -> Iterator[None]:
        """The queue of docs: every request waits, and fails then."""
        path = f"^/v1/environments/{self._docs.environment_id}/work"
        rules = [
            {"path": path, "action": "delay", "seconds": _HANGS_SECONDS},
            {"path": path, "action": "status", "status": 503},
        ]
        self._platform.claude.post("faults", rules)
        try:
            yield
        finally:
            self._platform.claude.delete("faults")

    def _apart(self, both: Sequence[Served]) -> None:
        """Two sandboxes, each of its environment's image and with its hosts."""
        boxes = {str(box["id"]): box for box in self._platform.tensorlake.get("state")["sandboxes"]}
        images = sorted(str(box["image"]) for box in boxes.values())
        if len(boxes) != len(both) or images != sorted(team.image for team in (self._web, self._docs)):
            raise DemoFailed(f"two sandboxes of two images should be there, and there are {images}")

    async def _ps(self) -> None:
        from infra.cli.fleet.ps import run as ps

        if await ps(self._loaded, everything=False, as_json=False, watch=False):
            raise DemoFailed("not all sessions could be seen")


async def _until(condition: Callable[[], Any], failure: str) -> None:
    end = time.monotonic() + _LONGEST_TURN
    while not await asyncio.to_thread(condition):
        if time.monotonic() > end:
            raise DemoFailed(failure)
        await asyncio.sleep(0.1)
