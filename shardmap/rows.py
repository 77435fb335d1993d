"""Inserting what may be there already."""

from typing import Any

from django.db import connections, models

from shardmap.shards import current_database


def insert_if_absent(model: type[models.Model], *, returning: str, **values: Any) -> Any:
    """Inserts a row on the current shard; returns that column of it, or None if there is such a row already.

    One statement, where get_or_create has four. (bulk_create can ignore conflicts, too, but does not say what it did.)
    """
    columns, places = ", ".join(values), ", ".join(["%s"] * len(values))
    insert = f"INSERT INTO {model._meta.db_table} ({columns}) VALUES ({places}) ON CONFLICT DO NOTHING"
    with connections[current_database()].cursor() as cursor:
        cursor.execute(f"{insert} RETURNING {returning}", list(values.values()))
        return next((row[0] for row in cursor.fetchall()), None)
