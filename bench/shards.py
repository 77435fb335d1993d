"""Logical shards in any number: made from nothing, then asked through pgbouncer and, beside it, directly.

They are made in databases of their own on the stack's servers, and the load is pgbench's.
"""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import psycopg2
from django.conf import settings

from shardmap.ids import MAX_LOGICAL_SHARDS

DATABASE, DIRECTORY = "bench", "bench_directory"  # the local stack's pgbouncer knows the first
FEW = 8
CLIENTS, SECONDS, STARTS = 64, 10, 3
# What a page of a user's photos asks, in a random one of the first server's shards.
SCRIPT = """
\\set shard {servers} * random(0, {shards} - 1)
\\set d3 :shard / 1000
\\set d2 :shard / 100 % 10
\\set d1 :shard / 10 % 10
\\set d0 :shard % 10
SELECT id, caption FROM shard:d3:d2:d1:d0.photos_photo WHERE owner_id = :shard ORDER BY id DESC LIMIT 20;
"""
PLOTTED = ("queries/s", "MB of backends")
# What a process must have done before it can ask a shard.
START = "from shardmap.shards import database_of; database_of(0)"
BACKENDS = f"SELECT pid FROM pg_stat_activity WHERE datname = '{DATABASE}' AND usename <> 'postgres'"


def run(n: int = 4096) -> dict[str, float]:
    few, most = FEW * len(settings.SHARD_SERVERS), MAX_LOGICAL_SHARDS
    if not few <= n <= most:
        raise ValueError(f"{n} shards cannot be measured: {few} to {most} can")
    server = settings.SHARD_SERVERS[0]
    on_server = n // len(settings.SHARD_SERVERS)
    scratch = _environment(n)
    result: dict[str, float] = {"shards": n}
    with _databases():
        result["s to make them"] = round(_manage(scratch, "migrate", "-v0") + _manage(scratch, "migrate_shards"))
        with closing(_admin(server, DATABASE)) as admin:
            ((size,),) = _rows(admin, "SELECT pg_database_size(current_database())")
            result["MB on each server, empty"] = round(size / 2**20)
            for shards, environment in ((settings.LOGICAL_SHARDS, os.environ), (n, scratch)):
                seconds = median(_manage(environment, "shell", "-v0", "-c", START) for _ in range(STARTS))
                result[f"s to start the app, {shards} shards"] = round(seconds, 2)
            for way, url in (("direct", _url(server, direct=True)), ("pgbouncer", _url(server))):
                for shards in (FEW, on_server):
                    with _backends(admin) as megabytes:
                        result[f"{way}, {shards} shards, queries/s"] = _queries(url, shards)
                    result[f"{way}, {shards} shards, MB of backends"] = round(max(megabytes))
    return result


def _url(alias: str, database: str = DATABASE, direct: bool = False) -> str:
    """Where the app's role finds a database: through pgbouncer, or at the physical server itself."""
    app, admin = settings.DATABASES[alias], urlsplit(settings.SHARD_ADMINS[alias])
    address = f"{admin.hostname}:{admin.port}" if direct else f"{app['HOST']}:{app['PORT']}"
    return f"postgresql://{app['USER']}:{app['PASSWORD']}@{address}/{database}"


def _environment(n: int) -> dict[str, str]:
    """The environment of an installation of n shards, in databases of its own."""
    servers = settings.SHARD_SERVERS
    return {
        **os.environ,
        "LOGICAL_SHARDS": str(n),
        "DIRECTORY_URL": _url(servers[0], DIRECTORY, direct=True),
        "SHARD_SERVERS": " ".join(f"{alias}={_url(alias, direct=True)}" for alias in servers),
        "DATABASE_ANSWER_SECONDS": "600",
    }


def _admin(alias: str, database: str = "postgres"):
    connection = psycopg2.connect(urlsplit(settings.SHARD_ADMINS[alias])._replace(path=f"/{database}").geturl())
    connection.autocommit = True
    return connection


def _rows(connection, sql: str) -> list[tuple]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall() if cursor.description else []


@contextmanager
def _databases() -> Iterator[None]:
    """The scratch databases; they are gone afterwards."""
    databases = [(alias, DATABASE) for alias in settings.SHARD_SERVERS] + [(settings.SHARD_SERVERS[0], DIRECTORY)]

    def each(sql: str) -> None:
        for alias, database in databases:
            with closing(_admin(alias)) as admin:
                _rows(admin, sql.format(database))

    each("DROP DATABASE IF EXISTS {} WITH (FORCE)")  # of a run that was killed
    try:
        each("CREATE DATABASE {} OWNER instagram")
        yield
    finally:
        each("DROP DATABASE IF EXISTS {} WITH (FORCE)")


def _manage(environment: Mapping[str, str], *command: str) -> float:
    """Runs one of our commands; returns the seconds that it took."""
    began = time.perf_counter()
    subprocess.run([sys.executable, settings.BASE_DIR / "manage.py", *command], env=environment, check=True)
    return time.perf_counter() - began


def _queries(url: str, shards: int) -> int:
    """Queries a second, of CLIENTS clients at once."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(SCRIPT.format(servers=len(settings.SHARD_SERVERS), shards=shards))
        script.flush()
        parts = urlsplit(url)
        address = f"postgresql://{parts.username}@{parts.hostname}:{parts.port}{parts.path}"
        done = subprocess.run(
            ["pgbench", "-n", f"-c{CLIENTS}", "-j2", f"-T{SECONDS}", f"-f{script.name}", address],
            env=os.environ | {"PGPASSWORD": parts.password},
            capture_output=True, text=True, check=True, timeout=SECONDS + 60,
        )  # fmt: skip
    return round(float(re.search(r"tps = ([\d.]+)", done.stdout)[1]))


@contextmanager
def _backends(admin) -> Iterator[list[float]]:
    """Fills the list with how much memory of their own, in MB, the database's backends have, twice a second."""
    megabytes, done = [0.0], threading.Event()

    def look() -> None:
        while not done.wait(0.5):
            kilobytes = 0
            for (pid,) in _rows(admin, BACKENDS):
                with suppress(OSError):  # it has ended
                    kilobytes += sum(map(int, re.findall(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())))
            megabytes.append(kilobytes / 1024)

    watching = threading.Thread(target=look)
    watching.start()
    try:
        yield megabytes
    finally:
        done.set()
        watching.join()
