"""The offline platform: both services on this machine, for development and tests (infra/local/README.md).

`Platform` and `Options` are its interface for programs, `AdminClient` that of its admin APIs. They are imported when
they are asked for: each service is a process of its own that begins by importing this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infra.local.admin_client import AdminClient, AdminError
    from infra.local.platform import Options, Platform
    from infra.local.process import ServiceStartError

__all__ = ["AdminClient", "AdminError", "Options", "Platform", "ServiceStartError"]

_HOMES = {
    "AdminClient": "infra.local.admin_client",
    "AdminError": "infra.local.admin_client",
    "Options": "infra.local.platform",
    "Platform": "infra.local.platform",
    "ServiceStartError": "infra.local.process",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
