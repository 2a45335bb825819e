# shellcheck shell=sh
# Becomes a shell of the user $1 in the folder $2. The service starts a terminal's program as the image's user, which may
# be root; the agent's is the one to be.
cd "$2" 2>/dev/null || :
shell=$(command -v bash || command -v sh)
if [ "$(id -u)" = 0 ] && [ -n "$1" ] && id "$1" >/dev/null 2>&1; then exec su -s "$shell" "$1"; fi
exec "$shell" -i
