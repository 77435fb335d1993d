"""Creating and migrating the logical shards, many at a time.

Django works out a migration's SQL once, with the placeholder schema in it; each shard then gets that text in one
transaction together with the row that says so (ShardMigration). So a shard has a migration wholly or not at all, a
run that was cut short continues where it stopped, and 4096 shards cost 4096 round trips, not 4096 migration plans.

What a sharded migration may hold: operations that reduce to SQL. (RunPython is left out on shards; it runs on the
directory with `migrate`.)
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

from django.apps import apps
from django.conf import settings
from django.db import connections, transaction
from django.db.migrations.loader import MigrationLoader

from shardmap.ids import MAX_LOGICAL_SHARDS
from shardmap.models import LogicalShard, ShardMigration, ShardMove
from shardmap.shards import is_sharded, on_logical_shard, placement, schema_name

SESSIONS_A_SERVER = 4  # DDL waits on disk and catalog locks; more sessions measured no faster
LOCK_CLASS = 1751213925  # advisory locks: one run at a time per shard

Step = tuple[str, str, str]  # app, migration, SQL


def place_shards() -> None:
    """Gives the logical shards of a new installation their places, spread evenly over the servers.

    Raises ValueError when the settings do not fit the installation.
    """
    if not 1 <= settings.LOGICAL_SHARDS <= MAX_LOGICAL_SHARDS:
        raise ValueError(f"LOGICAL_SHARDS is {settings.LOGICAL_SHARDS}; it must be 1 to {MAX_LOGICAL_SHARDS}")
    if not settings.SHARD_SERVERS:
        raise ValueError("SHARD_SERVERS is empty: name at least one physical database, as alias=postgresql://…")
    placed = LogicalShard.objects.count()
    if placed not in (0, settings.LOGICAL_SHARDS):
        raise ValueError(
            f"LOGICAL_SHARDS is {settings.LOGICAL_SHARDS}, but this installation was made with {placed}: "
            "it is fixed for the life of an installation, since users are found by it"
        )
    if not placed:
        servers = settings.SHARD_SERVERS
        LogicalShard.objects.bulk_create(
            [
                LogicalShard(shard=shard, database=servers[shard % len(servers)])
                for shard in range(settings.LOGICAL_SHARDS)
            ],
            ignore_conflicts=True,
        )


def plan() -> list[Step]:
    """All that a logical shard is made of, in order: the migrations of apps that have sharded tables."""
    alias = settings.SHARD_SERVERS[0]
    loader = MigrationLoader(None)
    state = loader.project_state(nodes=[])
    steps: list[Step] = []
    seen: set[tuple[str, str]] = set()
    for leaf in sorted(loader.graph.leaf_nodes()):
        for node in loader.graph.forwards_plan(leaf):
            if node in seen:
                continue
            seen.add(node)
            migration = loader.graph.nodes[node]
            if not _has_sharded_tables(migration.app_label):
                # Their models would be made anew for each operation, which is nearly all of the time that this takes.
                state.__dict__.pop("apps", None)
                migration.mutate_state(state, preserve=False)
                continue
            with (
                on_logical_shard(0),
                connections[alias].schema_editor(collect_sql=True, atomic=False) as editor,
            ):
                state = migration.apply(state, editor, collect_sql=True)
            statements = [line for line in editor.collected_sql if not line.startswith("--")]
            if statements:
                steps.append((*node, "\n".join(statements)))
    return steps


def _has_sharded_tables(app: str) -> bool:
    return app == "shardmap" or any(is_sharded(model) for model in apps.get_app_config(app).get_models())


def missing(steps: list[Step]) -> dict[int, list[Step]]:
    """What each logical shard still lacks; shards that lack nothing are left out. One query a physical database."""
    done: set[tuple[str, int, str, str]] = set()
    for alias in settings.SHARD_SERVERS:
        applied = ShardMigration.objects.using(alias).values_list("shard", "app", "name")
        done.update((alias, *migration) for migration in applied)
    todo = {
        shard: [step for step in steps if (alias, shard, step[0], step[1]) not in done]
        for shard, alias in placement().items()
    }
    return {shard: lacking for shard, lacking in todo.items() if lacking}


def migrate_shard(shard: int, steps: list[Step], alias: str) -> None:
    """Creates a logical shard on a physical database, or brings it up to date, in one transaction."""
    with on_logical_shard(shard), transaction.atomic(using=alias), connections[alias].cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
        cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", [LOCK_CLASS, shard])
        applied = ShardMigration.objects.using(alias).filter(shard=shard)
        done = set(applied.values_list("app", "name"))
        cursor.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema_name(shard)}"')
        lacking = [step for step in steps if step[:2] not in done]
        for _, _, sql in lacking:
            cursor.execute(sql)
        ShardMigration.objects.using(alias).bulk_create(
            [ShardMigration(shard=shard, app=app, name=name) for app, name, _ in lacking]
        )


def migrate_shards(todo: dict[int, list[Step]], progress: Callable[[int], None]) -> None:
    """Migrates shards in parallel; `progress(done so far)` is called after each.

    Stops at the first shard that fails and raises RuntimeError, which names it. What was done stays done, after Ctrl-C
    too.
    """
    for moving in ShardMove.objects.filter(shard__in=todo):
        raise RuntimeError(f"logical shard {moving.shard} is being moved to {moving.target}: finish that, or undo it")

    def work(shard: int) -> None:
        try:
            migrate_shard(shard, todo[shard], placement()[shard])
        finally:
            for connection in connections.all(initialized_only=True):
                connection.close()

    pool = ThreadPoolExecutor(SESSIONS_A_SERVER * len(settings.SHARD_SERVERS))
    try:
        futures = {pool.submit(work, shard): shard for shard in sorted(todo)}
        for done, future in enumerate(as_completed(futures), 1):
            if error := future.exception():
                shard = futures[future]
                raise RuntimeError(
                    f"logical shard {shard} ({schema_name(shard)} on {placement()[shard]}): {error}"
                ) from error
            progress(done)
    finally:
        # After a failure or Ctrl-C, those that are under way end, and no other begins.
        pool.shutdown(cancel_futures=True)
