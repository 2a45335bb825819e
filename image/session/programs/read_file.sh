# shellcheck shell=sh
# Prints a file as base64. $1 is its path below the working directory, $2 the most bytes that it may have.
#
# Not `base64 -w`, which not every base64 knows; a line break now and then, because nothing promises how long a line of
# output may be. `head` bounds what is read of a file that grows meanwhile.
path=$(readlink -f "./$1") && [ -f "$path" ] || exit 2
here=$(pwd -P)
case $path in "${here%/}"/*) ;; *) exit 3 ;; esac
[ "$(wc -c <"$path")" -le "$2" ] || exit 4
head -c "$2" <"$path" | base64 | tr -d '\n' | fold -w 8192
