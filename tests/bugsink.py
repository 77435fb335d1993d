"""What the stack's Bugsink has stored."""

import json
import os
import sqlite3
from contextlib import closing

from deploy.local.layout import Stack

EVENT = "SELECT data FROM events_event WHERE json_extract(data, '$.tags.' || ?) = ? ORDER BY digested_at DESC LIMIT 1"


def event(tag: str, value: str) -> dict | None:
    """The latest event with this tag, as the SDK sent it."""
    (file,) = Stack(os.environ["STACK"]).data("bugsink").glob("[0-9]*.sqlite3")  # its name is the version's
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)) as database:
        row = database.execute(EVENT, [tag, value]).fetchone()
    return row and json.loads(row[0])
