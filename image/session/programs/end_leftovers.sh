# shellcheck shell=sh
# Ends with 0 where nothing of the user's runs any more, 8 where its processes cannot be told from others, 9 where one
# is left or cannot be seen.
alone || exit 8
sweep || exit 9
