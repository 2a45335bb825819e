"""`python -m infra.local` (`make up`): the offline platform in the foreground, until ctrl-C.

Exit codes: 0 after ctrl-C or SIGTERM, 1 when a service ended by itself, 2 for a taken port or a wrong option.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from infra.local import discovery
from infra.local.platform import CLAUDE_ADMIN, TENSORLAKE_ADMIN, Options, Platform
from infra.local.process import EXIT_PORT_IN_USE, ServiceStartError

CHECKOUT: Final = Path(__file__).resolve().parents[2]
FLAGS: Final[Mapping[str, Mapping[str, Any]]] = {
    "--claude-port": {"type": int, "default": 0, "help": "of the Claude side; 0: a free one"},
    "--tensorlake-port": {"type": int, "default": 0, "help": "of the sandboxes' side; 0: a free one"},
    "--isolation": {
        "choices": ["auto", "overlay", "copy", "plain"],
        "default": "auto",
        "help": "how sandboxes are kept apart",
    },
    "--data-dir": {"type": Path, "help": "where sandboxes live (default: a temporary folder)"},
    "--image-root": {"type": Path, "help": "a folder with the root that sandboxes have (docs/offline.md)"},
    "--script": {"type": Path, "help": "YAML script for the scripted brain"},
    "--latency": {"type": float, "default": 0.0, "help": "seconds added to every round trip"},
    "--lease-ttl": {"type": float, "help": "for how many seconds a heartbeat keeps a work item"},
    "--certification": {"type": Path, "help": "behave as the service of this report of `make certify`"},
}
"""Options of the command line, as argparse takes them."""
_LOOK_SECONDS: Final = 0.5
_BUILD_LOG_SECONDS: Final = 1.0


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    ending = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.set())
    began = time.monotonic()
    try:
        with Platform(options) as platform, discovery.announced(CHECKOUT, platform.environ) as file:
            platform.tensorlake.patch("settings", {"build_log_seconds": _BUILD_LOG_SECONDS})  # the own image is built
            print(_banner(platform, file, time.monotonic() - began), flush=True)
            while not ending.wait(_LOOK_SECONDS):
                if not platform.alive():
                    print(f"A service ended by itself:\n{platform.why_stopped()}", file=sys.stderr)
                    return 1
            print("\nStopping the offline platform and all its sandboxes ...", flush=True)
    except ServiceStartError as error:
        print(error, file=sys.stderr)
        return EXIT_PORT_IN_USE
    except discovery.NoRoom as error:
        print(error, file=sys.stderr)
        return EXIT_PORT_IN_USE
    return 0


def _banner(platform: Platform, file: Path, seconds: float) -> str:
    claude, tensorlake = platform.urls
    isolation = platform.isolation
    shown = file.relative_to(CHECKOUT)
    other = "" if file == discovery.default_file(CHECKOUT) else f"HANDS_OFFLINE_ENV={shown} "
    lines = [
        f"The offline platform runs (started in {seconds:.1f} s). Ctrl-C ends it and everything in it.",
        f"  Claude Managed Agents side   {claude}",
        f"  Tensorlake sandboxes side    {tensorlake}",
        f"  sandboxes                    {_isolation_line(isolation)}",
        "  the brain                    a script, not a model; knows the quickstart's prompt and lines such as `$ ls`",
        "",
        f"Variables that point a program at it, also in {shown} (with the keys, which are worth nothing elsewhere):",
        *(f"  {name}={_shown(name, value)}" for name, value in platform.environ.items()),
        f"  {discovery.OFFLINE_FILE}={file.absolute()}   (this one alone is enough, in another checkout, too)",
        "",
        "In other terminals:",
        f"  {other}make serve      or: {other}make poll",
        f"  {other}make session PROMPT=\"create hello.txt with 'hi' then read it back\"",
    ]
    return "\n".join(lines)


def _isolation_line(isolation: Mapping[str, Any]) -> str:
    if isolation["isolated"]:
        root = isolation["image_root"]
        return f"{isolation['summary']}{f'; their root is {root}' if root else ''}"
    why = "; ".join(f"{level}: {finding}" for level, finding in dict(isolation["findings"]).items() if level != "plain")
    return f"*** NOT ISOLATED *** they are plain processes of yours in a folder ({why or 'as asked for'})"


def _shown(name: str, value: str) -> str:
    secret = name in (CLAUDE_ADMIN, TENSORLAKE_ADMIN) or name.endswith(("_KEY", "_TOKEN"))
    return "(see the file)" if secret else value


def _options(argv: list[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m infra.local", description=__doc__)
    for flag, declared in FLAGS.items():
        parser.add_argument(flag, **declared)
    given = parser.parse_args(argv)
    return Options(
        claude_port=given.claude_port,
        tensorlake_port=given.tensorlake_port,
        isolation=given.isolation,
        data_dir=given.data_dir,
        image_root=given.image_root,
        script=given.script,
        latency=given.latency,
        lease_ttl=given.lease_ttl,
        certification=given.certification,
    )


if __name__ == "__main__":
    sys.exit(main())
