"""`python -m infra.local.claude`: the offline Claude side in its own process.

Secrets are better given in the environment than in the argument list:
LOCAL_CLAUDE_API_KEY, LOCAL_CLAUDE_ENVIRONMENT_KEY, LOCAL_CLAUDE_SIGNING_KEY, LOCAL_CLAUDE_ADMIN_TOKEN.

A configuration file (YAML) may hold `settings` (see knobs.py), `faults` and `latency` (see infra/local/faults.py) and
`script` (see scripts.py). The ready line carries `environment_id` and `agent_id` if an environment key was given.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from infra.local.claude.admin import change_knobs
from infra.local.claude.app import build_app
from infra.local.claude.brain import Brain, load_brain
from infra.local.claude.errors import ClaudeApiError
from infra.local.claude.knobs import Knobs
from infra.local.claude.platform import ClaudePlatform
from infra.local.claude.scripted import ScriptedBrain
from infra.local.claude.scripts import Script, load_script, problems
from infra.local.faults import FaultRule, LatencyRule
from infra.local.process import serve

EXIT_BAD_OPTIONS = 2
_SECTIONS = {"settings", "faults", "latency", "script"}


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    try:
        platform, ready = build(options, os.environ)
    except (ValueError, OSError, ClaudeApiError) as error:
        reason = problems(error) if isinstance(error, ValueError) else str(error)
        print(f"infra.local.claude: {reason}", file=sys.stderr)
        return EXIT_BAD_OPTIONS
    token = os.environ.get("LOCAL_CLAUDE_ADMIN_TOKEN") or secrets.token_urlsafe(24)
    return serve(
        build_app(platform, token),
        port=options.port,
        host=options.host,
        admin_token=token,
        die_with_parent=options.die_with_parent,
        ready=lambda url: ready,
        on_exit=platform.hang_up,
        date_header=False,  # RequestFrame's
    )


def build(options: argparse.Namespace, environ: Mapping[str, str]) -> tuple[ClaudePlatform, dict[str, Any]]:
    """The platform as the options want it, and what the ready line adds. Raises ValueError."""
    config = _config(options.config)
    knobs = Knobs()
    change_knobs(knobs, dict(config.get("settings", {})))
    given = {"lease_ttl": options.lease_ttl, "startup_lease": options.startup_lease}
    change_knobs(knobs, {name: value for name, value in given.items() if value is not None})
    platform = ClaudePlatform(knobs=knobs, brain=_brain(options, config), workspace_id=options.workspace_id)
    for rule in config.get("faults", []):
        platform.faults.add(FaultRule.model_validate(rule))
    platform.faults.set_latency([LatencyRule.model_validate(rule) for rule in config.get("latency", [])])
    if options.latency:
        platform.faults.set_latency(options.latency)
    return platform, _furnish(platform, options, environ)


def _furnish(platform: ClaudePlatform, options: argparse.Namespace, environ: Mapping[str, str]) -> dict[str, Any]:
    ready: dict[str, Any] = {}
    api_key = options.api_key or environ.get("LOCAL_CLAUDE_API_KEY")
    if api_key:
        platform.keyring.add_api_key(api_key)
    environment_key = options.environment_key or environ.get("LOCAL_CLAUDE_ENVIRONMENT_KEY")
    if environment_key:
        environment, agent = platform.furnish(
            environment_key=environment_key,
            environment_id=options.environment_id,
            agent_id=options.agent_id,
        )
        ready |= {"environment_id": environment.id, "agent_id": agent.id}
    if options.webhook_url:
        key = options.signing_key or environ.get("LOCAL_CLAUDE_SIGNING_KEY")
        if not key:
            raise ValueError("--webhook-url needs LOCAL_CLAUDE_SIGNING_KEY or --signing-key")
        types = None if options.webhook_events == "all" else options.webhook_events.split(",")
        platform.webhooks.add_endpoint(options.webhook_url, key, types)
    return ready


def _brain(options: argparse.Namespace, config: Mapping[str, Any]) -> Brain:
    if options.brain:
        return load_brain(options.brain)
    if options.script:
        return ScriptedBrain(load_script(options.script.read_text()))
    return ScriptedBrain(Script.model_validate(config.get("script", {})))


def _config(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    if not isinstance(content, dict) or set(content) - _SECTIONS:
        raise ValueError(f"{path}: expected the sections {', '.join(sorted(_SECTIONS))}")
    return content


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m infra.local.claude", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=0, help="0: a free one")
    add("--die-with-parent", action="store_true", help="end when standard input ends")
    add("--config", type=Path, help="YAML file, see above")
    add("--lease-ttl", type=float, help="seconds")
    add("--startup-lease", type=float, help="seconds; without it a start-up lease never lapses")
    add("--latency", type=float, default=0.0, help="seconds added to every round trip")
    add("--brain", help="module:Class instead of the scripted brain")
    add("--script", type=Path, help="YAML script for the scripted brain")
    add("--api-key", help="better: LOCAL_CLAUDE_API_KEY")
    add("--environment-key", help="makes a ready environment and agent; better: LOCAL_CLAUDE_ENVIRONMENT_KEY")
    add("--environment-id", help="id of the ready environment")
    add("--agent-id", help="id of the ready agent")
    add("--webhook-url", help="endpoint for webhooks")
    add("--webhook-events", default="session.status_run_started", help="types, by comma, or: all")
    add("--signing-key", help="better: LOCAL_CLAUDE_SIGNING_KEY")
    add("--workspace-id", default="wrkspc_offline")
    return parser


if __name__ == "__main__":
    sys.exit(main())
