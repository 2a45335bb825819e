"""What a shell says about proxies and certificates, made harmless or named before an SDK trips over it.

Both SDKs read these variables by themselves, even for addresses on this machine (docs/wire/tensorlake.md, section
2.5), and fail deep inside a library where one cannot work. tests/infra/cli/test_network.py
"""

from __future__ import annotations

import importlib.util
import os
import ssl
from collections.abc import Iterable, MutableMapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from shared.errors import SettingsError

PROXIES: Final = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
_SPARED: Final = ("NO_PROXY", "no_proxy")
_CERTIFICATES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_THIS_MACHINE: Final = ("127.0.0.1", "localhost", "::1")
_SCHEMES: Final = ("http", "https", "socks5", "socks5h")


def prepare(environ: MutableMapping[str, str], addresses: Iterable[str]) -> None:
    """Make `environ` fit for calls to these addresses. Raises SettingsError, whose text names the variable and never
    its value: a proxy's address may hold a password.

    Where every address is on this machine, proxies and certificates have no part in it, and their variables go.
    Otherwise this machine is spared from the proxies, and each variable is checked.
    """
    if all(is_this_machine(address) for address in addresses):
        for name in (*PROXIES, *_SPARED, *_CERTIFICATES):
            environ.pop(name, None)
        return
    _check_certificates(environ)
    set_ones = [name for name in PROXIES if environ.get(name, "").strip()]
    for name in set_ones:
        _check_proxy(name, environ[name].strip())
    if set_ones or any(environ.get(name, "").strip() for name in _SPARED):
        environ.update(dict.fromkeys(_SPARED, _spared(environ)))


def is_this_machine(address: str) -> bool:
    """Is this URL's host this machine by name or number?"""
    try:
        return urlsplit(address).hostname in _THIS_MACHINE
    except ValueError:
        return False


def _spared(environ: MutableMapping[str, str]) -> str:
    """NO_PROXY with this machine in it. Some tools write `[::1]`, which both SDKs misread."""
    given = (environ.get("NO_PROXY", "").strip() or environ.get("no_proxy", "")).replace(",", " ").split()
    hosts = [host[1:-1] if host.startswith("[") and host.endswith("]") else host for host in given]
    return ",".join(dict.fromkeys((*hosts, *_THIS_MACHINE)))


def _check_proxy(name: str, value: str) -> None:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        usable = parts.scheme in _SCHEMES and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise SettingsError(f"{name} is no proxy's address: write http://HOST:PORT, or unset it")
    if parts.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise SettingsError(
            f"{name} names a SOCKS proxy, for which a package is missing here: use an HTTP proxy or unset it, "
            "or install it: .venv/bin/python -m pip install socksio"
        )


def _check_certificates(environ: MutableMapping[str, str]) -> None:
    file = environ.get("SSL_CERT_FILE", "").strip()
    folder = environ.get("SSL_CERT_DIR", "").strip()
    if file:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=file)
        except (OSError, ssl.SSLError) as error:
            why = "is not there" if isinstance(error, FileNotFoundError) else "holds no certificate that can be read"
            raise SettingsError(f"the file that SSL_CERT_FILE names {why}: correct the variable, or unset it") from None
    if folder and not any(Path(each).is_dir() for each in folder.split(os.pathsep)):
        raise SettingsError("the folder that SSL_CERT_DIR names is not there: correct the variable, or unset it")
