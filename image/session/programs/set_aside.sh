# shellcheck shell=sh
# Moves what stands where a judge's files will be. $1 is where to, paths follow; the folders that are going to be made
# for them are noted.
aside=$1
shift
mkdir -m 700 "$aside" || exit 1
number=0
for path; do
  number=$((number + 1))
  if [ -e "./$path" ] || [ -L "./$path" ]; then mv "./$path" "$aside/$number" || exit 1; fi
  folder=$(dirname "./$path")
  while [ ! -e "$folder" ]; do
    echo "$folder" >>"$aside/made"
    folder=$(dirname "$folder")
  done
done
