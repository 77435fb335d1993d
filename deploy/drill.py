"""The backup half of `make drill`: backups, restored elsewhere as of a moment, are compared with what was there.

Run by cli.py with the virtual environment's Python, as `drill.py <stack>`, on a stack that is up. Nothing of it is
stopped; what is restored listens beside it, and is removed in the end.
"""

import io
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg2
import redis
import requests
from PIL import Image

sys.path[0] = str(Path(__file__).resolve().parents[1])
from deploy import redis_snapshots  # noqa: E402
from deploy.backups import at_once, back_up, local_servers, remove_copy, restore_copy  # noqa: E402
from deploy.local.data import as_user  # noqa: E402
from deploy.local.demo import Api  # noqa: E402
from deploy.local.layout import SERVER_USER, Failed, Stack, make_dir  # noqa: E402
from deploy.local.machine import step, which  # noqa: E402
from deploy.local.ports import COPIES_AT, HOST  # noqa: E402

PEOPLE = 4  # who write something, in the directory and in shards of both servers
PATIENCE = 60  # seconds for what was written to be settled, and for a Redis to start

DATABASES = "SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1"
TABLES = """
    SELECT pg_class.oid::regclass::text FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relkind = 'r' AND relpersistence = 'p' AND nspname !~ '^pg_' AND nspname <> 'information_schema'
"""
# Whatever the order of the rows.
CHECKSUM = "SELECT count(*), coalesce(sum(hashtextextended(row::text, 0)::numeric), 0) FROM {} AS row"

Contents = dict[tuple[str, str, str], tuple[int, int]]  # (server, database, table) → (rows, checksum)
Entries = dict[tuple[bytes, bytes], bytes]  # (hash, field) → value


def drill(stack: Stack) -> None:
    """Raises Failed when something that was restored differs from what it was."""
    start = time.monotonic()
    write(stack, "before the backup")
    with step("base backups of the Postgres servers"):
        backups = at_once(back_up, local_servers(stack))
    for backup in backups:
        print(f"    {backup.kind}: {megabytes(backup.bytes)}, in S3 {megabytes(backup.stored_bytes)}")
    write(stack, "after the backup")
    with step("what is there now"):
        moment, contents = settled(stack)
    drill_map(stack)
    write(stack, "after that moment")
    drill_postgres(stack, moment, contents)
    print(f"Everything that was restored is as it was. The drill took {time.monotonic() - start:.1f} s.")


def write(stack: Stack, when: str) -> None:
    """Some people sign up, follow each other and publish a photo each, by the API."""
    with step(f"people publish photos, {when}"):
        api = Api(stack.environment()["SITE_URL"], stack.secrets["secret_key"])
        people = [api.log_in(f"drill{time.time_ns() // 1000}", "Drill") for _ in range(PEOPLE)]
        for person, other in zip(people, people[1:] + people[:1], strict=True):
            api.call("POST", f"/v1/users/{other['id']}/relationship", person["token"], action="follow")
            upload = api.call("POST", "/v1/media/uploads", person["token"])["data"]
            photo = {"file": picture()}
            requests.post(upload["url"], data=upload["fields"], files=photo, timeout=20).raise_for_status()
            api.call("POST", "/v1/media", person["token"], upload_id=upload["upload_id"], caption="#drill")


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (640, 480), "teal").save(out, "JPEG")
    return out.getvalue()


def settled(stack: Stack) -> tuple[datetime, Contents]:
    """A moment in which nothing was written, and all that was there: the same when read before it and after it."""
    deadline = time.monotonic() + PATIENCE
    contents = read(stack)
    while time.monotonic() < deadline:
        moment = datetime.now(UTC)
        before, contents = contents, read(stack)
        if contents == before:
            return moment, contents
    raise Failed(f"Somebody writes all the time: for {PATIENCE} s no two looks at the tables found the same.")


def read(stack: Stack, higher: int = 0) -> Contents:
    """Rows and checksum of each table of the Postgres servers, or of the copies that listen so much higher."""
    found: Contents = {}
    for server in local_servers(stack):
        connect = partial(
            psycopg2.connect, host=HOST, port=stack.ports[server.name] + higher, user="postgres", connect_timeout=5,
            password=stack.secrets["postgres_password"],
        )  # fmt: skip
        for (database,) in query(connect, "postgres", [DATABASES])[0]:
            tables = [table for (table,) in query(connect, database, [TABLES])[0]]
            for table, rows in zip(tables, query(connect, database, map(CHECKSUM.format, tables)), strict=True):
                found[server.name, database, table] = rows[0]
    return found


def query(connect: Callable, database: str, statements) -> list[list[tuple]]:
    """What each of the statements finds, all in one snapshot."""
    with closing(connect(dbname=database)) as connection, connection.cursor() as cursor:
        connection.set_session("REPEATABLE READ", readonly=True)
        answers = []
        for statement in statements:
            cursor.execute(statement)
            answers.append(cursor.fetchall())
        return answers


def drill_postgres(stack: Stack, moment: datetime, contents: Contents) -> None:
    servers = local_servers(stack)
    with step("sending the last WAL"):
        at_once(lambda server: server.pgbackrest("check"), servers)
    try:
        with step(f"restoring Postgres as of {moment}"):
            at_once(lambda server: restore_copy(server, moment), servers)
        with step("comparing all tables"):
            compare(contents, read(stack, COPIES_AT))
            if contents == read(stack):
                raise Failed("Nothing was written after that moment: to restore it shows nothing.")
        print(f"    {len(contents)} tables, {sum(rows for rows, _ in contents.values())} rows")
    finally:
        at_once(remove_copy, servers)


def compare(noted: Contents, restored: Contents) -> None:
    """Raises Failed when they are not the same."""
    if differing := [key for key in noted | restored if noted.get(key) != restored.get(key)]:
        lines = [f"{' '.join(key)}: {noted.get(key)} became {restored.get(key)}" for key in differing[:20]]
        raise Failed("Tables differ in rows or checksum:\n" + "\n".join(lines))


def drill_map(stack: Stack) -> None:
    port = stack.ports["redis_shardmap"]
    bucket = redis_snapshots.Bucket(stack.snapshots_environment())
    with step("a snapshot of the map"):
        before = entries(stack, port)
        (snapshot,) = redis_snapshots.take(stack.environment()["REDIS_SHARDMAP_URL"], bucket)
        after = entries(stack, port)
    with step("restoring it"), copy_of_map(stack, snapshot, bucket) as copy:
        restored = entries(stack, copy)
    compare_maps(before, restored, after)
    print(f"    {len(restored)} entries, {megabytes(snapshot.bytes)}")


def compare_maps(before: Entries, restored: Entries, after: Entries) -> None:
    """Raises Failed when what was restored lacks an entry that was there all the time, or has one that never was."""
    lost = (before.items() & after.items()) - restored.items()
    strange = restored.items() - before.items() - after.items()
    if lost or strange:
        raise Failed(f"Of the map's {len(before)} entries, {len(lost)} were lost; {len(strange)} were never there.")


@contextmanager
def copy_of_map(stack: Stack, snapshot: redis_snapshots.Snapshot, bucket: redis_snapshots.Bucket) -> Iterator[int]:
    """A Redis that was started from the snapshot, on the port that is given."""
    port = stack.ports["redis_shardmap"] + COPIES_AT
    with TemporaryDirectory(dir=stack.dir) as directory:
        make_dir(Path(directory), SERVER_USER)
        redis_snapshots.fetch(snapshot.key, bucket, Path(directory) / "map.rdb")
        (Path(directory) / "map.rdb").chmod(0o644)
        command = [which("redis-server"), str(stack.conf / "redis_shardmap.conf"), "--port", str(port)]
        command += ["--dir", directory, "--dbfilename", "map.rdb", "--appendonly", "no"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, **as_user(SERVER_USER))
        try:
            yield port
        finally:
            process.kill()
            process.wait()


def entries(stack: Stack, port: int) -> Entries:
    """All of a Redis' hashes, as soon as it has loaded them."""
    deadline = time.monotonic() + PATIENCE
    node = redis.Redis(HOST, port, password=stack.secrets["redis_password"], socket_timeout=10)
    while True:
        try:
            return {(key, field): value for key in node.scan_iter() for field, value in node.hgetall(key).items()}
        except (redis.ConnectionError, redis.exceptions.BusyLoadingError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


if __name__ == "__main__":
    stack = Stack(sys.argv[1])
    stack.load_secrets()
    try:
        drill(stack)
    except Failed as failure:
        sys.exit(f"\nThe drill failed. {failure}")
