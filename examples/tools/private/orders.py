"""Private tools over a database that the agent cannot reach: not its file, not where it is, not what is in other rows.

    SANDBOX_PRIVATE_TOOLS=examples/tools/private
    TOOL_SECRETS="ORDERS_DATABASE=env:ORDERS_DATABASE"
    ORDERS_DATABASE=/var/lib/hands-tools/orders.sqlite make tool-test NAME=order_status INPUT='{"order_id": "A-1001"}'

A tool is where access ends: `order_status` answers for one exact number, and no input becomes part of a statement.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from anthropic import beta_tool
from anthropic.lib.tools import ToolError

_ROWS = (("A-1001", "shipped", "Ada"), ("A-1002", "packed", "Grace"))


@contextlib.contextmanager
def _database() -> Iterator[sqlite3.Connection]:
    """Made with two rows where there is none yet; yours is elsewhere."""
    path = Path(os.environ["ORDERS_DATABASE"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, status TEXT, customer TEXT)")
        connection.executemany("INSERT OR IGNORE INTO orders VALUES (?, ?, ?)", _ROWS)
        yield connection


@beta_tool
def order_status(order_id: str) -> str:
    """Says how far an order is: packed, shipped or delivered.

    Args:
        order_id: the order's exact number, such as A-1001
    """
    with _database() as connection:
        row = connection.execute("SELECT status FROM orders WHERE id = ?", (order_id,)).fetchone()
    if row is None:
        raise ToolError(f"there is no order {order_id!r}")
    return f"{order_id}: {row[0]}"


@beta_tool
def mark_delivered(order_id: str) -> str:
    """Notes that an order has been delivered.

    Args:
        order_id: the order's exact number, such as A-1001
    """
    with _database() as connection:
        done = connection.execute("UPDATE orders SET status = 'delivered' WHERE id = ?", (order_id,))
    if done.rowcount == 0:
        raise ToolError(f"there is no order {order_id!r}")
    return f"{order_id}: delivered"
