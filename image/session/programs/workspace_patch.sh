# shellcheck shell=sh
# What changes in the working directory, as a patch in git's format: `base FOLDER` before, `patch FOLDER BYTES` after,
# which prints at most so many bytes as base64. FOLDER is a new one of its own. Ends with 3 where there is no git; `base`
# ends with 5 where there are more repositories in folders than are looked at.
#
# The repositories are in FOLDER, one for the working directory and one for each folder in it that is a repository: the
# workspace's own are neither read nor written, and no configuration, hook, filter or pager of anybody counts. What a
# .gitignore names is left out.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
command -v git >/dev/null || exit 3
most=20
break='
'
tab=$(printf '\t')
# $1 is the number of the repository; its folder is the current one.
ours() {
    of=$1
    shift
    env -i PATH="$PATH" HOME="$folder" LC_ALL=C GIT_DIR="$folder/$of" GIT_WORK_TREE="$(pwd -P)" \
        GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null \
        git -c safe.directory='*' -c core.hooksPath=/dev/null -c core.fsmonitor=false -c core.compression=0 \
        -c core.autocrlf=false -c core.attributesFile=/dev/null -c core.excludesFile=/dev/null -c gc.auto=0 "$@"
}
# An unreadable file costs itself alone.
look() { ours "$1" add -A --ignore-errors . >/dev/null 2>&1 || [ "$?" -eq 1 ] || exit 4; }
# Goes there if it is still a folder of the working directory, and no link to another.
enter() { cd "$here/$1" 2>/dev/null && [ "$(pwd -P)" = "$here${1:+/$1}" ]; }
# A repository in a folder is an entry of the index that git looks into by itself, with the configuration and filters of
# whoever made it: so it is in the tree and not in the index.
forget() {
    ours "$1" ls-files -s | sed -n "s/^160000 [0-9a-f]* 0$tab/0 0000000000000000000000000000000000000000$tab/p" |
        ours "$1" update-index --index-info
}
keep() {
    (enter "$1" && ours "$2" init -q && look "$2" && ours "$2" write-tree >"$folder/$2.tree" && forget "$2") || exit 4
}
# $1 is the folder, $2 its number, then what is somebody else's to compare.
compare() (
    at=$1 number=$2
    shift 2
    enter "$at" || exit 0
    look "$number"
    ours "$number" diff --cached --no-color --no-ext-diff --no-textconv --no-renames \
        --src-prefix="a/${at:+$at/}" --dst-prefix="b/${at:+$at/}" "$(cat "$folder/$number.tree")" -- . "$@"
)
here=$(pwd -P) folder=$2
if [ "$1" = base ]; then
    mkdir -m 700 "$folder" || exit 4
    find . -name .git ! -path "*$break*" -prune -print | sed -n 's|^\./\(.*\)/\.git$|\1|p' | sort >"$folder/all"
    head -n "$most" "$folder/all" >"$folder/nested"
    number=0
    keep "" 0
    while IFS= read -r nested; do
        number=$((number + 1))
        keep "$nested" "$number"
    done <"$folder/nested"
    [ "$(wc -l <"$folder/all")" -le "$most" ] || exit 5
    exit 0
fi
[ -r "$folder/0.tree" ] && [ -r "$folder/nested" ] || exit 4
set -- "$3"
while IFS= read -r nested; do set -- "$@" ":(exclude,literal)$nested"; done <"$folder/nested"
bytes=$1
shift
{
    compare "" 0 "$@"
    number=0
    while IFS= read -r nested; do
        number=$((number + 1))
        compare "$nested" "$number" </dev/null
    done <"$folder/nested"
} | head -c "$bytes" | base64 | tr -d '\n' | fold -w 8192
