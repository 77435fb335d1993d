"""What an ID costs: rows inserted into a table whose key our function makes, beside one with a bigserial."""

import threading
import time

from django.db import connections

from shardmap.shards import database_of, schema_name

SHARD = 0
ROWS, BATCH, SESSIONS = 200_000, 10_000, 4
KEYS = {
    "bigserial": "id bigserial PRIMARY KEY",
    "next_id": f"id bigint PRIMARY KEY DEFAULT {schema_name(SHARD)}.next_id()",
}


def run() -> dict[str, float]:
    result: dict[str, float] = {"rows": ROWS}
    with connections[database_of(SHARD)].cursor() as cursor:
        for sessions in (1, SESSIONS):
            for name, key in KEYS.items():
                cursor.execute(f"CREATE TABLE bench_ids ({key}, payload text)")
                try:
                    result[f"{name}, {sessions} sessions, rows/s"] = round(ROWS / _seconds(sessions))
                    cursor.execute("SELECT count(*) FROM bench_ids")
                    assert cursor.fetchone()[0] == ROWS
                finally:
                    cursor.execute("DROP TABLE bench_ids")
    return result


def _seconds(sessions: int) -> float:
    start = threading.Barrier(sessions + 1)

    def insert() -> None:
        with connections[database_of(SHARD)].cursor() as cursor:
            start.wait()
            for _ in range(ROWS // sessions // BATCH):
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
