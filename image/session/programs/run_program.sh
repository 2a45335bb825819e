# shellcheck shell=sh
# Runs a program once; its outputs go to files of which the ends are printed. $1 marks this run, $2 is the folder for
# the files, $3 its standard input, $4 the most bytes of each output; the program and its arguments follow.
#
# The mark is in the program's environment alone, so that neither this shell nor what the service wraps around it is
# taken for something left over.
mark=$1 out=$2/race-$1 input=$3 most=$4
shift 4
mkdir -m 700 "$out" || exit 126
env RACE_RUN="$mark" "$@" <"$input" >"$out/out" 2>"$out/err"
status=$?
if alone; then
  sweep
else
  for _ in 1 2 3; do
    found=
    # shellcheck disable=SC2013  # paths of /proc have no blanks
    for file in $(grep -lsF "RACE_RUN=$mark" /proc/[0-9]*/environ 2>/dev/null); do
      process=${file#/proc/}
      kill -KILL "${process%/environ}" 2>/dev/null && found=1
    done
    [ -n "$found" ] || break
  done
fi
tail -c "$most" "$out/out"
tail -c "$most" "$out/err" >&2
rm -rf "$out"
exit "$status"
