"""The demos as `make demo` and its like play them, but in this process, and with all that they start forked: an
interpreter for each service and each worker takes most of what a demo takes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from unittest import mock

from typer.testing import CliRunner, Result

from infra.cli.__main__ import app
from infra.cli.demos import play
from infra.local.platform import Options, Platform
from tests.support.preloaded import forked_service, launcher


def play_demo(*arguments: str, environ: Mapping[str, str]) -> Result:
    """What `hands demo` with these arguments says, where the environment has these variables and no others."""
    with mock.patch.object(play, "Platform", _forked), mock.patch.dict(os.environ, environ, clear=True):
        return CliRunner().invoke(app, ["demo", *arguments])


def _forked(options: Options) -> Platform:
    return Platform(replace(options, tensorlake={"launcher": launcher(), **options.tensorlake}), forked_service)
