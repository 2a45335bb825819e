"""What a server in a sandbox is told: the settings that are set, and each secret by its value.

A reference (`file:`, `env:`, a cloud's store) means nothing there. Secrets of several environments and of tools go
under names of their own, which the settings refer to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from functions.server.scheduler import EVERY_SECONDS
from infra import telemetry
from shared import environments_file
from shared.errors import SettingsError
from shared.secret import Secret
from shared.session_setup import inlined, inlined_table
from shared.settings import Settings
from shared.settings_table import handed_over

_ALSO: Final = ("NO_PROXY", "no_proxy")


def check(settings: Settings) -> None:
    """Raises SettingsError for what such a server can never do."""
    if settings.drain_mode == "enqueue":
        raise SettingsError("DRAIN_MODE=enqueue is for functions: a server in a sandbox drains by itself")
    if any(each.setup_stores for each in settings.environments.values()):
        raise SettingsError("SETUP_STORES: a server in a sandbox has no credentials for s3:// and gs://")
    if settings.outputs is not None and (scheme := urlsplit(settings.outputs.to).scheme) not in ("https", "http"):
        raise SettingsError(f"OUTPUTS_TO: a server in a sandbox cannot write to {scheme}:; use https://")


def told(settings: Settings, environ: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Variables, and the text of ENVIRONMENTS_FILE where there are several environments: no key is in it. Raises
    SettingsError, and SecretUnavailable for a secret that cannot be read here."""
    variables = handed_over({**environ, **inlined(environ)}, "operator", "deployment")
    variables |= {name: environ[name] for name in _ALSO if environ.get(name, "").strip()}
    variables |= telemetry.variables(environ) | telemetry.secrets(environ)
    variables |= {name: secret.reveal() for name, secret in _secrets(settings) if secret is not None}
    if settings.signing_keys:
        variables["ANTHROPIC_WEBHOOK_SIGNING_KEY"] = ",".join(key.reveal() for key in settings.signing_keys)
    variables.setdefault("SELF_TICK_SECONDS", f"{EVERY_SECONDS:g}")
    variables.setdefault("LOG_FORMAT", "json")
    file = variables.pop("ENVIRONMENTS_FILE", "")
    variables.pop("TOOL_SECRETS", None)
    if not file:
        (environment,) = settings.environments.values()
        variables["ANTHROPIC_ENVIRONMENT_KEY"] = environment.key.reveal()
        if environment.tool_secrets:
            variables["TOOL_SECRETS"] = _kept(environment.tool_secrets, variables)
        return variables, ""
    variables.pop("ANTHROPIC_ENVIRONMENT_ID", None)
    tables = environments_file.tables(file)
    for number, (id_, environment) in enumerate(settings.environments.items()):
        variables[f"HANDS_ENVIRONMENT_KEY_{number}"] = environment.key.reveal()
        tables[id_] = inlined_table(f"environment {id_}", tables[id_])
        tables[id_] |= {"key": f"env:HANDS_ENVIRONMENT_KEY_{number}"}
        tables[id_] |= {"tool_secrets": _kept(environment.tool_secrets, variables)}
    return variables, _toml(tables)


def _secrets(settings: Settings) -> Iterator[tuple[str, Secret | None]]:
    yield "TENSORLAKE_API_KEY", settings.tensorlake_key
    yield "FUNCTIONS_TOKEN", settings.functions_token
    yield "CAPABILITY_KEY", settings.capability_key
    yield "RACE_WEBHOOK_SIGNING_KEY", settings.races.webhook_key
    yield "OUTPUTS_SIGNATURE", settings.outputs.signature if settings.outputs is not None else None


def _kept(secrets: Mapping[str, Secret], variables: dict[str, str]) -> str:
    """Puts each into a variable of its own; TOOL_SECRETS with references to these."""
    references = []
    for name, secret in secrets.items():
        kept = f"HANDS_TOOL_SECRET_{sum(each.startswith('HANDS_TOOL_SECRET_') for each in variables)}"
        variables[kept] = secret.reveal()
        references.append(f"{name}=env:{kept}")
    return " ".join(references)


def _toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    lines: list[str] = []
    for id_, table in tables.items():
        lines.append(f"[environments.{_value(id_)}]")
        lines += [f"{name} = {_value(value)}" for name, value in table.items()]
    return "\n".join([*lines, ""])


def _value(value: Any) -> str:
    """JSON's texts, numbers and lists are TOML's, too; a table in a line is not."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_value(name)} = {_value(each)}' for name, each in value.items())} }}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
