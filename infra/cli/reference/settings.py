"""docs/reference/settings.md, from the tables of settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from infra.cli.settings_table import ALL_SECTIONS
from shared.setting_kinds import Choice, Flag, Number, Setting, Text, Texts, Whole
from shared.settings_table import Services, is_secret, settings_of

_REQUIRED = (Services.ANTHROPIC_ENVIRONMENT_ID, Services.ANTHROPIC_ENVIRONMENT_KEY, Services.TENSORLAKE_API_KEY)

_HEAD = """# Settings

Environment variables. `.env` and `.env.local` beside the Makefile count more than what a shell has exported. An empty
value counts as not set, and so does one that ends in `xxx`. Numbers may not be negative. A list has commas or spaces
between its parts.

A secret may say where it lives instead of what it is: `env:NAME`, `file:/path`, `aws-sm:NAME-OR-ARN` (with `#field` for
one field of JSON), `aws-ssm:/path` or `gcp-sm:projects/P/secrets/S`. It is read again every five minutes.

A cloud deployment hands your settings over, but chooses those marked "deployment" itself; a runtime brings those marked
"runtime".

This page is generated from `shared/settings_table.py` and the tables beside the commands.
"""


def page() -> str:
    return "\n".join([_HEAD, *_sections(), *_file()])


def _sections() -> Iterator[str]:
    for section in ALL_SECTIONS:
        yield f"## {section.__doc__}\n"
        yield "| variable | default | kind | meaning |\n|---|---|---|---|"
        for each in settings_of(section):
            whose = "" if each.set_by == "operator" else f" ({each.set_by})"
            yield f"| `{each.name}` | {default(each)} | {kind(each)} | {each.meaning}{whose} |"
        yield ""


def _file() -> Iterator[str]:
    yield "## Several environments\n"
    yield (
        "`ENVIRONMENTS_FILE` names a TOML file with one table `[environments.<id>]` for each environment, in place of\n"
        "the first two variables. What a table leaves out falls back to the plain variable.\n"
    )
    yield "| key | in place of |\n|---|---|"
    for section in ALL_SECTIONS:
        for each in settings_of(section):
            if each.file_key:
                yield f"| `{each.file_key}` | `{each.name}` |"
    yield ""


def default(setting: Setting[Any]) -> str:
    if setting in _REQUIRED:
        return "required"
    if is_secret(setting) or setting.default in ("", (), {}):
        return "none"
    if isinstance(setting, Flag):
        return f"`{str(setting.default).lower()}`"
    if isinstance(setting.default, tuple):
        return f"`{','.join(setting.default)}`"
    return f"`{setting.default}`"


def kind(setting: Setting[Any]) -> str:
    match setting:
        case Choice(choices=choices):
            return "one of " + ", ".join(f"`{choice}`" for choice in choices)
        case Whole(unit=unit) | Number(unit=unit) if unit:
            return unit
        case Text() | Texts() | _:
            return setting.kind
