"""A public tool: it runs as the agent's user, in the agent's working folder, and sees what the agent sees.

SANDBOX_TOOLS=examples/tools/public
make tool-test NAME=count_words INPUT='{"path": "README.md"}'
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from anthropic import beta_tool
from anthropic.lib.tools import ToolError


@beta_tool
def count_words(path: str, most: int = 5) -> str:
    """Counts the words of a text file and names the most frequent ones.

    Args:
        path: the file, below the working folder
        most: how many words to name
    """
    try:
        words = Path(path).read_text(encoding="utf-8").lower().split()
    except OSError as error:
        raise ToolError(f"{path} cannot be read: {error.strerror}") from None
    common = ", ".join(f"{word} ({count})" for word, count in Counter(words).most_common(most))
    return f"{len(words)} words. Most frequent: {common}"
