# shellcheck shell=sh
# What changes in the working directory, as a patch in git's format: `base FOLDER` before, `patch FOLDER BYTES` after,
# which prints at most so many bytes as base64. FOLDER is a new one of its own. Ends with 3 where there is no git; `base`
# ends with 5 where repositories in folders of the working directory are left out.
#
# The repository is in FOLDER: the workspace's own is neither read nor written, and no configuration, hook, filter or
# pager of anybody counts. What the workspace's .gitignore names is left out.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
command -v git >/dev/null || exit 3
ours() {
    env -i PATH="$PATH" HOME="$folder" LC_ALL=C GIT_DIR="$folder/git" GIT_WORK_TREE="$(pwd -P)" \
        GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null \
        git -c safe.directory='*' -c core.hooksPath=/dev/null -c core.fsmonitor=false -c core.compression=0 \
        -c core.autocrlf=false -c core.attributesFile=/dev/null -c core.excludesFile=/dev/null -c gc.auto=0 "$@"
}
# An unreadable file costs itself alone.
look() { ours add -A --ignore-errors . >/dev/null 2>&1 || [ "$?" -eq 1 ] || exit 4; }
folder=$2
if [ "$1" = base ]; then
    mkdir -m 700 "$folder" && ours init -q && look && ours write-tree >"$folder/tree" || exit 4
    ours ls-files --stage | grep -q '^160000 ' && exit 5
    exit 0
fi
look
ours diff --cached --no-color --no-ext-diff --no-textconv --no-renames "$(cat "$folder/tree")" |
    head -c "$3" | base64 | tr -d '\n' | fold -w 8192
