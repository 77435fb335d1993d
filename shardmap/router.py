"""Sends each model to its database: the directory, a physical database as such, or a logical shard on one.

Three kinds of tables:
- sharded (`sharded_table`): one in each logical shard;
- `every_database = True` on the model: one on the directory and on each physical database, in schema `public`,
  so that it can take part in the transactions of every shard there (the outbox);
- all others: the directory alone.
"""

from django.conf import settings

from shardmap.shards import current_shard, current_shard_or_none, database_of, is_sharded


class ShardRouter:
    def db_for_read(self, model, **hints) -> str | None:
        if is_sharded(model):
            return database_of(current_shard())
        if getattr(model, "every_database", False) and current_shard_or_none() is not None:
            return database_of(current_shard())
        return None

    db_for_write = db_for_read

    def allow_migrate(self, db: str, app_label: str, model_name=None, model=None, **hints) -> bool:
        """Which tables (or `RunSQL` with `hints={"sharded": True}`) a migration makes where.

        `migrate_shards` runs sharded migrations inside `on_logical_shard`; outside it, `migrate` on a physical
        database makes only what exists once a database.
        """
        sharded = is_sharded(model) if model is not None else hints.get("sharded", False)
        if current_shard_or_none() is not None or sharded:
            return sharded and current_shard_or_none() is not None
        if db in settings.SHARD_SERVERS:
            return bool(getattr(model, "every_database", hints.get("every_database", False)))
        return True
