"""The shell text that ends whatever a candidate left running in its sandbox.

A program can leave its process group, its session and its environment behind, but without privileges not its user. So
where the sandbox's user is not root, all of this user's processes are killed except the shell that does it and its
ancestors: at once where none of those is the user's own (a program that forks for ever outruns any list), then one by
one until /proc shows none, for a few seconds. In a copy that was made with its processes (memory, live) the
source's own end with them.

Root's processes cannot be told from the sandbox's own. There, and where the service gave the shell another user or
another root than was asked for (a level of the offline platform that isolates nothing: all of a person's processes
would be meant), `alone` is false.
"""

from __future__ import annotations

import shlex
from typing import Final

STILL_RUNNING: Final = 9  # how CLEAR ends where something could not be killed
_ROUNDS: Final = 60

# A working directory without its first slash, because the offline platform's plain level rewrites absolute paths.
_FUNCTIONS: Final = f"""
alone() {{
  [ "$(id -u)" != 0 ] && {{ [ "$(id -un)" = "$user" ] || [ "$(id -u)" = "$user" ]; }} && [ "/$below" -ef . ]
}}
fact() {{
  value=
  while read -r key found rest; do
    if [ "$key" = "$1:" ]; then value=$found; return 0; fi
  done 2>/dev/null <"$2/status"
  return 1
}}
sweep() {{
  spared=" $$ " at_once=yes own=$(id -u)
  fact PPid "/proc/$$"
  while [ "${{value:-0}}" -gt 0 ]; do
    parent=$value
    spared="$spared$parent "
    fact Uid "/proc/$parent" && [ "$parent" != 1 ] && [ "$value" = "$own" ] && at_once=no
    fact PPid "/proc/$parent" || break
  done
  round=0
  while [ "$round" -lt {_ROUNDS} ]; do
    round=$((round + 1)) alive=
    [ "$at_once" = no ] || kill -s KILL -- -1 2>/dev/null
    for process in /proc/[0-9]*; do
      case $spared in *" ${{process#/proc/}} "*) continue ;; esac
      fact State "$process" && [ "$value" != Z ] || continue
      kill -s KILL "${{process#/proc/}}" 2>/dev/null && alive=yes
    done
    [ -n "$alive" ] || return 0
    sleep 0.05 2>/dev/null || sleep 1
  done
  return 1
}}
"""
CLEAR: Final = f"""
alone || exit 0
sweep || exit {STILL_RUNNING}
"""


def functions(user: str, workdir: str) -> str:
    """Shell text that defines `alone`, whether every process of this user is the race's to end, and `sweep`, which
    ends them and fails where one is left. Neither may be called in a subshell: it would end the shell around it."""
    return f"user={shlex.quote(user)} below={shlex.quote(workdir.lstrip('/'))}{_FUNCTIONS}"
