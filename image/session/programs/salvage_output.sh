# shellcheck shell=sh
# What a program wrote before it was killed for its time. $1 is the mark of its run, $2 the folder, $3 the most bytes.
out=$2/race-$1
if alone; then sweep; fi
tail -c "$3" "$out/out"
tail -c "$3" "$out/err" >&2
rm -rf "$out"
