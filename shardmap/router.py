"""Sends each model to its database, by the schema that its `db_table` names.

- `sharded_table`: one in each logical shard;
- `physical_table`: one on each physical database and on the directory, which `using()` has to name;
- all others: the directory alone.
"""

from django.conf import settings

from shardmap.shards import current_database, current_shard_or_none, is_physical, is_sharded


class ShardRouter:
    def db_for_read(self, model, **hints) -> str | None:
        return current_database() if is_sharded(model) else None

    db_for_write = db_for_read

    def allow_migrate(self, db: str, app_label: str, model_name=None, model=None, **hints) -> bool:
        """Which tables (or `RunSQL` with `hints={"sharded": True}`, or "physical") a migration makes where.

        `migrate_shards` runs sharded migrations inside `on_logical_shard`; outside it, `migrate` makes the other
        tables.
        """
        if db in settings.SHARD_REPLICAS.values():
            return False
        sharded = is_sharded(model) if model is not None else hints.get("sharded", False)
        if sharded or current_shard_or_none() is not None:
            return sharded and current_shard_or_none() is not None
        physical = is_physical(model) if model is not None else hints.get("physical", False)
        return db not in settings.SHARD_SERVERS or physical
