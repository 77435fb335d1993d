import threading

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connections

from shardmap import migrate
from shardmap.models import LogicalShard, ShardMigration
from shardmap.shards import database_of, placement, schema_name

SPARES = range(4076, 4096)  # no shards of the stack under test
SPARE = SPARES[-1]
DATABASE = "a"


@pytest.fixture
def spare_shards():
    """Logical shards that have a place and nothing else yet."""
    placement().update(dict.fromkeys(SPARES, DATABASE))
    yield SPARES
    for shard in SPARES:
        with connections[DATABASE].cursor() as cursor:
            cursor.execute(f"DROP SCHEMA IF EXISTS {schema_name(shard)} CASCADE")
    ShardMigration.objects.using(DATABASE).filter(shard__in=SPARES).delete()
    placement.cache_clear()


@pytest.fixture
def spare_shard(spare_shards):
    return SPARE


def tables(shard: int) -> set[str]:
    with connections[database_of(shard)].cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", [schema_name(shard)])
        return {row[0] for row in cursor.fetchall()}


def recorded(shard: int) -> set[tuple[str, str]]:
    return set(ShardMigration.objects.using(DATABASE).filter(shard=shard).values_list("app", "name"))


def test_a_shard_gets_all_sharded_tables_and_no_others(spare_shard):
    steps = migrate.plan()
    migrate.migrate_shards({spare_shard: steps}, progress=lambda done: None)
    assert tables(spare_shard) == tables(0)
    assert {"photos_photo", "accounts_follow", "accounts_counts"} <= tables(spare_shard)
    assert not {"accounts_user", "workers_outbox", "django_migrations"} & tables(spare_shard)
    assert recorded(spare_shard) == {(app, name) for app, name, _ in steps}


def test_a_migration_that_fails_leaves_the_shard_as_it_was_and_is_named(spare_shard):
    steps = [*migrate.plan(), ("photos", "9999_broken", "CREATE TABLE no_such_schema.x ()")]
    with pytest.raises(RuntimeError, match=f"{schema_name(spare_shard)} on {DATABASE}"):
        migrate.migrate_shards({spare_shard: steps}, progress=lambda done: None)
    assert tables(spare_shard) == set()
    assert recorded(spare_shard) == set()


def test_an_interrupted_migration_goes_on_where_it_stopped(spare_shard):
    steps = migrate.plan()
    migrate.migrate_shard(spare_shard, steps[:2], placement()[spare_shard])
    assert recorded(spare_shard) == {(app, name) for app, name, _ in steps[:2]}
    assert migrate.missing(steps)[spare_shard] == steps[2:]
    migrate.migrate_shard(spare_shard, steps, placement()[spare_shard])
    assert tables(spare_shard) == tables(0)


def test_ctrl_c_stops_after_the_shards_under_way_and_the_next_run_does_the_rest(spare_shards, monkeypatch):
    steps = migrate.plan()[:2]
    migrate_shard, interrupted = migrate.migrate_shard, threading.Event()

    def under_way_at_the_interrupt(shard: int, *args) -> None:
        if shard != spare_shards[0]:
            assert interrupted.wait(30)
        migrate_shard(shard, *args)

    def interrupt(done: int) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(migrate, "migrate_shard", under_way_at_the_interrupt)
    with pytest.raises(KeyboardInterrupt):
        migrate.migrate_shards(dict.fromkeys(spare_shards, steps), interrupt)
    rest = migrate.missing(steps)
    assert 0 < len(rest) < len(spare_shards)
    assert all(
        recorded(shard) == {(app, name) for app, name, _ in steps} for shard in spare_shards if shard not in rest
    )
    counted = []
    migrate.migrate_shards(rest, counted.append)
    assert counted == list(range(1, len(rest) + 1))
    assert migrate.missing(steps) == {}


def test_the_status_says_where_the_shards_are_and_how_many_lack_migrations(spare_shards, capsys):
    call_command("shards", "status")
    a, b = (line.split() for line in capsys.readouterr().out.splitlines()[1:3])
    on_a = LogicalShard.objects.filter(database="a").count()
    on_b = LogicalShard.objects.filter(database="b").count()
    assert (a[0], a[1], a[4]) == ("a", str(on_a + len(spare_shards)), str(len(spare_shards)))
    assert (b[0], b[1], b[4]) == ("b", str(on_b), "0")
    assert float(a[2]) > 1
    assert a[3] == "MB"


def test_migrating_what_is_up_to_date_changes_nothing(capsys):
    call_command("migrate_shards")
    assert "up to date" in capsys.readouterr().out


def test_the_shards_are_spread_over_all_servers():
    placed = dict(LogicalShard.objects.values_list("shard", "database"))
    assert sorted(placed) == list(range(settings.LOGICAL_SHARDS))
    assert set(placed.values()) == set(settings.SHARD_SERVERS)


@pytest.mark.parametrize(("count", "message"), [(16, "made with 8"), (4, "made with 8"), (0, "1 to 8192")])
def test_another_number_of_logical_shards_is_refused(monkeypatch, count, message):
    monkeypatch.setattr(settings, "LOGICAL_SHARDS", count)
    with pytest.raises(CommandError, match=message):
        call_command("migrate_shards")


def test_what_belongs_to_the_directory_is_not_on_the_shard_servers():
    with connections["b"].cursor() as cursor, pytest.raises(DatabaseError, match="accounts_user"):
        cursor.execute("SELECT 1 FROM accounts_user")
