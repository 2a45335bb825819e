# shellcheck shell=sh
# Ends whatever a candidate left running in its sandbox. $1 is the sandbox's user, $2 the working directory; what
# follows belongs to the program that stands behind this one.
#
# A program can leave its process group, its session and its environment behind, but without privileges not its user.
# So all processes of this user are killed except the shell that does it and its ancestors: at once where none of those
# is the user's own (a program that forks without end outruns any list), then one by one until /proc shows none.
#
# Root's processes cannot be told from the sandbox's own. There, and where the service gave the shell another user or
# another root than was asked for (a level of the offline platform that isolates nothing: all of a person's processes
# would be meant), `alone` fails.
user=$1 below=${2#/}
shift 2

# Whether every process of this user is the race's to end. The working directory is compared without its first slash,
# because the offline platform's plain level rewrites absolute paths.
alone() {
  [ "$(id -u)" != 0 ] && { [ "$(id -un)" = "$user" ] || [ "$(id -u)" = "$user" ]; } && [ "/$below" -ef . ]
}

# The first word of line $1 of the status file in folder $2, as $value.
fact() {
  value=
  while read -r key found _; do
    if [ "$key" = "$1:" ]; then
      value=$found
      return 0
    fi
  done 2>/dev/null <"$2/status"
  return 1
}

# Fails where one is left, and where /proc does not show even this shell: an empty list would then prove nothing. Not
# for a subshell, whose parent it would kill.
sweep() {
  spared=" $$ " at_once=yes own=$(id -u)
  fact PPid "/proc/$$" || return 1
  while [ "${value:-0}" -gt 0 ]; do
    parent=$value
    spared="$spared$parent "
    fact Uid "/proc/$parent" && [ "$parent" != 1 ] && [ "$value" = "$own" ] && at_once=no
    fact PPid "/proc/$parent" || break
  done
  round=0
  while [ "$round" -lt 60 ]; do
    round=$((round + 1)) alive=
    [ "$at_once" = no ] || kill -s KILL -- -1 2>/dev/null
    for process in /proc/[0-9]*; do
      case $spared in *" ${process#/proc/} "*) continue ;; esac
      fact State "$process" && [ "$value" != Z ] || continue
      kill -s KILL "${process#/proc/}" 2>/dev/null && alive=yes
    done
    [ -n "$alive" ] || return 0
    sleep 0.05 2>/dev/null || sleep 1
  done
  return 1
}
