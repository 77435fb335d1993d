"""Jobs that cannot be lost.

    request                       Postgres            gearmand            worker
    ─ change and enqueue(), ────▶ one transaction
      commit
    ─ submit after the commit ──────────────────────▶ queue ────────────▶ claim the row   (attempts + 1, lease)
                                                                          do the job
                                  row deleted ◀────────────────────────── success
                                  due later   ◀────────────────────────── failure         (backoff)
      relay, each second: ◀────── rows that are due
      submit again    ──────────────────────────────▶ queue

The row is written with the change, in the same transaction, so either both are there or neither. Everything after
that may fail at any point: gearmand down, the app killed after the commit, a worker killed at work, the machine
rebooted. Then the row becomes due again, and the relay submits it. So a job runs at least once, and each is written
such that twice is harmless.

A job that keeps failing, or keeps killing its worker, is parked after MAX_ATTEMPTS. See docs/workers.md.
"""

import datetime
import logging
import random
from functools import partial

from django.db import connections, transaction
from django.db.models.functions import Now

from shardmap.shards import current_shard_or_none, database_of
from workers import gearman
from workers.models import OutboxJob

logger = logging.getLogger(__name__)

# The relay leaves a new row alone for so long: normally it is done by then.
GRACE = datetime.timedelta(seconds=5)
# No second worker takes a job before this has passed. Longer than a job may run (worker.JOB_SECONDS).
LEASE = datetime.timedelta(seconds=30)
LONGEST_BACKOFF = datetime.timedelta(minutes=5)
MAX_ATTEMPTS = 20  # with the backoff above, an hour of failing
RELAY_BATCH = 1000


def enqueue(job: str, **args) -> None:
    """Writes a job to the outbox of the database that the code is on: the shard's, or else the directory's.

    Must be called in the transaction of the change that it belongs to; raises RuntimeError outside of one.
    """
    enqueue_many(job, [args])


def enqueue_many(job: str, args_of_each: list[dict]) -> None:
    """`enqueue` for many jobs of one name, in one statement and one submit."""
    shard = current_shard_or_none()
    database = "default" if shard is None else database_of(shard)
    if not connections[database].in_atomic_block:
        raise RuntimeError(f"enqueue({job!r}) outside of a transaction: the job could be lost, or run for nothing")
    rows = OutboxJob.objects.using(database).bulk_create(
        [OutboxJob(job=job, args=args, due_at=Now() + GRACE) for args in args_of_each]
    )
    jobs = [(row.id, job) for row in rows]
    transaction.on_commit(partial(_submit_or_leave_to_relay, database, jobs), using=database)


def _submit_or_leave_to_relay(database: str, jobs: list[tuple[int, str]]) -> None:
    try:
        gearman.submit(database, jobs)
    except gearman.Unavailable as error:
        logger.warning("gearmand is away, %d jobs wait for the relay: %s", len(jobs), error)


def relay(database: str) -> int:
    """Submits the rows of one database that are due, oldest first; returns how many. Raises gearman.Unavailable."""
    due = OutboxJob.objects.using(database).filter(parked_at=None, due_at__lte=Now()).order_by("due_at")
    jobs = list(due.values_list("id", "job")[:RELAY_BATCH])
    if jobs:
        gearman.submit(database, jobs)
    return len(jobs)


CLAIM = """
    UPDATE workers_outbox SET attempts = attempts + 1, due_at = now() + %s
    WHERE id = %s AND parked_at IS NULL AND (attempts = 0 OR due_at <= now())
    RETURNING *
"""


def claim(database: str, row_id: int) -> OutboxJob | None:
    """Takes a job for a worker; None when there is nothing to do: it is done, parked, or another worker has it."""
    for row in OutboxJob.objects.using(database).raw(CLAIM, [LEASE, row_id]):
        if row.attempts <= MAX_ATTEMPTS:
            return row
        # It never came back to say why: it takes its worker with it.
        _park(row, row.last_error or "the worker died at it, each time")
    return None


def succeeded(row: OutboxJob) -> None:
    row.delete()


def failed(row: OutboxJob, error: str) -> None:
    """Puts a job off until its backoff has passed (1, 2, 4 … seconds, with jitter), or parks it after the last try."""
    if row.attempts >= MAX_ATTEMPTS:
        _park(row, error)
        return
    backoff = min(LONGEST_BACKOFF, datetime.timedelta(seconds=2 ** (row.attempts - 1)))
    row.due_at = Now() + backoff * random.uniform(0.75, 1.25)
    row.last_error = error
    row.save(update_fields=["due_at", "last_error"])


def replay(row: OutboxJob) -> None:
    """Lets a parked job try again, from the first attempt."""
    OutboxJob.objects.using(row._state.db).filter(id=row.id).update(parked_at=None, attempts=0, due_at=Now())


def _park(row: OutboxJob, error: str) -> None:
    logger.error("parked %s %s after %d attempts: %s", row.job, row.args, row.attempts, error)
    row.parked_at = Now()
    row.last_error = error
    row.save(update_fields=["parked_at", "last_error"])
