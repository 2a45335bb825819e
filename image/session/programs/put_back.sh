# shellcheck shell=sh
# Undoes set_aside.sh, and what was written at the paths since; the same arguments.
aside=$1
shift
number=0
for path; do
  number=$((number + 1))
  rm -rf "./$path" || exit 1
  if [ -e "$aside/$number" ] || [ -L "$aside/$number" ]; then mv "$aside/$number" "./$path" || exit 1; fi
done
if [ -f "$aside/made" ]; then
  while IFS= read -r folder; do rmdir "$folder" 2>/dev/null; done <"$aside/made"
fi
rm -rf "$aside"
