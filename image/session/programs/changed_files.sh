# shellcheck shell=sh
# Says which files of the working directory have changed since $1 (Unix time), $2 lines at most. In a repository: against
# the last commit from before, with what no commit has. Elsewhere: by the times of files, the newest first. The first
# line says which. git asks no program that the repository names; a name with a control character is quoted.
export GIT_CEILING_DIRECTORIES="${PWD%/*}"
g() { git -c core.fsmonitor=false -c core.quotePath=false --no-optional-locks "$@" 2>/dev/null; }
if g rev-parse --is-inside-work-tree >/dev/null && base=$(g rev-list -1 --before="@$1" HEAD) && [ -n "$base" ]; then
  echo git
  {
    g diff --no-ext-diff --no-textconv --no-renames --name-status --relative "$base" -- .
    g ls-files --others --exclude-standard | sed 's/^/?\t/'
  } | head -n "$2"
else
  echo times
  find . -xdev \( -name .git -o -name node_modules -o -name __pycache__ -o -name .venv \) -prune -o \
    -type f -newermt "@$1" -printf '%T@\t%P\n' 2>/dev/null | head -n 5000 | sort -rn | head -n "$2"
fi
