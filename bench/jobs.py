"""Jobs through the outbox, gearmand and 50 worker processes: how many a second, and how soon after the commit.

The job does nothing but say in Redis when it began, so what is measured is the way there: the row, the submit, the
claim, the row's end. (`bench` is an app like the others: its jobs are in this file.)
"""

import subprocess
import sys
import time
from contextlib import contextmanager
from statistics import quantiles

from django.conf import settings
from django.db import transaction

from shardmap.redis_client import redis_client
from shardmap.shards import current_database, shard_transaction
from workers.outbox import enqueue, enqueue_many
from workers.registry import job

OWN_STACK = True
PROCESSES = 50
USERS = 8  # whose outboxes the jobs are in
BATCH = 500
JOBS_A_SECOND = 100  # while latency is measured
SECONDS = 20
POLL_SECONDS = 0.005
PATIENCE = 300  # seconds
BEGUN = "bench:begun"


@job("bench.begin")
def begin(number: int) -> None:
    redis_client(settings.REDIS_FEEDS_URL).hset(BEGUN, number, time.time())


def run(n: int = 20_000) -> dict[str, float]:
    with _pool():
        _await(_enqueue_batch(range(PROCESSES * 20)))  # each process has its connections
        began = time.time()
        for first in range(0, n, BATCH):
            _enqueue_batch(range(first, min(n, first + BATCH)))
        at = _await(n)
        rate = n / (max(at.values()) - began)
        committed = _commit_at_a_pace(range(JOBS_A_SECOND * SECONDS))
        at = _await(len(committed))
    percentiles = quantiles((1000 * (at[number] - committed[number]) for number in committed), n=100)
    return {
        "jobs": n,
        "worker processes": PROCESSES,
        "jobs/s, enqueued in batches": round(rate),
        "jobs/s while timed one by one": JOBS_A_SECOND,
        "ms from commit to start, p50": round(percentiles[49], 2),
        "ms from commit to start, p99": round(percentiles[98], 2),
    }


def _enqueue_batch(numbers: range) -> int:
    with shard_transaction(numbers[0] // BATCH % USERS):
        enqueue_many("bench.begin", [{"number": number} for number in numbers])
    return len(numbers)


def _commit_at_a_pace(numbers: range) -> dict[int, float]:
    """A job each hundredth of a second, each in a transaction of its own; when it was committed."""
    committed: dict[int, float] = {}
    began = time.time()
    for number in numbers:
        time.sleep(max(0, began + number / JOBS_A_SECOND - time.time()))
        with shard_transaction(number % USERS):
            # Before the outbox' own, which submits.
            transaction.on_commit(lambda number=number: committed.update({number: time.time()}), current_database())
            enqueue("bench.begin", number=number)
    return committed


def _await(n: int) -> dict[int, float]:
    """Waits until n jobs have begun, and returns when each did."""
    redis = redis_client(settings.REDIS_FEEDS_URL)
    deadline = time.monotonic() + PATIENCE
    while redis.hlen(BEGUN) < n:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{redis.hlen(BEGUN)} of {n} jobs began within {PATIENCE} s")
        time.sleep(POLL_SECONDS)
    at = {int(number): float(moment) for number, moment in redis.hgetall(BEGUN).items()}
    redis.delete(BEGUN)
    return at


@contextmanager
def _pool():
    """The stack's only workers."""
    from bench import own_stack  # not in each worker process, which imports this file for the job

    subprocess.run([*own_stack.STACK, "ctl", "stop", "worker"], check=True)
    command = [sys.executable, settings.BASE_DIR / "manage.py", "worker", f"--processes={PROCESSES}"]
    with subprocess.Popen(command) as pool:
        try:
            yield
        finally:
            pool.terminate()
