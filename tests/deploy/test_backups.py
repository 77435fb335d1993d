"""Backups, and what becomes of them when something is not as it should be (docs/backups.md)."""

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from deploy.backups import (
    Backup,
    Server,
    at_once,
    back_up,
    backups_of,
    kind_due,
    local_servers,
    moment,
    restore_copy,
    run_here,
    stack_of,
)
from deploy.drill import compare, compare_maps
from deploy.local.layout import ROOT, Failed
from deploy.local.ports import COPIES_AT
from tests.support import ctl, eventually, get

STACK = os.environ["STACK"]
NOW = datetime(2026, 11, 22, 3, tzinfo=UTC)


@pytest.fixture(scope="module", autouse=True)
def drilled() -> str:
    """What a drill said, which all went well. It leaves backups behind."""
    drill = [sys.executable, ROOT / "deploy/drill.py", STACK]
    done = subprocess.run(drill, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def servers() -> list[Server]:
    return local_servers(stack_of(STACK))


def fab(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "fabric", *arguments, "--stack", STACK]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def a_backup(kind: str, days_ago: float) -> Backup:
    ended = NOW - timedelta(days=days_ago)
    return Backup("label", kind, ended - timedelta(minutes=1), ended, bytes=1, stored_bytes=1)


# The drill


def test_all_that_was_restored_is_as_it_was_and_nothing_of_it_is_left(drilled, servers):
    assert "Everything that was restored is as it was." in drilled
    assert [server.sh('ls -d "$COPY"* || true').strip() for server in servers] == ["", ""]
    assert get("/readyz").status_code == 200


def test_the_drill_finds_what_differs():
    table, other = ("postgres_a", "shards_a", "shard0000.photos_photo"), ("postgres_b", "shards_b", "workers_outbox")
    compare({table: (3, 17)}, {table: (3, 17)})
    for restored in ({table: (2, 17)}, {table: (3, 18)}, {}, {table: (3, 17), other: (0, 0)}):
        with pytest.raises(Failed, match=r"shard0000.photos_photo|workers_outbox"):
            compare({table: (3, 17)}, restored)


def test_the_drill_lets_the_map_change_while_it_is_taken_but_nothing_be_lost():
    old, new, strange = {(b"hash", b"1"): b"5"}, {(b"hash", b"2"): b"6"}, {(b"hash", b"3"): b"7"}
    compare_maps(old, old, old | new)
    compare_maps(old, old | new, old | new)
    for restored in ({}, new, old | strange, {(b"hash", b"1"): b"6"}):
        with pytest.raises(Failed, match="entries"):
            compare_maps(old, restored, old | new)


# Backups


@pytest.mark.parametrize(
    ("backups", "kind"),
    [
        ([], "full"),
        ([a_backup("full", 6.9)], "diff"),
        ([a_backup("full", 7.1)], "full"),
        ([a_backup("full", 7.1), a_backup("diff", 1)], "full"),
        ([a_backup("full", 9), a_backup("full", 2), a_backup("diff", 1)], "diff"),
    ],
)
def test_a_full_backup_is_due_each_week(backups, kind):
    assert kind_due(backups, NOW) == kind


@pytest.mark.slow
def test_fab_makes_and_lists_backups():
    made = fab("backup")
    assert made.returncode == 0, made.stderr
    listed = fab("backups").stdout.splitlines()
    for line in made.stdout.splitlines():
        assert line in listed
    assert [line.split()[0] for line in made.stdout.splitlines()] == ["postgres_a", "postgres_b", "map"]


@pytest.mark.slow
def test_a_server_that_is_away_is_named_and_the_others_are_backed_up_and_restored(stopped):
    stopped("postgres_b")
    for task, told in {
        "backup": {"postgres_a", "map"},
        "backups": {"postgres_a", "map"},
        "restore": {"postgres_a,"},
        "remove-copies": set(),
    }.items():
        done = fab(task)
        assert done.returncode == 1, task
        assert "postgres_b" in done.stderr
        assert {line.split()[0] for line in done.stdout.splitlines()} == told


def test_a_second_backup_at_the_same_time_is_refused(servers):
    with pytest.raises(Failed, match="is another pgBackRest process running"):
        at_once(partial(back_up, kind="diff"), [servers[0], servers[0]])


def test_what_is_in_s3_cannot_be_read_without_the_passphrase(servers):
    without = Server("a", str(with_setting(servers[0], "REPO1_CIPHER_PASS", "another")), run_here)
    with pytest.raises(Failed, match=r"unable to load info file"):
        without.pgbackrest("backup")


@pytest.mark.slow
def test_without_s3_a_backup_ends_with_an_error_and_harms_nothing(servers, stopped):
    impatient = Server("a", str(with_setting(servers[0], "IO_TIMEOUT", "0.2")), run_here)
    before = backups_of(servers[0])
    stopped("seaweedfs")
    with pytest.raises(Failed, match="unable to connect"):
        back_up(impatient)
    assert servers[0].is_primary()
    ctl("start", "seaweedfs")
    assert eventually(lambda: backups_of(servers[0]), 30) == before
    servers[0].pgbackrest("check")  # a WAL segment arrives, and so do those before it


def with_setting(server: Server, name: str, value: str) -> Path:
    """The server's environment with another setting of pgBackRest."""
    environment = Path(server.environment)
    file = environment.with_suffix(".changed")  # where the user of Postgres may read, as not in pytest's directories
    shutil.copy(environment, file)
    os.chown(file, environment.stat().st_uid, environment.stat().st_gid)
    with file.open("a") as settings:
        settings.write(f"PGBACKREST_{name}={value}\n")
    return file


# What Munin sees


def seen(graph: str) -> list[float]:
    """What the graph would show of each server."""
    plugin = [sys.executable, ROOT / "deploy/munin/plugins/instagram_postgres"]
    environment = os.environ | {"ENV_FILE": str(stack_of(STACK).dir / "env")}
    said = subprocess.run(plugin, env=environment, capture_output=True, text=True, timeout=30, check=True).stdout
    of_graph = said.split(f"multigraph {graph}\n")[1].split("multigraph")[0]
    return [float(line.split()[1]) for line in of_graph.splitlines()]


def test_munin_sees_how_old_the_last_backup_is(servers):
    at_once(partial(back_up, kind="diff"), servers)
    assert all(0 <= hours < 0.1 for hours in seen("instagram_backup_age"))


@pytest.mark.slow
def test_munin_sees_that_wal_does_not_arrive(servers):
    server = servers[1]
    assert seen("instagram_archive") == [0, 0]
    order = 'for sql; do "$POSTGRES_BIN/psql" -XAtqc "$sql"; done'
    reload = "SELECT pg_reload_conf()"
    # A server that has written nothing since the last switch does not switch.
    written = "SELECT pg_create_restore_point('test')"
    server.sh(order, "ALTER SYSTEM SET archive_command = 'false'", reload, written, "SELECT pg_switch_wal()")
    try:
        eventually(lambda: seen("instagram_archive")[1] > 0, 30, "archiving fails")
    finally:
        server.sh(order, "ALTER SYSTEM RESET archive_command", reload)
        server.pgbackrest("check")
    assert seen("instagram_archive") == [0, 0]


# Restoring


def test_there_is_no_way_back_to_before_the_first_backup(servers):
    first = backups_of(servers[0])[0].ended
    with pytest.raises(Failed, match=f"no backup from before .*: the oldest one ended at {first:%Y-%m-%d}"):
        restore_copy(servers[0], first - timedelta(seconds=1))
    assert servers[0].sh('ls -d "$COPY"* || true').strip() == ""


def test_no_time_to_come_can_be_restored(servers):
    with pytest.raises(Failed, match="is not yet"):
        restore_copy(servers[0], datetime.now(UTC) + timedelta(minutes=1))


def test_a_time_is_in_utc_unless_it_says_otherwise():
    assert moment("2026-11-22 03:00") == moment("2026-11-22 04:00+01:00") == NOW
    with pytest.raises(Failed, match="yesterday is no time"):
        moment("yesterday")


@pytest.mark.slow
def test_without_a_time_all_is_restored_and_a_second_copy_is_refused(servers):
    try:
        done = fab("restore", "--server", "postgres_b")
        assert done.returncode == 0, done.stderr
        assert f"-p {stack_of(STACK).ports['postgres_b'] + COPIES_AT}" in done.stdout
        with pytest.raises(Failed, match="There is a copy already"):
            restore_copy(servers[1], None)
    finally:
        assert fab("remove-copies", "--server", "postgres_b").returncode == 0
    assert servers[1].sh('ls -d "$COPY"* || true').strip() == ""
