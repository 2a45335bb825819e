# shellcheck shell=sh
# Gives a judge an empty home of its own, and its files a name in the working directory. $1 is the folder for the home,
# $2 the one that the files are in; their paths follow. A path that is not among the files is only freed.
#
# The names are links: an interpreter looks for modules beside the file itself, not where the candidate could put some.
own=$1 files=$2
shift 2
mkdir -m 700 "$own" "$own/home" || exit 1
for path; do
  rm -rf "./$path" || exit 1
  [ -e "$files/$path" ] || continue
  case $path in */*) mkdir -p "./${path%/*}" || exit 1 ;; esac
  ln -s "$files/$path" "./$path" || exit 1
done
