"""Periodic jobs: enqueued by whichever relay is the first to see that one's time has come."""

from datetime import timedelta

from django.db import connection, transaction

from workers.outbox import enqueue
from workers.registry import all_periods

# Two relays cannot both change the row: the second one waits for the first, and then sees the new time. A job whose
# last turn still waits, since no worker runs or it fails, gets no second one: it would only do the same.
TAKE_TURN = """
    INSERT INTO workers_periodic AS periodic (job) VALUES (%(job)s) ON CONFLICT (job) DO
    UPDATE SET enqueued_at = statement_timestamp()
    WHERE periodic.enqueued_at <= statement_timestamp() - %(period)s
    AND NOT EXISTS (SELECT FROM workers_outbox WHERE job = %(job)s AND parked_at IS NULL)
    RETURNING job
"""


def enqueue_due() -> None:
    """Enqueues each periodic job that is due; one that missed its time, or many, once."""
    for job, period in all_periods().items():
        take_turn(job, period)


def take_turn(job: str, period: timedelta) -> bool:
    """Enqueues a job unless that was done less than a period ago; says whether it did."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(TAKE_TURN, {"job": job, "period": period})
        if taken := cursor.fetchone() is not None:
            enqueue(job)
    return taken
