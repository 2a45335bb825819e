# shellcheck shell=sh
# Ends all whose environment has the word $1: a command with all that it started. 0 where nothing of it is left, 9 where
# something is. A command that has not begun yet is waited for, for a second.
round=0
while [ "$round" -lt 20 ]; do
  round=$((round + 1))
  found=
  for each in /proc/[0-9]*; do
    grep -qs -e "$1" "$each/environ" && found="$found ${each#/proc/}"
  done
  if [ -n "$found" ]; then
    # shellcheck disable=SC2086
    kill -KILL $found 2>/dev/null
    seen=1
  elif [ -n "${seen-}" ]; then
    exit 0
  else
    seen=1
    sleep 1
  fi
done
exit 9
