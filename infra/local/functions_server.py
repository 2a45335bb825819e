"""`python -m infra.local.functions_server`: the functions, served in the frame of the offline services.

The app is `functions.asgi:app`, unchanged; the frame adds the ready line, the free port and the end with the parent.
"""

from __future__ import annotations

import argparse
import sys

from infra.local.process import serve


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.local.functions_server")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--die-with-parent", action="store_true", help="end when standard input closes")
    given = parser.parse_args(argv)
    from functions.asgi import app

    return serve(app, port=given.port, admin_token="", die_with_parent=given.die_with_parent)


if __name__ == "__main__":
    sys.exit(main())
