"""`python -m infra.local.tensorlake`: the offline sandbox service in its own process."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.local.process import serve
from infra.local.tensorlake.app import Application
from infra.local.tensorlake.isolation import IsolationError
from infra.local.tensorlake.platform import TensorlakePlatform
from infra.local.tensorlake.settings import TensorlakeSettings

EXIT_NO_ISOLATION = 3
EXIT_NO_ROOM = 4


def options(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m infra.local.tensorlake", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--data-dir", type=Path, help="where sandboxes live (default: a temporary directory)")
    parser.add_argument("--isolation", choices=["auto", "overlay", "copy", "plain"], default="auto")
    parser.add_argument("--image-root", type=Path, help="a folder with the root that sandboxes have")
    parser.add_argument(
        "--api-key",
        default=os.environ.get("OFFLINE_TENSORLAKE_API_KEY"),
        help="the only key accepted (default: any; better set as OFFLINE_TENSORLAKE_API_KEY)",
    )
    parser.add_argument("--settings", default="{}", help="knobs as JSON, as PATCH /_admin/settings takes them")
    parser.add_argument("--die-with-parent", action="store_true", help="end when standard input closes")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    given = options(argv)
    settings = TensorlakeSettings.model_validate_json(given.settings)
    token = os.environ.get("OFFLINE_ADMIN_TOKEN") or secrets.token_urlsafe(24)

    async def open_platform() -> TensorlakePlatform:
        try:
            return await TensorlakePlatform.open(
                given.isolation, settings, given.api_key, given.data_dir, given.image_root
            )
        except IsolationError as error:
            # Raised, it would come with the server's traceback, and what is wrong is the machine or a flag.
            print(error, file=sys.stderr, flush=True)
            os._exit(EXIT_NO_ISOLATION)
        except OSError as error:
            where = given.data_dir or f"{tempfile.gettempdir()} (TMPDIR)"
            print(
                f"the sandboxes cannot live in {where}: {error.strerror or type(error).__name__}. "
                "Name another folder, with room: --data-dir",
                file=sys.stderr,
                flush=True,
            )
            os._exit(EXIT_NO_ROOM)

    app = Application(open_platform, token)

    def ready(url: str) -> Mapping[str, Any]:
        if app.platform is None:
            return {}
        app.platform.url = url
        return {"isolation": app.platform.isolation.report()}

    return serve(
        app,
        host=given.host,
        port=given.port,
        admin_token=token,
        die_with_parent=given.die_with_parent,
        ready=ready,
        on_exit=app.stop_streams,
        websockets=True,
    )


if __name__ == "__main__":
    sys.exit(main())
