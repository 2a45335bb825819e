"""What all demos share: the offline platform around one act, and what is said where the act was not seen."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from infra.cli import network
from infra.cli.session.follow import FeedBroken, FeedRefused
from infra.local.admin_client import AdminError
from infra.local.platform import Isolation, Options, Platform
from infra.local.process import ServiceStartError
from shared.errors import HandsError


class DemoFailed(Exception):
    """Something that should have been seen was not. The text says what."""


def play(isolation: Isolation, act: Callable[[Platform], str]) -> int:
    """Run `act` on an offline platform of its own; what it returns is printed. 0 where it was shown, 1 where not, 130
    for ctrl-C. Nothing that was started outlives the call."""
    network.prepare(os.environ, ())  # all of it is on this machine
    try:
        with Platform(Options(isolation=isolation)) as platform:
            shown = act(platform)
    except KeyboardInterrupt:
        print("\nStopped; nothing is left running.", file=sys.stderr)
        return 130
    except (DemoFailed, ServiceStartError, AdminError, FeedBroken, FeedRefused, HandsError) as error:
        print(f"✗ The demo could not be shown: {error}", file=sys.stderr)
        return 1
    print(f"{shown} Everything that was started has ended.")
    return 0
