#!/bin/sh
# Compile the locks anew from pyproject.toml: what is pinned already stays unless it no longer fits.
# `sh requirements/compile.sh --upgrade` takes the newest versions.
#
# The locks hold names, versions and hashes, and name no package index. A mirror or a folder of wheels of this machine
# is left out of it, since it may have the files of one platform only, and the hashes must cover every platform.
set -eu
cd "$(dirname "$0")/.."
unset UV_INDEX UV_INDEX_URL UV_DEFAULT_INDEX UV_EXTRA_INDEX_URL UV_FIND_LINKS UV_NO_INDEX

compile() {
    .venv/bin/python -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header "$@"
}

compile "$@" --all-extras --group dev pyproject.toml -o requirements/dev.lock
compile "$@" --all-extras --group build -c requirements/dev.lock pyproject.toml -o requirements/user.lock
compile "$@" -c requirements/dev.lock pyproject.toml -o requirements/runtime.lock
# Without a source file, a group stands for itself alone: the worker needs one library and none of ours.
compile "$@" -c requirements/dev.lock --group worker -o requirements/worker.lock
compile "$@" -c requirements/dev.lock --group mcp -o requirements/mcp.lock
# The session image's Node, a hashed wheel like everything else there.
compile "$@" --group node -o requirements/node.lock
