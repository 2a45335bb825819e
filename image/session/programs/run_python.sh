# shellcheck shell=sh
# Runs a program of ours: the image's own Python ($1), which no candidate can replace, else any. $2 is its text.
own=$1 text=$2
shift 2
for python in "$own" python3 python; do
  command -v "$python" >/dev/null 2>&1 && exec "$python" -I -S -c "$text" "$@"
done
exit 127
