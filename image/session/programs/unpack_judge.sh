# shellcheck shell=sh
# Puts a judge's files where nothing changes them. $1 is the folder for them, $2 the archive.
mkdir -m 755 "$1" && tar -xf "$2" -C "$1" && chmod -R a-w,a+rX "$1"
