# shellcheck shell=sh
# Makes the folder $1 of the archive $1.tar.gz, in one step, once its code is compiled and can be imported by the
# Python $2.
set -e
rm -rf "$1.partial"
mkdir "$1.partial"
tar -xzf "$1.tar.gz" -C "$1.partial"
rm -f "$1.tar.gz"
"$2" -m compileall -q "$1.partial/functions" "$1.partial/shared" "$1.partial/image"
cd "$1.partial"
"$2" -c 'import functions.asgi'
cd ..
mv "$1.partial" "$1"
