"""A private tool over a PostgreSQL server, whose password the agent cannot find.

    SANDBOX_PRIVATE_TOOLS=examples/tools/postgres
    SANDBOX_PACKAGES=postgresql-client
    SANDBOX_ALLOW_OUT=db.example.com
    TOOL_SECRETS="PGHOST=env:SHOP_HOST PGDATABASE=env:SHOP_DATABASE PGUSER=env:SHOP_USER PGPASSWORD=env:SHOP_PASSWORD"

psql takes these variables by itself. An address with the password in it would be an argument, which every user of the
sandbox can read. Give the account no more than this statement needs: SELECT on one table.
"""

from __future__ import annotations

import subprocess

from anthropic import beta_tool
from anthropic.lib.tools import ToolError

_PSQL = ("psql", "--no-psqlrc", "--no-password", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1")


@beta_tool
def in_stock(article: str) -> str:
    """Says how many pieces of an article are in stock.

    Args:
        article: the article's exact number, such as B-7
    """
    asked = "SELECT pieces FROM stock WHERE article = :'article'"  # psql quotes it
    done = subprocess.run(
        [*_PSQL, f"--set=article={article}"], input=asked, capture_output=True, text=True, timeout=20, check=False
    )
    if done.returncode != 0:
        raise ToolError("the stock cannot be read now")
    if not done.stdout.strip():
        raise ToolError(f"there is no article {article!r}")
    return f"{article}: {done.stdout.strip()}"
