"""Which migrations the code that runs now would not survive.

A deploy migrates first and restarts afterwards, host by host: for a while, old code runs on the new tables. So a column
is dropped or renamed in two deploys, or three: the code stops using it, then it goes (docs/deploying.md).
"""

from django.apps import apps
from django.contrib.postgres.operations import AddIndexConcurrently
from django.db.migrations import Migration, operations
from django.db.migrations.operations.base import Operation
from django.db.models import NOT_PROVIDED, ManyToManyField

from shardmap.shards import is_sharded

# The old code neither sees what these add nor misses what they take away.
HARMLESS = (
    operations.CreateModel,
    AddIndexConcurrently,
    operations.RemoveIndex,
    operations.RenameIndex,
    operations.AlterModelOptions,
    operations.AlterModelManagers,
    operations.AlterModelTableComment,
)
# A migration that was thought about says so, and why it is safe all the same: `safe_because = "…"` in its class.
MARK = "safe_because"


def unsafe(migration: Migration) -> list[str]:
    """A sentence for each operation of the migration that may break the code that runs now."""
    if getattr(migration, MARK, ""):
        return []
    wrong = [reason for operation in migration.operations if (reason := _wrong_with(operation, migration))]
    return [f"{migration.app_label}.{migration.name}: {reason}" for reason in wrong]


def _wrong_with(operation: Operation, migration: Migration) -> str:
    match operation:
        case operations.SeparateDatabaseAndState():
            return "; ".join(filter(None, (_wrong_with(one, migration) for one in operation.database_operations)))
        case operations.AddIndex(model_name=model) if not isinstance(operation, AddIndexConcurrently):
            locked = not _is_small(model, migration)
            return f"{operation.describe()}: nobody can write meanwhile; AddIndexConcurrently" if locked else ""
        case operations.AddField(field=field):
            # Django's `default` is Python's: the old code, which does not name the column, inserts none.
            harmless = field.null or field.db_default is not NOT_PROVIDED or isinstance(field, ManyToManyField)
            return (
                ""
                if harmless
                else f"{operation.describe()}: NOT NULL, so the old code cannot insert; give it a db_default"
            )
        case operations.RunPython() | operations.RunSQL():
            return f"{operation.describe()}: nobody but you knows what that does"
    return "" if isinstance(operation, HARMLESS) else operation.describe()


def _is_small(model: str, migration: Migration) -> bool:
    """Whether a table is a logical shard's share of all, or as new as the migration."""
    made = [one.name_lower for one in migration.operations if isinstance(one, operations.CreateModel)]
    models = [one for one in apps.get_app_config(migration.app_label).get_models() if is_sharded(one)]
    return model.lower() in (*made, *(one._meta.model_name for one in models))
