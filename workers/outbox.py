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
import json
import logging
import random
from collections.abc import Callable
from functools import partial

from django.conf import settings
from django.db import Error, connections, transaction
from django.db.models import QuerySet
from django.db.models.functions import Now

from shardmap import redis_client
from shardmap.backend.base import answering_within
from shardmap.shards import current_database, current_shard_or_none
from workers import gearman
from workers.models import OutboxJob
from workers.registry import all_jobs

logger = logging.getLogger(__name__)

# The relay leaves a new row alone for so long: normally it is done by then.
GRACE = datetime.timedelta(seconds=5)
# No second worker takes a job before this has passed. Longer than a job may run (worker.JOB_SECONDS).
LEASE = datetime.timedelta(seconds=30)
LONGEST_BACKOFF = datetime.timedelta(minutes=5)
MAX_ATTEMPTS = 20  # with the backoff above, an hour of failing
# What the relay has submitted, it leaves alone for so long.
RESUBMIT = datetime.timedelta(seconds=10)
# After so long it submits it to the next gearmand: perhaps no worker reaches this one, or all that do are busy.
TURN = datetime.timedelta(minutes=1)
RELAY_BATCH = 1000


def enqueue(job: str, **args) -> None:
    """Writes a job to the outbox of the database that the code is on: the shard's, or else the directory's.

    Must be called in the transaction of the change that it belongs to; raises RuntimeError outside of one.
    """
    enqueue_many(job, [args])


def enqueue_many(job: str, args_of_each: list[dict]) -> None:
    """`enqueue` for many jobs of one name, in one statement and one submit."""
    if not args_of_each:
        return
    database = _database_of_change(job)
    jobs = [(row_id, job) for row_id in _insert(database, job, args_of_each, GRACE)]
    transaction.on_commit(partial(submit, database, jobs), using=database)


def enqueue_in(delay: datetime.timedelta, job: str, **args) -> None:
    """`enqueue` for a job that is done after a delay, when the relay submits it."""
    _insert(_database_of_change(job), job, [args], delay)


def enqueue_in_case(job: str, **args) -> Callable[[], None]:
    """`enqueue` for a job that its caller does itself: after the commit, by calling what is returned here.

    Until then the job is the caller's, as if a worker had claimed it. Should it die before the job is done, the relay
    submits that when the claim has ended (LEASE); should the job fail, at once. Of errors the caller is told, but for
    those of Redis: what was committed is committed.
    """
    database = _database_of_change(job)
    (row_id,) = _insert(database, job, [args], LEASE, held_for=LEASE)
    return lambda: do_held(database, row_id, partial(all_jobs()[job], **args))


def do_held(database: str, row_id: int, job: Callable[[], None]) -> None:
    """Does a job whose row the caller holds; see enqueue_in_case."""
    done = False
    try:
        # No step may take so long that all of them together outlast the lease.
        with answering_within(LEASE.total_seconds() / 6):
            job()
        done = True
    except redis_client.Unavailable as error:
        logger.warning("row %s of %s is left to the relay: %s", row_id, database, error)
    finally:
        try:
            _write(database, DELETE if done else RELEASE, [row_id])
        except Error as error:
            logger.warning("row %s of %s comes again: %s", row_id, database, error)


def _database_of_change(job: str) -> str:
    database = "default" if current_shard_or_none() is None else current_database()
    if not connections[database].in_atomic_block:
        raise RuntimeError(f"enqueue({job!r}) outside of a transaction: the job could be lost, or run for nothing")
    return database


# This, DELETE and CLAIM are not the ORM's, which takes longer over them than Postgres: each write has a job or two.
INSERT = """
    INSERT INTO workers_outbox (job, args, due_at, held_until, attempts, last_error)
    SELECT %s, args, statement_timestamp() + %s, statement_timestamp() + %s, 0, '' FROM jsonb_array_elements(%s) AS args
    RETURNING id
"""


def insert_for_each(source: str, job: str, args: str, *, is_held: bool = False) -> str:
    """`enqueue`, or `enqueue_in_case`, as part of a statement that makes a change: SQL that returns the rows' IDs.

    A job for each row of `source`, something to select from, with the arguments `args`, an expression of type jsonb.
    After the commit, the rows are for `submit`, or if they are held, for `do_held`.
    """
    due, held = (LEASE, LEASE) if is_held else (GRACE, datetime.timedelta())
    return f"""
        INSERT INTO workers_outbox (job, args, due_at, held_until, attempts, last_error)
        SELECT '{job}', {args}, statement_timestamp() + interval '{due.total_seconds()} s',
            statement_timestamp() + interval '{held.total_seconds()} s', 0, ''
        FROM {source} RETURNING id
    """


# These, and CLAIM, do not wait until they are on disk, for some milliseconds, as a transaction else does: if a crash of
# the server loses them, a job runs again, and no more. (Within the statement, since there is no session.)
NOT_ON_DISK_YET = "set_config('synchronous_commit', 'off', true) = 'off'"
DELETE = f"DELETE FROM workers_outbox WHERE id = %s AND {NOT_ON_DISK_YET}"
RELEASE = f"""
    UPDATE workers_outbox SET due_at = statement_timestamp(), held_until = statement_timestamp()
    WHERE id = %s AND {NOT_ON_DISK_YET}
"""


def _insert(
    database: str,
    job: str,
    args_of_each: list[dict],
    delay: datetime.timedelta,
    held_for: datetime.timedelta = datetime.timedelta(),
) -> list[int]:
    with connections[database].cursor() as cursor:
        cursor.execute(INSERT, [job, delay, held_for, json.dumps(args_of_each)])
        return [row_id for (row_id,) in cursor.fetchall()]


def _write(database: str, statement: str, values: list) -> None:
    with connections[database].cursor() as cursor:
        cursor.execute(statement, values)


def submit(database: str, jobs: list[tuple[int, str]]) -> None:
    """Hands rows, (ID, job), to gearmand, after the commit; or leaves them to the relay."""
    try:
        gearman.submit(database, jobs)
    except gearman.Unavailable as error:
        logger.warning("gearmand is away, %d jobs wait for the relay: %s", len(jobs), error)
    except Exception:  # the change is committed, whatever this is: the caller goes on
        logger.exception("%d jobs wait for the relay", len(jobs))


# By due_at, which each submit moves on: a backlog of jobs that nobody takes does not keep the others from their turn.
TAKE_DUE = """
    UPDATE workers_outbox SET due_at = statement_timestamp() + %s WHERE id IN (
        SELECT id FROM workers_outbox WHERE parked_at IS NULL AND due_at <= statement_timestamp() ORDER BY due_at
        LIMIT %s FOR UPDATE SKIP LOCKED
    ) RETURNING id, job, floor(extract(epoch FROM statement_timestamp() - created_at) / %s)::int
"""


def relay(database: str) -> int:
    """Submits the rows of one database that are due, oldest first; returns how many. Raises gearman.Unavailable."""
    with connections[database].cursor() as cursor:
        cursor.execute(TAKE_DUE, [RESUBMIT, RELAY_BATCH, TURN.total_seconds()])
        taken = cursor.fetchall()
    by_turn: dict[int, list[tuple[int, str]]] = {}
    for row_id, job, turn in taken:
        by_turn.setdefault(turn % len(settings.GEARMAN), []).append((row_id, job))
    for turn, jobs in by_turn.items():
        gearman.submit(database, jobs, turn)
    return len(taken)


# statement_timestamp() as Django's Now() has it: now() is the transaction's beginning, before the row was written.
CLAIM = f"""
    UPDATE workers_outbox SET attempts = attempts + 1, started_at = statement_timestamp(),
        held_until = statement_timestamp() + %(lease)s, due_at = statement_timestamp() + %(lease)s
    WHERE id = %(id)s AND parked_at IS NULL AND held_until <= statement_timestamp() AND {NOT_ON_DISK_YET}
    RETURNING id, job, args, attempts, last_error
"""


def claim(database: str, row_id: int) -> OutboxJob | None:
    """Takes a job for a worker; None when there is nothing to do: it is done, parked, or another worker has it."""
    with connections[database].cursor() as cursor:
        cursor.execute(CLAIM, {"lease": LEASE, "id": row_id})
        claimed = cursor.fetchone()
    if claimed is None:
        return None
    row_id, job, args, attempts, last_error = claimed
    row = OutboxJob(id=row_id, job=job, args=json.loads(args), attempts=attempts, last_error=last_error)
    row._state.db = database
    if row.attempts <= MAX_ATTEMPTS:
        return row
    # It never came back to say why: it takes its worker with it.
    _park(row, row.last_error or "the worker died at it, each time")
    return None


def succeeded(row: OutboxJob) -> None:
    _write(row._state.db, DELETE, [row.id])


def failed(row: OutboxJob, error: str) -> None:
    """Puts a job off until its backoff has passed (1, 2, 4 … s, with jitter), or parks it after the last attempt."""
    if row.attempts >= MAX_ATTEMPTS:
        _park(row, error)
        return
    backoff = min(LONGEST_BACKOFF, datetime.timedelta(seconds=2 ** (row.attempts - 1)))
    then = Now() + backoff * random.uniform(0.75, 1.25)
    _stored(row).update(due_at=then, held_until=then, last_error=error, started_at=None)


def replay(row: OutboxJob) -> None:
    """Lets a parked job try again, from the first attempt. One that is replayed by now may be running: it is left."""
    _stored(row).filter(parked_at__isnull=False).update(parked_at=None, attempts=0, due_at=Now(), held_until=Now())


def _park(row: OutboxJob, error: str) -> None:
    logger.error("parked %s %s after %d attempts: %s", row.job, row.args, row.attempts, error)
    _stored(row).update(parked_at=Now(), last_error=error, started_at=None)


def _stored(row: OutboxJob) -> QuerySet[OutboxJob]:
    """The row where it is stored; none when another worker has finished it."""
    return OutboxJob.objects.using(row._state.db).filter(id=row.id)
