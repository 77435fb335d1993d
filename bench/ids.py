"""What an ID costs: rows inserted into a table whose key our function makes, beside one with a bigserial."""

import threading
import time

from django.db import connections, transaction

from shardmap.shards import database_of, schema_name

SHARD = 0
ROWS_A_SESSION, BATCH, ROUNDS = 250_000, 10_000, 3
PLOTTED = ("rows/s",)
KEYS = {
    "bigserial": "id bigserial",
    "next_id": f"id bigint DEFAULT {schema_name(SHARD)}.next_id()",
}


def run() -> dict[str, float]:
    result: dict[str, float] = {"rows a session": ROWS_A_SESSION}
    for sessions in (1, 8):
        seconds: dict[str, list[float]] = {name: [] for name in KEYS}
        duplicates = 0
        for _ in range(ROUNDS):  # one after the other, so that what else the machine does hits both
            for name, key in KEYS.items():
                took, repeated = _insert(key, sessions)
                seconds[name].append(took)
                duplicates += repeated
        # The best of each: whatever else the machine does only adds to it.
        best = {name: min(took) for name, took in seconds.items()}
        for name, took in best.items():
            result[f"{name}, {sessions} sessions, rows/s"] = round(ROWS_A_SESSION * sessions / took)
        result[f"times bigserial's time, {sessions} sessions"] = round(best["next_id"] / best["bigserial"], 2)
        result[f"duplicates, {sessions} sessions"] = duplicates
    return result


def _insert(key: str, sessions: int) -> tuple[float, int]:
    """Fills a table by so many sessions; returns the seconds that it took, and how many IDs came twice."""
    connection = connections[database_of(SHARD)]
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE bench_ids ({key}, payload text)")
        try:
            # As a primary key has, but one that would take an ID twice, so that it is counted.
            cursor.execute("CREATE INDEX ON bench_ids (id)")
            seconds = _seconds(sessions)
            with transaction.atomic(using=connection.alias):
                cursor.execute("SET LOCAL statement_timeout = 0")
                cursor.execute("SELECT count(*), count(DISTINCT id) FROM bench_ids")
                rows, distinct = cursor.fetchone()
            assert rows == ROWS_A_SESSION * sessions
            return seconds, rows - distinct
        finally:
            cursor.execute("DROP TABLE bench_ids")


def _seconds(sessions: int) -> float:
    start = threading.Barrier(sessions + 1, timeout=30)

    def insert() -> None:
        with connections[database_of(SHARD)].cursor() as cursor:
            start.wait()
            for _ in range(ROWS_A_SESSION // BATCH):
                cursor.execute("INSERT INTO bench_ids (payload) SELECT 'x' FROM generate_series(1, %s)", [BATCH])
        connections.close_all()

    threads = [threading.Thread(target=insert) for _ in range(sessions)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began
