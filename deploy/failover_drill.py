"""The failover half of `make drill`: under load a primary is killed, and its replica takes over. What is missing?

    .venv/bin/python deploy/failover_drill.py dev      on a stack that is up with replicas (make up REPLICAS=1)

Writers insert through pgbouncer, as the app does, and note each ID for which a COMMIT was acknowledged. The replica is
cut off CUT_SECONDS before the primary is killed, as by a switch that fails first: the worst that can happen. Once with
synchronous replication, where nothing may be lost; and once without, to say how much it is then.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2

sys.path[0] = str(Path(__file__).resolve().parents[1])
from deploy.failover import NAME, Pgbouncer, Refused, Say, Server, failover, rejoin, roles, wait_until  # noqa: E402

WRITERS = 4
ENOUGH = 300  # acknowledged writes before the kill, and after the failover
CUT_SECONDS = 0.3
TABLE = "failover_drill"


@dataclass
class Result:
    acknowledged: int
    lost: int  # of these
    repeated_ids: int
    failover_seconds: float
    seconds_without_writes: float  # from the last that was acknowledged before to the first one after

    def __str__(self) -> str:
        return (
            f"{self.acknowledged} writes were acknowledged, {self.lost} of them are lost; {self.repeated_ids} IDs were "
            f"given out twice; {self.seconds_without_writes:.1f} s without writes, "
            f"{self.failover_seconds:.1f} s of them the failover"
        )


@dataclass
class Load:
    """What the writers were given and told."""

    url: str  # of the database, through pgbouncer, as the app's user
    acknowledged: list[tuple[float, int]] = field(default_factory=list)  # when, which ID
    stop: threading.Event = field(default_factory=threading.Event)

    def write(self) -> None:
        connection = None
        while not self.stop.is_set():
            try:
                connection = connection or self.connect()
                with connection.cursor() as cursor:
                    cursor.execute(f"INSERT INTO {TABLE} DEFAULT VALUES RETURNING id")
                    ((new_id,),) = cursor.fetchall()
                self.acknowledged.append((time.monotonic(), new_id))
            except psycopg2.Error:  # not acknowledged: it may be there or not
                connection = None
                self.stop.wait(0.02)

    def connect(self):
        connection = psycopg2.connect(self.url, connect_timeout=5)
        connection.autocommit = True
        return connection

    def wait_for_more(self) -> None:
        wanted = len(self.acknowledged) + ENOUGH
        wait_until(lambda: len(self.acknowledged) >= wanted, f"{ENOUGH} writes more")

    def ids(self) -> set[int]:
        """Those that are there."""
        with self.connect().cursor() as cursor:
            cursor.execute(f"SELECT id FROM {TABLE}")
            return {found for (found,) in cursor}


@contextmanager
def running(url: str) -> Iterator[Load]:
    """Writers into a table of their own, whose IDs are those of one of the shards there."""
    load = Load(url)
    with load.connect().cursor() as cursor:
        cursor.execute("SELECT min(nspname) FROM pg_namespace WHERE nspname ~ '^shard[0-9]{4}$'")
        ((shard,),) = cursor.fetchall()
        cursor.execute(f"DROP TABLE IF EXISTS {TABLE}")
        cursor.execute(f"CREATE TABLE {TABLE} (id bigint PRIMARY KEY DEFAULT {shard}.next_id())")
    writers = [threading.Thread(target=load.write) for _ in range(WRITERS)]
    for writer in writers:
        writer.start()
    try:
        yield load
    finally:
        load.stop.set()
        for writer in writers:
            writer.join()
        with load.connect().cursor() as cursor:
            cursor.execute(f"DROP TABLE {TABLE}")


def drill(
    primary: Server,
    replica: Server,
    pgbouncer: Pgbouncer,
    kill: Callable[[Server], None],
    *,
    synchronous: bool,
    say: Say = print,
) -> Result:
    """Kills the primary, and makes the replica its successor. `kill` is to be as sudden as a power cut, and to last."""
    primary.sql(
        f"ALTER SYSTEM SET synchronous_standby_names = '{NAME if synchronous else ''}'", "SELECT pg_reload_conf()"
    )
    database = min(pgbouncer.databases(primary))
    login = f"user=instagram passfile={pgbouncer.passfile}"
    with running(f"host={pgbouncer.host} port={pgbouncer.port} dbname={database} {login}") as load:
        load.wait_for_more()
        replica.sql("ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
        time.sleep(CUT_SECONDS)
        kill(primary)
        killed = time.monotonic()
        seconds = failover(primary, replica, [pgbouncer], say=say)
        load.wait_for_more()
        load.stop.set()
        moments = [moment for moment, _ in load.acknowledged]
        given = [new_id for _, new_id in load.acknowledged]
        return Result(
            acknowledged=len(given),
            lost=len(set(given) - load.ids()),
            repeated_ids=len(given) - len(set(given)),
            failover_seconds=seconds,
            seconds_without_writes=min(one for one in moments if one > killed)
            - max(one for one in moments if one <= killed),
        )


def main(stack_name: str) -> int:
    from deploy.local import pairs
    from deploy.local.layout import Stack

    stack = Stack(stack_name)
    stack.load_secrets()
    pgbouncer = pairs.pgbouncer(stack)
    servers = [pairs.server(stack, name) for name in ("postgres_b", "postgres_b_replica")]
    lost_what_it_must_not = False
    for synchronous in (True, False):
        print("with synchronous replication:" if synchronous else "without:")
        primary, replica = roles(servers, [pgbouncer])
        kill = lambda server: pairs.kill(stack, server.name)  # noqa: E731
        result = drill(primary, replica, pgbouncer, kill, synchronous=synchronous)
        print(result)
        rejoin(replica, primary)
        lost_what_it_must_not |= bool(result.repeated_ids or (synchronous and result.lost))
    return int(lost_what_it_must_not)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except Refused as refusal:
        sys.exit(f"refused: {refusal}")
