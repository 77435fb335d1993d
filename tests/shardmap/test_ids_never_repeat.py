"""next_id() as the migrations make it, on servers of its own, which crash, fail over and are restored from a backup.

The clock that it finds is a stub which can be set: `clock_timestamp()` is looked for in schema `stub` first.
"""

import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import psycopg2
import pytest

from deploy.local.layout import POSTGRES_USER
from deploy.local.machine import postgres_bin
from shardmap.ids import SKIP_MS, milliseconds_of_id, shard_of_id, time_of_id
from tests.support import eventually
from tests.workers.pool import lives

AS_POSTGRES = {"user": POSTGRES_USER, "group": POSTGRES_USER, "extra_groups": []} if POSTGRES_USER else {}
SHARD, SCHEMA = 42, "shard0042"
RIGHT = "pg_catalog.clock_timestamp()"
AN_HOUR_BEHIND = f"{RIGHT} - interval '1 hour'"
MIGRATIONS = [
    import_module(f"shardmap.migrations.{name}").Migration.operations[0].sql.replace('"logical"', f'"{SCHEMA}"')
    for name in ("0002_next_id", "0004_ids_never_repeat")
]


class Server:
    """A Postgres that is reached through a socket."""

    def __init__(self, home: Path, name: str) -> None:
        self.data, self.socket, self.log = home / name, home / f"{name}.socket", home / f"{name}.log"
        self.socket.mkdir()
        if POSTGRES_USER:
            shutil.chown(self.socket, POSTGRES_USER)
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        options = ("listen_addresses=", f"unix_socket_directories={self.socket}", "fsync=off", "shared_buffers=16MB")
        command = [postgres_bin() / "postgres", "-D", self.data, *(f"-c{option}" for option in options)]
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, **AS_POSTGRES)
        eventually(self.answers, 30, f"{self.data.name} answers")

    def answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg2.OperationalError:
            return False
        return True

    def stop(self, how: signal.Signals) -> None:
        if self.process:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            pids = children.read_text().split() if children.exists() else []
            self.process.send_signal(how)
            self.process.wait(30)
            # Those of one that was killed end a moment later; until then, no other starts with the same data.
            eventually(lambda: not any(lives(int(pid)) for pid in pids), 30, "its processes have ended")

    def connect(self):
        connection = psycopg2.connect(host=str(self.socket), user="postgres", dbname="postgres", connect_timeout=5)
        connection.autocommit = True
        return connection

    def run(self, sql: str) -> list[tuple]:
        connection = self.connect()
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def set_clock(self, expression: str) -> None:
        self.run(
            f"""CREATE OR REPLACE FUNCTION stub.clock_timestamp() RETURNS timestamptz LANGUAGE sql
                AS $$ SELECT {expression} $$"""
        )

    def insert(self, count: int) -> list[int]:
        sql = f"INSERT INTO {SCHEMA}.photos SELECT FROM generate_series(1, {count}) RETURNING id"
        return [photo for (photo,) in self.run(sql)]


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="ids", dir="/tmp"))  # a socket's path must be short
    if POSTGRES_USER:
        shutil.chown(directory, POSTGRES_USER)
    yield directory
    shutil.rmtree(directory)


@contextmanager
def running(server: Server) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        server.stop(signal.SIGINT)


@pytest.fixture(scope="module")
def primary(home) -> Iterator[Server]:
    server = Server(home, "primary")
    initdb = [postgres_bin() / "initdb", "-D", server.data, "--username=postgres", "--auth=trust", "--no-sync"]
    subprocess.run(initdb, check=True, timeout=60, capture_output=True, cwd=home, **AS_POSTGRES)
    with running(server):
        server.run(f"CREATE SCHEMA stub; CREATE SCHEMA {SCHEMA}")
        server.set_clock(RIGHT)
        server.run("ALTER DATABASE postgres SET search_path = stub, pg_catalog")
        before_last, last = MIGRATIONS
        server.run(before_last)
        server.run(f"CREATE TABLE {SCHEMA}.photos (id bigint PRIMARY KEY DEFAULT {SCHEMA}.next_id())")
        old = server.insert(2_000)
        server.run(last)
        assert old[-1] < server.insert(1)[0]
        yield server


@pytest.fixture
def server(primary) -> Server:
    """The primary, with the right time, and IDs that have not run ahead of it."""
    primary.set_clock(RIGHT)
    primary.run(
        f"""TRUNCATE {SCHEMA}.photos;
            SELECT setval('{SCHEMA}.id_opened', 1024), setval('{SCHEMA}.id_ticks', 1024)"""
    )
    return primary


@contextmanager
def inserting(server: Server, sessions: int = 3) -> Iterator[list[list[int]]]:
    """Sessions that insert meanwhile; yields what each has been given and has committed."""
    given: list[list[int]] = [[] for _ in range(sessions)]
    stop = threading.Event()

    def work(ids: list[int]) -> None:
        connection = server.connect()
        with connection.cursor() as cursor:
            while not stop.is_set():
                try:
                    cursor.execute(f"INSERT INTO {SCHEMA}.photos SELECT FROM generate_series(1, 20) RETURNING id")
                    ids += [photo for (photo,) in cursor.fetchall()]
                except psycopg2.OperationalError:  # the server was killed
                    return

    with ThreadPoolExecutor(sessions) as pool:
        futures = [pool.submit(work, ids) for ids in given]
        try:
            yield given
        finally:
            stop.set()
    for future in futures:
        future.result()


def each_inserts(given: list[list[int]], count: int = 500) -> None:
    wanted = [len(ids) + count for ids in given]
    eventually(lambda: all(len(ids) >= n for ids, n in zip(given, wanted, strict=True)), 20, "everyone inserts")


def test_more_than_1024_in_a_millisecond_borrow_from_the_next_ones(server):
    server.set_clock("timestamptz '2026-11-21 12:00:00.123+00'")
    with ThreadPoolExecutor(3) as pool:
        given = list(pool.map(server.insert, [4_000] * 3))
    every = [photo for ids in given for photo in ids]
    assert len(set(every)) == 12_000
    assert all(ids == sorted(ids) for ids in given)
    assert {shard_of_id(photo) for photo in every} == {SHARD}
    assert time_of_id(min(every)).isoformat() == "2026-11-21T12:00:00.123000+00:00"
    assert milliseconds_of_id(max(every)) - milliseconds_of_id(min(every)) <= 12_000 / 384 + 3  # two draws each


def test_a_clock_that_steps_back_and_forth_while_sessions_insert(server):
    with inserting(server) as given:
        for clock in (AN_HOUR_BEHIND, RIGHT, AN_HOUR_BEHIND):
            each_inserts(given)
            server.set_clock(clock)
        each_inserts(given)
    every = [photo for ids in given for photo in ids]
    assert len(set(every)) == len(every)
    assert all(ids == sorted(ids) for ids in given)


def test_neither_a_cancelled_statement_nor_an_open_transaction_keeps_the_lock(server):
    server.set_clock(AN_HOUR_BEHIND)  # so that every ID needs the lock
    server.run(f"SELECT setval('{SCHEMA}.id_opened', (1 << 62)), setval('{SCHEMA}.id_ticks', (1 << 62))")
    holder, waiter = server.connect(), server.connect()
    with holder.cursor() as holding, waiter.cursor() as waiting:
        holding.execute("SELECT pg_advisory_lock(1751213924, %s)", [SHARD])
        waiting.execute("SET lock_timeout = '50ms'")
        with pytest.raises(psycopg2.errors.LockNotAvailable):
            waiting.execute(f"SELECT {SCHEMA}.next_id()")
        holding.execute("SELECT pg_advisory_unlock_all()")
        waiting.execute("SET statement_timeout = '300ms'")
        with pytest.raises(psycopg2.errors.QueryCanceled):  # somewhere in the function
            waiting.execute(f"SELECT count({SCHEMA}.next_id()) FROM generate_series(1, 10000000)")
        waiting.execute("RESET statement_timeout")
        holding.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        assert holding.fetchone() == (0,)
        holding.execute(f"BEGIN; SELECT {SCHEMA}.next_id()")
        waiting.execute(f"SELECT {SCHEMA}.next_id()")
        assert holding.fetchone() < waiting.fetchone()
    holder.close()
    waiter.close()


def test_a_server_killed_under_inserts_repeats_nothing(server):
    with inserting(server) as given:
        each_inserts(given)
        server.set_clock(AN_HOUR_BEHIND)
        each_inserts(given)
        server.stop(signal.SIGKILL)
    server.start()
    before = {photo for ids in given for photo in ids}
    after = server.insert(5_000)
    assert len(before | set(after)) == len(before) + 5_000
    assert min(after) > max(before)
    assert milliseconds_of_id(after[0]) - milliseconds_of_id(max(before)) <= SKIP_MS + 1000


def test_a_promoted_replica_that_lacks_the_last_ids_and_a_restored_backup(server, home):
    before = server.insert(100)
    copy = [postgres_bin() / "pg_basebackup", "-h", server.socket, "-U", "postgres", "--checkpoint=fast", "--no-sync"]
    replica, restored = Server(home, "replica"), Server(home, "restored")
    for where, how in ((replica, ["--write-recovery-conf"]), (restored, [])):
        subprocess.run([*copy, "-D", where.data, *how], check=True, timeout=60, capture_output=True, **AS_POSTGRES)
    with running(replica):
        before += server.insert(100)
        there = f"SELECT count(*) FROM {SCHEMA}.photos"
        eventually(lambda: replica.run(there) == server.run(there), what="the replica follows")
        replica.run("ALTER SYSTEM SET primary_conninfo = ''")
        replica.run("SELECT pg_reload_conf()")
        eventually(lambda: not replica.run("SELECT FROM pg_stat_wal_receiver"), what="the replica is cut off")
        lost = server.insert(2_000)
        assert replica.run(there) == [(200,)]
        replica.run("SELECT pg_promote()")
        replica.set_clock(AN_HOUR_BEHIND)
        with ThreadPoolExecutor(3) as pool:
            promoted = [photo for ids in pool.map(replica.insert, [2_000] * 3) for photo in ids]
        before += lost
        assert len({*before, *promoted}) == len(before) + 6_000
        assert min(promoted) > max(before)
        assert milliseconds_of_id(max(promoted)) - milliseconds_of_id(max(before)) <= SKIP_MS + 1000
    with running(restored):
        after = restored.insert(2_000)
        assert min(after) > max(before)
        assert time_of_id(after[-1]).timestamp() < time.time() + SKIP_MS / 1000 + 1
