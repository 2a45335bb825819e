"""Settings: present, well-formed, each key in its own variable, and nothing that leads an SDK elsewhere.

These checks ask nobody. They run first, and where they find an error nothing is sent anywhere: a key in the wrong
variable would reach the wrong service.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from infra.cli.doctor.context import is_environment_id, is_loopback
from infra.cli.doctor.findings import Finding, Say, error, info, ok, warning
from infra.cli.network import PROXIES
from infra.cli.settings_table import ALL
from shared.errors import SecretUnavailable, SettingsError
from shared.secret import SCHEMES, SHORTEST_SECRET, Secret
from shared.setting_kinds import Address, Key, KeyKind, Keys
from shared.settings import Settings
from shared.settings_table import Services, is_secret, settings_of

_MOST_ERRORS: Final = 40
_SECRETS: Final = {each.name: each for each in ALL if isinstance(each, Key | Keys)}
_SERVICES: Final = tuple(each for each in settings_of(Services) if isinstance(each, Address))
_STAND_INS: Final = {
    each.name: "missing"
    for each in (
        *(Services.ANTHROPIC_ENVIRONMENT_ID, Services.ANTHROPIC_ENVIRONMENT_KEY),
        Services.TENSORLAKE_API_KEY,
    )
}
_LEADING: Final = {
    "TENSORLAKE_SANDBOX_API_URL": "moves the Tensorlake SDK's lifecycle calls to another address",
    "TENSORLAKE_SANDBOX_PROXY_URL": "moves the Tensorlake SDK's calls into sandboxes to another address",
    "ANTHROPIC_CUSTOM_HEADERS": "adds headers to every call of the Anthropic SDK",
}
_ELSEWHERE: Final = ("NO_PROXY", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "ANTHROPIC_AUTH_TOKEN")
"""What others than the settings read."""
_CLOSE: Final = 0.75  # SANDBOX_MEM to SANDBOX_MEMORY_MB has 0.79
_MOST_NAMES: Final = 20

_SHAPES: Final = (
    ("sk-ant-api", KeyKind.API),
    ("sk-ant-oat", KeyKind.ENVIRONMENT),
    ("sk-ant-env", KeyKind.ENVIRONMENT),
    ("sk-ant-", KeyKind.ANTHROPIC),
    ("whsec_", KeyKind.SIGNING),
    ("tl_", KeyKind.TENSORLAKE),
    ("tl-", KeyKind.TENSORLAKE),
)


def kind_of(value: str) -> KeyKind:
    return next((kind for shape, kind in _SHAPES if value.strip().startswith(shape)), KeyKind.UNKNOWN)


def secrets_of(environ: Mapping[str, str], say: Say) -> dict[str, tuple[str, ...]]:
    """The credentials by variable, read from where a variable says they live. Says which cannot be read.

    Blocks for as long as a secret store takes.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name, setting in _SECRETS.items():
        text = environ.get(name, "").strip()
        try:
            revealed = Secret(name, text).reveal() if text else ""
        except SecretUnavailable as problem:
            say(error("HANDS101", str(problem)))
            continue
        parts = tuple(revealed.replace(",", " ").split()) if isinstance(setting, Keys) else (revealed,)
        if any(parts):
            found[name] = parts
    return found


def check_settings(environ: Mapping[str, str], say: Say) -> Settings | None:
    """Every variable that is missing or wrong, not only the first one; None where there is any."""
    trial = dict(environ)
    problems: list[Finding] = []
    settings: Settings | None = None
    while settings is None and len(problems) < _MOST_ERRORS:
        try:
            settings = Settings.from_environ(trial)
        except SettingsError as problem:
            found = re.match(r"[A-Z_]+", str(problem))
            name = found[0] if found is not None else ""
            problems.append(error("HANDS103" if name == "TENSORLAKE_API_URL" else "HANDS101", str(problem)))
            if name not in trial and name not in _STAND_INS:
                break
            trial.pop(name, None)  # what else is wrong?
            if name in _STAND_INS:
                trial[name] = _STAND_INS[name]
    if not problems and settings is not None:
        problems += [
            error("HANDS101", f"{source}: an environment's id begins with env_, and this does not look like one")
            for environment in settings.environments.values()
            if not is_environment_id(environment.id)
            for source in [_id_source(environ)]
        ]
    for problem_found in problems:
        say(problem_found)
    if problems:
        return None
    say(ok("HANDS101", "all that a server needs is set and well-formed"))
    if settings is not None:
        say(ok("HANDS103", f"the Tensorlake key goes to {urlsplit(settings.tensorlake_url).hostname} alone"))
    return settings


def check_names(files: Mapping[str, str], say: Say) -> None:
    """The names in `.env` and `.env.local` that are no setting: one that is almost a setting's is a slip of the pen.
    Any other may be for a program beside this one, or for what a setting names as `env:NAME`."""
    known = {each.name for each in ALL} | {*_LEADING, *PROXIES, *_ELSEWHERE}
    known |= {value.strip().removeprefix("env:") for value in files.values() if value.strip().startswith("env:")}
    strange = []
    for name in sorted(set(files) - known):
        close = difflib.get_close_matches(name.upper(), known, n=1, cutoff=_CLOSE)
        if close:
            say(warning("HANDS107", f"{name} is no setting and has no effect: is {close[0]} meant?"))
        else:
            strange.append(name)
    if strange:
        more = f" and {len(strange) - _MOST_NAMES} more" if len(strange) > _MOST_NAMES else ""
        say(info("HANDS107", f"no setting has the name {', '.join(strange[:_MOST_NAMES])}{more}, and none reads it"))
    elif files and known >= set(files):
        say(ok("HANDS107", "each name in .env and .env.local is a setting's"))


def check_kinds(secrets: Mapping[str, tuple[str, ...]], environ: Mapping[str, str], say: Say) -> None:
    """Which variable holds which kind of key; never a character of one."""
    wrong: list[Finding] = []
    for name, values in secrets.items():
        for value in values:
            wrong += _misplaced(name, value)
    holders: dict[str, list[str]] = {}
    for name, values in secrets.items():
        for value in set(values):
            holders.setdefault(value, []).append(name)
    for names in holders.values():
        if len(names) > 1:
            wrong.append(error("HANDS102", f"{' and '.join(sorted(names))} hold the same value"))
    for name in (each.name for each in ALL if not is_secret(each)):
        parts = re.split(r"[\s,/?&=@]+", environ.get(name, ""))
        if any(kind_of(part) not in (KeyKind.UNKNOWN, KeyKind.TENSORLAKE) or part in holders for part in parts if part):
            wrong.append(error("HANDS102", f"{name} holds a key, where no secret belongs"))
    for each in wrong:
        say(each)
    if secrets and not wrong:
        say(ok("HANDS102", f"each of {len(secrets)} credentials is of its variable's kind"))


def check_redirections(environ: Mapping[str, str], say: Say) -> None:
    """What the SDKs read by themselves (docs/wire/tensorlake.md#25-environment-variables); `check_settings` refuses the
    hosts that are traps."""
    settled = True
    for name, effect in _LEADING.items():
        if environ.get(name, "").strip():
            settled = False
            say(warning("HANDS104", f"{name} is set: it {effect}"))
    proxies = sorted({name for name in PROXIES if environ.get(name, "").strip()})
    urls = [each.text(environ) or each.default for each in _SERVICES]
    spared = (environ.get("NO_PROXY") or environ.get("no_proxy") or "").replace(",", " ").split()
    for url in urls:
        host = urlsplit(url).hostname or ""
        if proxies and is_loopback(url) and host not in spared and "*" not in spared:
            settled = False
            say(error("HANDS104", f"{' and '.join(proxies)} would take calls to {host} away, which NO_PROXY lacks"))
            break
    if settled:
        say(ok("HANDS104", "no variable leads the SDKs elsewhere" + (" (a proxy is set)" if proxies else "")))


def check_doors(secrets: Mapping[str, tuple[str, ...]], say: Say) -> None:
    """The two credentials that a server may do without."""
    if "ANTHROPIC_WEBHOOK_SIGNING_KEY" in secrets:
        say(ok("HANDS105", "a webhook signing key is set"))
    else:
        say(info("HANDS105", "ANTHROPIC_WEBHOOK_SIGNING_KEY is not set: this machine can poll, and serve no webhook"))
    token = secrets.get("FUNCTIONS_TOKEN", ("",))[0]
    if not token:
        say(info("HANDS106", "FUNCTIONS_TOKEN is not set: /poll_tick and /fork_best_of_n are closed"))
    elif len(token) < SHORTEST_SECRET:
        say(warning("HANDS106", f"FUNCTIONS_TOKEN has fewer than {SHORTEST_SECRET} characters"))
    else:
        say(ok("HANDS106", "FUNCTIONS_TOKEN is set and long enough"))


def _id_source(environ: Mapping[str, str]) -> str:
    return "ENVIRONMENTS_FILE" if environ.get("ENVIRONMENTS_FILE", "").strip() else "ANTHROPIC_ENVIRONMENT_ID"


def _misplaced(name: str, value: str) -> list[Finding]:
    wanted, kind = _SECRETS[name].holds, kind_of(value)
    if value != value.strip("\"'") or re.search(r"\s", value):
        return [error("HANDS102", f"{name} has quotes or white space in its value")]
    if kind is wanted:
        return []
    if kind is KeyKind.UNKNOWN:
        if wanted is KeyKind.TENSORLAKE or value.partition(":")[0] in SCHEMES:
            return []
        return [warning("HANDS102", f"{name} does not look like {wanted.value}")]
    return [error("HANDS102", f"{name} holds {kind.value}" + _instead(wanted))]


def _instead(wanted: KeyKind) -> str:
    return " where a random text of your own belongs" if wanted is KeyKind.UNKNOWN else f", not {wanted.value}"
