"""What `make build-webhook` and `make webhook-sandbox...` do. Each returns an exit code."""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec

from infra.cli.build import why as build_failed
from infra.cli.environ import Loaded
from infra.cli.offline_console import HOW_TO_REACH_IT, console
from infra.local.admin_client import AdminClient, AdminError
from infra.local.platform import add_webhook
from infra.sandbox.account import Account
from infra.sandbox.look import AWAKE, described, look
from infra.sandbox.plan import ServerPlan, plan_from
from infra.sandbox.server import ServerFailed, bring_up, live_servers
from shared.adapters.sandbox_answers import sdk_reason
from shared.errors import SecretUnavailable, SettingsError
from shared.telemetry import LONGEST_MESSAGE
from shared.texts import printable

if TYPE_CHECKING:
    from tensorlake.sandbox import Sandbox

FOLLOW_SECONDS: Final = 1.0
RESTART_LOOKS: Final = 30
"""So many looks may find no server while another `make webhook-sandbox` puts a new one in its place."""

_P = ParamSpec("_P")


def _telling(command: Callable[Concatenate[Loaded, _P], int]) -> Callable[Concatenate[Loaded, _P], int]:
    """What the service refuses becomes a line for people, and the command ends with 1."""

    @functools.wraps(command)
    def telling(loaded: Loaded, /, *args: _P.args, **options: _P.kwargs) -> int:
        from tensorlake.sandbox import RemoteAPIError, SandboxError

        try:
            return command(loaded, *args, **options)
        except ServerFailed as error:
            _say(str(error))
        except RemoteAPIError as error:
            advice = " Build it: make build-webhook" if "not registered" in error.message else ""
            _say(f"Tensorlake answered {error.status_code}: {error.message[:300]}{advice}")
        except SandboxError as error:
            _say(f"Tensorlake could not be asked: {sdk_reason(error, Account.from_environ(loaded.environ).api_url)}")
        return 1

    return telling


def build(loaded: Loaded) -> int:
    """0 when the server's image is registered."""
    from image.server.definition import build as build_image
    from image.server.definition import server_recipe
    from image.session.definition import DEFAULT_BASE, BadRecipe
    from infra import operator_code
    from infra.sandbox.plan import IMAGE, server_lock

    key = loaded.need("TENSORLAKE_API_KEY", "create one in the Tensorlake console")
    account = Account.from_environ(loaded.environ)
    from tensorlake.image.sandbox_builder import SandboxImageError

    base = loaded.environ.get("SANDBOX_IMAGE_BASE", "").strip() or DEFAULT_BASE
    began = time.monotonic()
    try:
        recipe = server_recipe(**_given(name=loaded.environ.get(IMAGE, "").strip()), base_image=base)
        _say(f"Building {recipe.name!r} on {loaded.where}; minutes the first time on the real service ...")
        own = operator_code.read(loaded.environ)
        build_image(
            recipe,
            api_key=key,
            api_url=account.api_url,
            more=own.files,
            requirements=server_lock(own),
            emit=_say_log,
        )
    except BadRecipe as error:
        raise SettingsError(f"{error} ({IMAGE}, SANDBOX_IMAGE_BASE)") from None
    except SandboxImageError as error:
        _say(f"The build failed: {build_failed(error, loaded)}")
        return 1
    print(f"Registered {recipe.name!r} in {time.monotonic() - began:.1f} s. Next: make webhook-sandbox")
    return 0


@_telling
def up(loaded: Loaded) -> int:
    """0 when the server runs in its sandbox with this checkout's code, settings and keys."""
    plan = plan_from(loaded.environ)
    account = Account.of(plan)
    for note in plan.notes():
        _say(f"note: {note}")
    applied = bring_up(account, plan, _free_port, _say)
    url = account.url(applied.info)
    for warning in applied.warnings:
        _say(f"WARNING: {warning}")
    state = f"started ({applied.changed})" if applied.changed else "up to date, not restarted"
    print(f"{applied.info.name}: {state}\n  webhook  {url}")
    print(f"  next     {_next_step(loaded, plan, url)}")
    return 0


@_telling
def status(loaded: Loaded, as_json: bool) -> int:
    """0 where there is a server that sleeps or is healthy; 1 otherwise."""
    account = Account.from_environ(loaded.environ)
    plan: ServerPlan | None = None
    with contextlib.suppress(SettingsError, SecretUnavailable):  # looking needs less than serving
        plan = plan_from(loaded.environ)
    seen = look(account, plan)
    if as_json:
        print(json.dumps(asdict(seen) if seen is not None else None, indent=2))
    elif seen is None:
        print("There is no server sandbox. Make one: make webhook-sandbox")
    else:
        print("\n".join(described(seen)))
    return 0 if seen is not None and (not seen.awake or seen.report is not None) else 1


@_telling
def logs(loaded: Loaded, follow: bool, wake: bool) -> int:
    """The server's own lines. One that sleeps is woken only when asked to."""
    account = Account.from_environ(loaded.environ)
    info = account.find()
    if info is None:
        _say("There is no server sandbox.")
        return 1
    if info.status.value not in AWAKE and not wake:
        _say("It sleeps. To read its log it must be woken: make webhook-sandbox-logs WAKE=1")
        return 1
    handle = account.connect(info.sandbox_id)
    for line in _lines(handle, follow):
        print(printable(line, LONGEST_MESSAGE), flush=True)
    return 0


def _lines(handle: Sandbox, follow: bool) -> Iterator[str]:
    """What the server has written, and, following, what it writes, whichever process it is by then. Raises ServerFailed
    where none runs; for one that follows only after RESTART_LOOKS, since a restart has a moment without any."""
    writer: object = None
    shown = missed = 0
    while True:
        live = live_servers(handle)
        missed = 0 if live else missed + 1
        if missed > (RESTART_LOOKS if follow else 0):
            raise ServerFailed("No server runs in it: make webhook-sandbox")
        if live:
            name, pid = live[-1].managed.name, live[-1].pid
            lines = handle.get_output(name).value.lines
            if (name, pid) != writer or len(lines) < shown:
                writer, shown = (name, pid), 0
            yield from lines[shown:]
            shown = len(lines)
        if not follow:
            return
        time.sleep(FOLLOW_SECONDS)


@_telling
def remove(loaded: Loaded) -> int:
    """0 when no server sandbox is left. Sessions and their sandboxes go on."""
    account = Account.from_environ(loaded.environ)
    servers = account.servers()
    for info in servers:
        _remove_offline_webhook(loaded, account.url(info))
        account.terminate(info.sandbox_id)
        print(f"Ended {info.name}.")
    if not servers:
        print("There is no server sandbox.")
    elif not loaded.offline:
        print("Delete its webhook in the Claude Console, too.")
    return 0


def _next_step(loaded: Loaded, plan: ServerPlan, url: str) -> str:
    if not plan.settings.signing_keys:
        return (
            "in the Claude Console, create a webhook to this URL (Session lifecycle: Run started, Terminated, Deleted),"
            "\n           put its secret into .env as ANTHROPIC_WEBHOOK_SIGNING_KEY, and run make webhook-sandbox again"
        )
    if loaded.offline:
        claude = console(loaded)
        if claude is None:
            return f"no webhook is sent there: {HOW_TO_REACH_IT}, and run make webhook-sandbox again"
        _add_offline_webhook(claude, loaded.environ["ANTHROPIC_WEBHOOK_SIGNING_KEY"], url)
        return "the offline platform sends its webhooks there. Drive a session: make session"
    return "make webhook-sandbox-status; have a schedule call /poll_tick (docs/deploy/sandbox.md); make session"


def _add_offline_webhook(claude: AdminClient, key: str, url: str) -> None:
    if url not in {endpoint["url"] for endpoint in claude.get("webhooks")["data"]}:
        add_webhook(claude, url, key)


def _remove_offline_webhook(loaded: Loaded, url: str) -> None:
    claude = console(loaded)
    if claude is None:
        return
    with contextlib.suppress(AdminError):
        for endpoint in claude.get("webhooks")["data"]:
            if endpoint["url"] == url:
                claude.delete(f"webhooks/{endpoint['id']}")


def _given(**options: str) -> dict[str, str]:
    return {name: value for name, value in options.items() if value}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _say_log(event: Mapping[str, Any]) -> None:
    from infra.cli.build import progress

    if event.get("type") == "build_log":
        progress(event)
