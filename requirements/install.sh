#!/bin/sh
# Make the virtual environment `.venv` from a hashed lock, with the project itself in it (editable: the command
# `.venv/bin/hands`). Does nothing when it is there already and was made in this folder from this very lock, or from
# the development lock, which has all that the users' has. Needs Python 3.11 or newer with venv; no root, no Docker,
# no key. The project's own part asks no package index.
#
#   sh requirements/install.sh            to run the project
#   sh requirements/install.sh dev        to test it, too
#   PYTHON=/path/to/python3               picks the interpreter
set -eu
cd "$(dirname "$0")/.."

dev=requirements/dev.lock
lock=requirements/${1:-user}.lock
made_from=.venv/made-from.lock
made_in=.venv/made-in
here=$(pwd -P)

locked=
if cmp -s "$dev" "$made_from" || cmp -s "$lock" "$made_from"; then
    if .venv/bin/python -c 'import sys' 2>/dev/null; then
        locked=yes
    fi
fi
if [ -n "$locked" ] && [ "$(cat "$made_in" 2>/dev/null)" = "$here" ]; then
    exit 0
fi

# Settings of the caller's own Python and pip that would put files elsewhere, or leave byte code out
# (without it every import takes twice as long).
unset PYTHONDONTWRITEBYTECODE PYTHONPATH PYTHONHOME PYTHONSTARTUP PIP_TARGET PIP_PREFIX PIP_ROOT PIP_NO_COMPILE
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_REQUIRE_VIRTUALENV=0

# What is already there is not fetched, and a copied or moved checkout runs its own code.
install_project() {
    .venv/bin/python -m pip install -qq --no-index --no-deps --no-build-isolation --editable . >&2
    printf '%s\n' "$here" > "$made_in"
}

if [ -n "$locked" ]; then
    install_project
    exit 0
fi

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

can_make_environments() {
    "$1" -c 'import venv, ensurepip' 2>/dev/null
}

if [ -n "${PYTHON:-}" ] && ! new_enough "$PYTHON"; then
    echo "PYTHON=$PYTHON is not a Python 3.11 or newer that runs here." >&2
    exit 1
fi
python=
bare=
for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.14; do
    if new_enough "$candidate"; then
        if can_make_environments "$candidate"; then
            python=$candidate
            break
        fi
        bare=${bare:-$candidate}
    fi
    if [ -n "${PYTHON:-}" ]; then
        break
    fi
done
if [ -z "$python" ] && [ -n "$bare" ]; then
    version=$("$bare" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "$bare cannot create virtual environments. On Debian and Ubuntu: apt-get install python$version-venv" >&2
    exit 1
elif [ -z "$python" ]; then
    found=$(python3 --version 2>/dev/null || echo "no python3")
    echo "Python 3.11 or newer is needed; found: $found." >&2
    echo "Install one (Debian, Ubuntu: apt-get install python3 python3-venv; macOS: brew install python@3.13)" >&2
    echo "or name one: make PYTHON=/path/to/python3.12" >&2
    exit 1
fi

echo "Setting up .venv with $("$python" --version) from $lock (once; about a minute on a fresh machine) ..." >&2
rm -f "$made_from" "$made_in"
.venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
.venv/bin/python -m pip install -qq --require-hashes --requirement "$lock" >&2
cp "$lock" "$made_from"
install_project
echo "Set-up is done." >&2
