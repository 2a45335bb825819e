"""The variables that the agent's tools find: the image's own, without ours and without secrets."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # see __main__.py: this is part of the first start
if TYPE_CHECKING:
    from collections.abc import Mapping

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Whatever the image sets is meant for the agent's shell, except what is ours, what the names of secrets look like, what
# the shell sets itself, and what would run code of the image's in our own interpreter's place.
_OURS = ("HANDS_", "ANTHROPIC_", "CLAUDE_", "TENSORLAKE_", "TL_", "FUNCTIONS_")
_SECRETS = ("TOKEN", "SECRET", "PASSW", "CREDENTIAL", "COOKIE")
_KEYS = ("API", "ACCESS", "PRIVATE", "SIGNING", "ENCRYPTION", "MASTER", "AUTH")
_SHELLS = frozenset({"PWD", "OLDPWD", "SHLVL", "_", "BASH_ENV", "ENV", "PS1", "PS2"})
_WAY_OUT = frozenset({"HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "ALL_PROXY"})


def clean_environment(environ: Mapping[str, str], *, keep: str = "") -> dict[str, str]:
    """The variables for the agent's tools: the image's, without what is ours and without secrets, by name or where a
    URL holds a password. A proxy keeps its password, since it is the way out for the tools too.

    keep: one of ours that stays all the same.
    """
    kept = {name: value for name, value in environ.items() if name == keep or _for_tools(name, value)}
    kept.setdefault("PATH", _DEFAULT_PATH)
    kept.setdefault("LANG", "C.UTF-8")
    # A daemon that starts processes for another user may leave its own home here.
    if not os.access(kept.get("HOME", ""), os.W_OK):
        kept["HOME"] = _home()
    return kept


def _for_tools(name: str, value: str) -> bool:
    upper = name.upper()
    if upper in _WAY_OUT:
        return True
    if upper in _SHELLS or upper.startswith(_OURS) or _secret(upper):
        return False
    return not _password_in_url(value)


def _secret(name: str) -> bool:
    parts = name.split("_")
    return (
        any(word in name for word in _SECRETS)
        or parts[-1] in ("KEY", "KEYS")
        or any(f"{kind}KEY" in name or f"{kind}_KEY" in name for kind in _KEYS)
    )


def _password_in_url(value: str) -> bool:
    for rest in value.split("://")[1:]:
        authority = rest.split("/", 1)[0].split(maxsplit=1)[:1]
        password = "".join(authority).rpartition("@")[0].partition(":")[2]
        if password:
            return True
    return False


def _home() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # a container may run under a number without a name
        return "/"
