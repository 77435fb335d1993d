"""Moving a logical shard to another physical server while the site runs.

    start    the schema is made at the new place, and filled by Postgres' logical replication: a copy, then every change
    switch   writes to this one shard wait (a table lock; reads go on); when the last change has arrived, the schema at
             the old place gets another name, and the directory says the new place
    check    the old copy, to which nobody can write any more, is compared with the new one as it was at the switch
    finish   replication is taken down; the old copy stays, under its new name, until `drop_old`

An app process that has not heard of the switch asks the old place for a schema that is not there any more. It is told
so (shards.ShardMoved), reads the directory anew, and asks the new place (shards.following_moves).

How far a move has come is seen in the databases, so one that was killed anywhere goes on when `move` is called again;
until the switch it can be undone instead. What it cannot go on without is the replication slot at the old place, which
knows what the new place lacks. It is lost by a failover of the old place, and when the new place is away for too long:
then the move says so, and is to be undone and begun anew.

The schema is renamed before the directory is changed: a mover that dies between the two leaves a shard that is nowhere
until the move goes on. In the other order it would leave two places that both take writes. See docs/sharding.md.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager

import psycopg2
from django.conf import settings
from django.db import close_old_connections, connections, transaction
from psycopg2.errors import QueryCanceled
from psycopg2.extensions import connection as Connection

from shardmap.migrate import migrate_shard, missing, plan
from shardmap.models import LogicalShard, ShardMigration, ShardMove
from shardmap.shards import placement, schema_name

LONGEST_PAUSE = 1.0  # s for which writes to the shard may wait
LOCK_MS = 300  # of them, to get the locks: whoever comes after us waits behind us
TRIES = 30  # to switch, when something holds a lock for longer
POLL_SECONDS = 0.005
PATIENCE = 20.0  # s for which replication may stand still; a server's restart takes less
# A statement may take hours, but a host that is gone is noticed: 20 s after it has stopped to answer.
TIMEOUTS = {"connect_timeout": 5, "keepalives_idle": 5, "keepalives_interval": 5, "tcp_user_timeout": 20_000}
LOCK_CLASS = 1751213926  # advisory locks: one mover at a time a shard
MARKER = "move_marker"  # a table whose rows arrive behind all that was committed before them

TABLES = f"""
    SELECT quote_ident(table_name) FROM information_schema.tables
    WHERE table_schema = %s AND table_name <> '{MARKER}' ORDER BY 1
"""
SYNC_STATES = """
    SELECT srsubstate FROM pg_subscription_rel JOIN pg_subscription ON pg_subscription.oid = srsubid WHERE subname = %s
"""
ERRORS = "SELECT apply_error_count + sync_error_count FROM pg_stat_subscription_stats WHERE subname = %s"
MOST_ERRORS = 10  # replication tries again a second after each
# Of a move itself; and those by which single tables were being copied, which a lost target has left behind.
ITS_SLOT = "slot_name = %s"
ORPHANS = "slot_name ~ '^pg_[0-9]+_sync_' AND NOT active"
DROP_SLOTS = """
    SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database() AND """
CANCEL_VACUUMS = """
    SELECT pg_cancel_backend(pid) FROM pg_stat_progress_vacuum JOIN pg_class ON pg_class.oid = relid
    WHERE relnamespace = %s::regnamespace
"""
OLD_COPIES = "SELECT nspname FROM pg_namespace WHERE nspname ~ '^shard[0-9]{4}_until_' ORDER BY 1"
# The same for the same rows, in whatever order they are.
CHECKSUM = "SELECT count(*), coalesce(sum(hashtextextended(row::text, 0)::numeric), 0) FROM {schema}.{table} AS row"

Say = Callable[[str], None]


class MoveFailed(Exception):
    """What stands in the way of a move, for the person who wants it."""


class _TooLate(Exception):
    """Writes would have to wait for longer than they may."""


def move(shard: int, to: str, say: Say) -> float | None:
    """Moves a shard, or goes on with a move that was cut short; if the shard is there already, that is all.

    Returns the seconds for which its writes waited; None if it was cut short after the switch. Raises MoveFailed, or
    psycopg2.Error if a server is away: then call it again, or `undo`.
    """
    begun = ShardMove.objects.filter(shard=shard).first()
    if begun is None and _place(shard) == to:
        say(f"is on {to} already")
        return None
    begun = _again(begun, to, say) if begun else _begin(shard, to)
    with _admin(begun.source) as old, _admin(begun.target) as new, _admin(begun.target) as frozen:
        _lock(begun, old)
        pause = None
        if _place(shard) == begun.target:
            say("it was switched before, so that the copies are no longer to be compared")
        elif not _exists(old, schema_name(shard)):
            say("the old place had let go of it before; telling the directory")
            _tell_directory(begun, new)
        else:
            _start(begun, old, new, say)
            pause = _switch(begun, old, new, frozen)
            say(f"switched; writes waited for {pause * 1000:.0f} ms")
            _check(begun, old, frozen, say)
        _drop_subscription(begun, new)
        _leave_source(begun, old)
        _drop_markers(begun, new)
    begun.delete()
    return pause


def undo(shard: int, target_lost: bool = False) -> str:
    """Takes back a move that has not come to its switch; returns the server on which the shard stays.

    What a lost target has of it stays there: if it comes back, the next move to it clears that. Raises MoveFailed.
    """
    begun = ShardMove.objects.filter(shard=shard).first()
    if begun is None:
        raise MoveFailed(f"shard {shard} is not being moved")
    with _admin(begun.source) as old:
        _lock(begun, old)
        if _place(shard) != begun.source or not _exists(old, schema_name(shard)):
            raise MoveFailed(f"shard {shard} has been switched: go on with `shards move {shard} --to {begun.target}`")
        if not target_lost:
            try:
                with _admin(begun.target) as new:
                    _drop_copy(begun, new)
            except psycopg2.OperationalError as error:
                hint = f"If {begun.target} is lost for good: `shards undo {shard} --target-lost`"
                raise MoveFailed(f"{str(error).strip()}. {hint}") from error
        _leave_source(begun, old)
        begun.delete()
    return begun.source


def old_copies() -> list[tuple[str, str]]:
    """What moves have left behind: (server, schema)."""
    copies = []
    for server in settings.SHARD_ADMINS:
        with _admin(server) as admin:
            copies += [(server, schema) for (schema,) in _run(admin, OLD_COPIES)]
    return copies


def drop_old(shard: int) -> list[str]:
    """Drops what moves of a shard have left behind; returns the schemas' names. Raises MoveFailed."""
    if ShardMove.objects.filter(shard=shard).exists():
        raise MoveFailed(f"shard {shard} is being moved: finish that first")
    copies = [copy for copy in old_copies() if copy[1].startswith(f"{schema_name(shard)}_until_")]
    for server, schema in copies:
        with _admin(server) as admin:
            _run(admin, f"DROP SCHEMA {schema} CASCADE")
    return [f"{schema} on {server}" for server, schema in copies]


def _again(begun: ShardMove, to: str, say: Say) -> ShardMove:
    if begun.target != to:
        raise MoveFailed(f"shard {begun.shard} is being moved to {begun.target}: finish that, or undo it")
    say(f"going on with the move that began at {begun.began_at:%Y-%m-%d %H:%M:%S}")
    return begun


def _begin(shard: int, to: str) -> ShardMove:
    """Notes a new move, after clearing what an older one may have left at the target when that was lost."""
    source = _place(shard)
    if to not in settings.SHARD_SERVERS:
        raise MoveFailed(f"SHARD_SERVERS has no server {to!r}, only: {', '.join(settings.SHARD_SERVERS)}")
    if shard in missing(plan()):
        raise MoveFailed(f"shard {shard} lacks migrations: run `migrate_shards` first")
    begun = ShardMove(shard=shard, source=source, target=to)
    with _admin(source) as old, _admin(to) as new:
        _lock(begun, old)
        if _place(shard) != source or ShardMove.objects.filter(shard=shard).exists():
            raise MoveFailed(f"somebody else has just moved shard {shard}: see `shards status`")
        if not _exists(old, schema_name(shard)):
            raise MoveFailed(f"the directory says that shard {shard} is on {source}, which has no such schema")
        if _exists(new, schema_name(shard)):
            _drop_copy(begun, new)
        begun.save(force_insert=True)
    return begun


def _start(begun: ShardMove, old: Connection, new: Connection, say: Say) -> None:
    """Sets replication up, as far as it is not there yet, and waits until the copy is complete."""
    schema, name = schema_name(begun.shard), _name(begun)
    _run(old, f"CREATE TABLE IF NOT EXISTS {schema}.{MARKER} (id bigint PRIMARY KEY)")
    if not _exists(new, schema):
        ShardMigration.objects.using(begun.target).filter(shard=begun.shard).delete()  # of when it was here before
        with transaction.atomic(using=begun.target), connections[begun.target].cursor() as cursor:
            migrate_shard(begun.shard, plan(), begun.target)
            # A process that remembers the shard from when it was here before must not take the copy for it.
            cursor.execute(f"REVOKE USAGE ON SCHEMA {schema} FROM {_role(begun)}")
    _run(new, f"CREATE TABLE IF NOT EXISTS {schema}.{MARKER} (id bigint PRIMARY KEY)")
    if not _run(old, "SELECT 1 FROM pg_publication WHERE pubname = %s", [name]):
        _run(old, f"CREATE PUBLICATION {name} FOR TABLES IN SCHEMA {schema}")
    if not _run(new, "SELECT 1 FROM pg_subscription WHERE subname = %s", [name]):
        _drop_slots(begun, old)  # of a mover that was killed before its subscription was there
        source = settings.SHARD_ADMINS[begun.source]
        _run(new, f"CREATE SUBSCRIPTION {name} CONNECTION %s PUBLICATION {name}", [source])
    copied = -1
    for _ in _while_replicating(begun, old, new):
        states = [state for (state,) in _run(new, SYNC_STATES, [name])]
        if states.count("r") > copied:
            copied = states.count("r")
            say(f"copied {copied} of {len(states)} tables")
        if copied == len(states):
            return


def _switch(begun: ShardMove, old: Connection, new: Connection, frozen: Connection) -> float:
    """Makes the new place the shard's; returns how long writes waited.

    Afterwards `frozen` is in a transaction that sees the new place as it was at the switch.
    """
    schema, left = schema_name(begun.shard), _old_name(begun)
    locks = ", ".join(f"{schema}.{table}" for (table,) in _run(old, TABLES, [schema]))
    for _ in range(TRIES):
        # So that little is missing when writes stop.
        _wait_for_marker(schema, old, new, _while_replicating(begun, old, new))
        _run(old, CANCEL_VACUUMS, [schema])  # one would hold its lock for as long as it takes
        with closing(psycopg2.connect(settings.SHARD_ADMINS[begun.source], **TIMEOUTS)) as locker:
            close_old_connections()
            _place(begun.shard)  # the directory has to be there when writes wait
            began = time.monotonic()
            try:
                _run(locker, f"SET LOCAL statement_timeout = {LOCK_MS}")
                _run(locker, f"LOCK TABLE {locks} IN EXCLUSIVE MODE")
                _run(locker, "SET LOCAL statement_timeout = 0")
                _wait_for_marker(schema, old, new, _until(began + 0.8 * LONGEST_PAUSE))
            except (QueryCanceled, _TooLate):
                locker.rollback()
                time.sleep(random.uniform(0.1, 0.5))
                continue
            for sequence in ("id_opened", "id_ticks"):
                ((value,),) = _run(old, f"SELECT last_value FROM {schema}.{sequence}")
                _run(new, f"SELECT setval('{schema}.{sequence}', %s)", [value])
            _run(frozen, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            _run(frozen, f"SELECT FROM {schema}.{MARKER}")  # the first query makes the snapshot
            _run(locker, f"ALTER SCHEMA {schema} RENAME TO {left}")
            _run(locker, f"REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA {left} FROM {_role(begun)}")
            locker.commit()
        _tell_directory(begun, new)
        return time.monotonic() - began
    raise MoveFailed(f"shard {begun.shard} is too busy to be switched within {LONGEST_PAUSE} s; try at a quiet hour")


def _check(begun: ShardMove, old: Connection, frozen: Connection, say: Say) -> None:
    """Compares each table's number of rows and checksum. Raises MoveFailed."""
    schema, left = schema_name(begun.shard), _old_name(begun)
    rows = 0
    for (table,) in _run(old, TABLES, [left]):
        (before,) = _run(old, CHECKSUM.format(schema=left, table=table))
        (after,) = _run(frozen, CHECKSUM.format(schema=schema, table=table))
        if before != after:
            raise MoveFailed(
                f"{table}: {before[0]} rows with checksum {before[1]} in {left} on {begun.source}, but {after[0]} with "
                f"{after[1]} on {begun.target} when it was switched. Nothing was dropped; compare the two"
            )
        rows += before[0]
    _run(frozen, "COMMIT")
    say(f"both copies had the same {rows} rows at the switch")


def _drop_copy(begun: ShardMove, new: Connection) -> None:
    """Drops what the target has of a shard that is still, whole, at the source."""
    _drop_subscription(begun, new)
    _run(new, f"DROP SCHEMA IF EXISTS {schema_name(begun.shard)} CASCADE")
    ShardMigration.objects.using(begun.target).filter(shard=begun.shard).delete()


def _drop_subscription(begun: ShardMove, new: Connection) -> None:
    name = _name(begun)
    try:
        _run(new, f"DROP SUBSCRIPTION IF EXISTS {name}")
    except psycopg2.Error:  # it wants to drop its slot as well, which is gone
        _run(new, f"ALTER SUBSCRIPTION {name} DISABLE")
        _run(new, f"ALTER SUBSCRIPTION {name} SET (slot_name = NONE)")
        _run(new, f"DROP SUBSCRIPTION {name}")


def _leave_source(begun: ShardMove, old: Connection) -> None:
    _drop_slots(begun, old)
    _run(old, f"DROP PUBLICATION IF EXISTS {_name(begun)}")
    _drop_markers(begun, old)


def _drop_slots(begun: ShardMove, old: Connection) -> None:
    name = _name(begun)
    # Of a target that hangs: Postgres itself would give it a minute.
    _run(old, f"SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE {ITS_SLOT}", [name])
    _run(old, DROP_SLOTS + ITS_SLOT, [name])
    if not ShardMove.objects.filter(source=begun.source).exclude(shard=begun.shard).exists():
        _run(old, DROP_SLOTS + ORPHANS)


def _drop_markers(begun: ShardMove, server: Connection) -> None:
    for schema in (schema_name(begun.shard), _old_name(begun)):
        _run(server, f"DROP TABLE IF EXISTS {schema}.{MARKER}")


def _wait_for_marker(schema: str, old: Connection, new: Connection, polls: Iterable[None]) -> None:
    """Waits until all that was committed before has arrived, or `polls` ends that by an exception."""
    add = f"INSERT INTO {schema}.{MARKER} SELECT coalesce(max(id), 0) + 1 FROM {schema}.{MARKER} RETURNING id"
    ((marker,),) = _run(old, add)
    for _ in polls:
        if _run(new, f"SELECT FROM {schema}.{MARKER} WHERE id = %s", [marker]):
            return


def _until(deadline: float) -> Iterator[None]:
    """Polls often. Raises _TooLate."""
    while time.monotonic() < deadline:
        yield
        time.sleep(POLL_SECONDS)
    raise _TooLate


def _while_replicating(begun: ShardMove, old: Connection, new: Connection) -> Iterator[None]:
    """Polls for as long as it takes. Raises MoveFailed when waiting is of no use."""
    name = _name(begun)
    errors_before, active_at = None, time.monotonic()
    while True:
        yield
        time.sleep(0.1)
        wrong = None
        slot = _run(old, f"SELECT active, wal_status FROM pg_replication_slots WHERE {ITS_SLOT}", [name])
        ((errors,),) = _run(new, ERRORS, [name]) or [(0,)]
        errors_before = errors if errors_before is None else errors_before
        if slot and slot[0][0]:
            active_at = time.monotonic()
        if not slot:
            wrong = f"its replication slot is no longer on {begun.source}, which was replaced by a replica or a backup"
        elif slot[0][1] == "lost":
            wrong = f"{begun.target} was away for too long: {begun.source} has removed WAL that it needs"
        elif errors - errors_before > MOST_ERRORS:
            wrong = f"replication fails again and again; the log of {begun.target} says why"
        elif time.monotonic() - active_at > PATIENCE:
            wrong = f"{begun.target} has not asked for changes for {PATIENCE:.0f} s; its log says why"
        if wrong:
            raise MoveFailed(
                f"the move of shard {begun.shard} to {begun.target} stands still: {wrong}. The shard is whole on "
                f"{begun.source}. If it cannot be mended: `shards undo {begun.shard}`, then move it again"
            )


def _tell_directory(begun: ShardMove, new: Connection) -> None:
    _run(new, f"GRANT USAGE ON SCHEMA {schema_name(begun.shard)} TO {_role(begun)}")
    LogicalShard.objects.filter(shard=begun.shard).update(database=begun.target)
    ShardMigration.objects.using(begun.source).filter(shard=begun.shard).delete()
    placement.cache_clear()


def _place(shard: int) -> str:
    """Where the directory says that a shard is. Raises MoveFailed."""
    database = LogicalShard.objects.filter(shard=shard).values_list("database", flat=True).first()
    if database is None:
        raise MoveFailed(f"there is no logical shard {shard}")
    return database


def _lock(begun: ShardMove, old: Connection) -> None:
    """Keeps others from moving the same shard, for as long as this connection lasts. Raises MoveFailed."""
    deadline = time.monotonic() + 5  # Postgres may take a moment to see that one was killed
    while not _run(old, "SELECT pg_try_advisory_lock(%s, %s)", [LOCK_CLASS, begun.shard])[0][0]:
        if time.monotonic() > deadline:
            raise MoveFailed(f"shard {begun.shard} is in the hands of another mover, which is at work")
        time.sleep(0.1)


def _role(begun: ShardMove) -> str:
    """As which the app connects."""
    return settings.DATABASES[begun.source]["USER"]


def _name(begun: ShardMove) -> str:
    """Of the publication, the subscription and the slot."""
    return f"move_{schema_name(begun.shard)}"


def _old_name(begun: ShardMove) -> str:
    return f"{schema_name(begun.shard)}_until_{begun.began_at:%Y%m%d_%H%M%S}"


def _exists(admin: Connection, schema: str) -> bool:
    return bool(_run(admin, "SELECT FROM pg_namespace WHERE nspname = %s", [schema]))


@contextmanager
def _admin(server: str) -> Iterator[Connection]:
    """A superuser's connection to a physical server itself, as replication needs it; each statement for itself."""
    if server not in settings.SHARD_ADMINS:
        raise MoveFailed(f"SHARD_ADMINS has no server {server!r}, only: {', '.join(settings.SHARD_ADMINS)}")
    with closing(psycopg2.connect(settings.SHARD_ADMINS[server], **TIMEOUTS)) as connection:
        connection.autocommit = True
        # CREATE SUBSCRIPTION has a password in it.
        _run(connection, "SET log_min_duration_statement = -1; SET log_min_error_statement = panic")
        yield connection


def _run(admin: Connection, sql: str, params: list | None = None) -> list[tuple]:
    with admin.cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchall() if cursor.description is not None else []
