"""Django's Postgres backend with some things added.

- `"logical"` in a statement becomes the current shard's schema (see shardmap.shards); and if a shard's schema is not
  there, the error says so.
- No answer is waited for longer than DATABASE_ANSWER_SECONDS, or `answering_within` less. Postgres' and pgbouncer's own
  time-outs need a server that is alive; libpq has none for a peer whose kernel still acknowledges.
- The health check of a kept connection costs no query: a peer that closed it has made its socket readable.
"""

import re
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import psycopg2
from django.conf import settings
from django.db import ProgrammingError
from django.db.backends.postgresql import base
from psycopg2 import errorcodes, extensions

from shardmap.shards import PLACEHOLDER, ShardMoved, current_shard, schema_name

CONNECT_SECONDS = 2
LOOKING_SECONDS = 30  # for the primary among a server's hosts, of which one may be silent: tcp_user_timeout ends that
NOT_THERE = (
    errorcodes.UNDEFINED_TABLE,
    errorcodes.UNDEFINED_FUNCTION,
    errorcodes.INVALID_SCHEMA_NAME,
    errorcodes.INSUFFICIENT_PRIVILEGE,  # where a shard is being copied to
)
SCHEMA = re.compile(r"\bshard(\d{4})\b")
CONNECTED = (extensions.STATUS_READY, extensions.STATUS_BEGIN)

_patience: ContextVar[float | None] = ContextVar("answer_seconds", default=None)


@contextmanager
def answering_within(seconds: float) -> Iterator[None]:
    """Inside, a database that does not accept a connection, or answer, in this time is an OperationalError."""
    token = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(token)


def _swap_schema(execute, sql, params, many, context):
    if PLACEHOLDER in sql:
        sql = sql.replace(PLACEHOLDER, f'"{schema_name(current_shard())}"')
    try:
        return execute(sql, params, many, context)
    except ProgrammingError as error:
        if getattr(error.__cause__, "pgcode", None) in NOT_THERE and (schema := SCHEMA.search(str(error))):
            raise ShardMoved(int(schema[1])) from error
        raise


def _wait(connection) -> None:
    """psycopg2 calls this to wait for the server; when it raises, psycopg2 closes the connection."""
    connecting = LOOKING_SECONDS if "target_session_attrs" in connection.dsn else CONNECT_SECONDS
    usual = settings.DATABASE_ANSWER_SECONDS if connection.status in CONNECTED else connecting
    seconds = _patience.get() or usual
    deadline = time.monotonic() + seconds
    while (state := connection.poll()) != extensions.POLL_OK:
        poller = select.poll()
        poller.register(connection.fileno(), select.POLLIN if state == extensions.POLL_READ else select.POLLOUT)
        if not poller.poll(max(0, deadline - time.monotonic()) * 1000):
            raise psycopg2.OperationalError(f"no answer from the database within {seconds} s")


extensions.set_wait_callback(_wait)


class DatabaseWrapper(base.DatabaseWrapper):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.execute_wrappers.append(_swap_schema)

    def is_usable(self) -> bool:
        if self.connection is None or self.connection.closed:
            return False
        poller = select.poll()
        poller.register(self.connection.fileno(), select.POLLIN)
        # An idle connection has nothing to say; one that does brings its end (or an error, which is as good).
        return not poller.poll(0)
