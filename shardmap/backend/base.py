"""Django's Postgres backend with two things added.

- `"logical"` in a statement becomes the current shard's schema (see shardmap.shards).
- The health check of a kept connection costs no query: a peer that closed it has made its socket readable.
"""

import select

from django.db.backends.postgresql import base

from shardmap.shards import PLACEHOLDER, current_shard, schema_name


def _swap_schema(execute, sql, params, many, context):
    if PLACEHOLDER in sql:
        sql = sql.replace(PLACEHOLDER, f'"{schema_name(current_shard())}"')
    return execute(sql, params, many, context)


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
