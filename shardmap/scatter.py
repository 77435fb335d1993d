"""One question to many logical shards, in as few round trips as their databases allow."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from django.db import connections

from shardmap.shards import PLACEHOLDER, database_of, schema_name

# Logical shards a statement. Postgres locks each table and index that it names: with a thousand shards, planning takes
# 0.3 s (measured), and two such statements at once would fill the lock table for everybody.
SHARDS_A_STATEMENT = 100


def scatter(sql: str, params_of: Mapping[int, Sequence[Any]], tail: str = "") -> Iterator[tuple]:
    """The rows of a SELECT on sharded tables, from every logical shard in `params_of` with its own parameters.

    `sql` names its tables as `"logical"."photos_photo"`. The shards of one database are asked together, with UNION ALL,
    and `tail` ("ORDER BY 1 DESC LIMIT 20") is applied to the rows of each such statement, not to all.
    """
    shards_of: dict[str, list[int]] = {}
    for shard in params_of:
        shards_of.setdefault(database_of(shard), []).append(shard)
    for alias, shards in shards_of.items():
        for at in range(0, len(shards), SHARDS_A_STATEMENT):
            batch = shards[at : at + SHARDS_A_STATEMENT]
            parts = [f"({sql.replace(PLACEHOLDER, _quoted(shard))})" for shard in batch]
            with connections[alias].cursor() as cursor:
                cursor.execute(
                    f"SELECT * FROM ({' UNION ALL '.join(parts)}) AS rows {tail}",
                    [param for shard in batch for param in params_of[shard]],
                )
                yield from cursor.fetchall()


def _quoted(shard: int) -> str:
    return f'"{schema_name(shard)}"'
