"""One question to many logical shards, in one round trip to each physical database."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from django.db import connections

from shardmap.shards import PLACEHOLDER, database_of, schema_name


def scatter(sql: str, params_of: Mapping[int, Sequence[Any]]) -> Iterator[tuple]:
    """The rows of a SELECT on sharded tables, from every logical shard in `params_of` with its own parameters.

    `sql` names its tables as `"logical"."photos_photo"`; the shards of one database are joined with UNION ALL, so the
    rows come in no order.
    """
    shards_of: dict[str, list[int]] = {}
    for shard in params_of:
        shards_of.setdefault(database_of(shard), []).append(shard)
    for alias, shards in shards_of.items():
        parts = [f"({sql.replace(PLACEHOLDER, _quoted(shard))})" for shard in shards]
        with connections[alias].cursor() as cursor:
            cursor.execute(" UNION ALL ".join(parts), [param for shard in shards for param in params_of[shard]])
            yield from cursor.fetchall()


def _quoted(shard: int) -> str:
    return f'"{schema_name(shard)}"'
