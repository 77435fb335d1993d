"""One question to many logical shards, in as few round trips as their databases allow."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from django.db import connections

from shardmap.shards import PLACEHOLDER, database_of, schema_name

# Logical shards a statement. Postgres locks each table and index that it names: with a thousand shards, planning takes
# 0.3 s (measured), and two such statements at once would fill the lock table for everybody.
SHARDS_A_STATEMENT = 100


def scatter(sql: str, params_of: Mapping[int, Sequence[Any]]) -> Iterator[tuple]:
    """The rows of a SELECT on sharded tables, from every logical shard in `params_of` with its own parameters.

    `sql` names its tables as `"logical"."photos_photo"`. The shards of one database are asked together, with UNION ALL.
    """
    for alias, shards in shards_by_database(params_of).items():
        for at in range(0, len(shards), SHARDS_A_STATEMENT):
            batch = shards[at : at + SHARDS_A_STATEMENT]
            parts = [f"({sql.replace(PLACEHOLDER, _quoted(shard))})" for shard in batch]
            with connections[alias].cursor() as cursor:
                cursor.execute(
                    " UNION ALL ".join(parts),
                    [param for shard in batch for param in params_of[shard]],
                )
                yield from cursor.fetchall()


def shards_by_database(shards: Iterable[int]) -> dict[str, list[int]]:
    """Logical shards by the alias of the physical database that holds them."""
    by_database: dict[str, list[int]] = {}
    for shard in shards:
        by_database.setdefault(database_of(shard), []).append(shard)
    return by_database


def _quoted(shard: int) -> str:
    return f'"{schema_name(shard)}"'
