"""What the outboxes of all databases hold: for `manage.py jobs` and the admin."""

from datetime import datetime

from django.conf import settings
from django.db import Error
from django.db.models import Count, Min, Q
from django.db.models.functions import Now

from workers.models import OutboxJob
from workers.registry import QUEUES, queue_of

PARKED = Q(parked_at__isnull=False)
# A worker that died at a job has it until its lease ends: nobody can tell sooner.
RUNNING = Q(parked_at=None, started_at__isnull=False, held_until__gt=Now())
WAITING = ~PARKED & ~RUNNING
STATES = {"waiting": WAITING, "running": RUNNING, "parked": PARKED}


def databases() -> list[str]:
    """All that have an outbox."""
    return ["default", *settings.SHARD_SERVERS]


def counts() -> tuple[dict[str, dict], dict[str, str]]:
    """Job name → its queue, how many there are in each state, and when the oldest that is not parked was enqueued.

    And of the databases that are away: alias → why. Their jobs are not counted.
    """
    jobs: dict[str, dict] = {}
    away: dict[str, str] = {}
    numbers = {state: Count("id", filter=condition) for state, condition in STATES.items()}
    for database in databases():
        rows = OutboxJob.objects.using(database).values("job").order_by("job")
        try:
            for row in rows.annotate(**numbers, oldest=Min("created_at", filter=~PARKED)):
                name = row["job"]
                job = jobs.setdefault(name, {"queue": queue_of(name), **dict.fromkeys(STATES, 0), "oldest": None})
                for state in STATES:
                    job[state] += row[state]
                job["oldest"] = _earlier(job["oldest"], row["oldest"])
        except Error as error:
            away[database] = str(error).strip() or type(error).__name__
    return dict(sorted(jobs.items())), away


def totals(jobs: dict[str, dict]) -> dict[str, dict]:
    """Queue → the sums of what `counts` says of its jobs, and the oldest of them."""
    queues = {queue: {**dict.fromkeys(STATES, 0), "oldest": None} for queue in QUEUES}
    for job in jobs.values():
        queue = queues[job["queue"]]
        for state in STATES:
            queue[state] += job[state]
        queue["oldest"] = _earlier(queue["oldest"], job["oldest"])
    return queues


def parked() -> list[OutboxJob]:
    """The jobs that were given up, of all databases. Raises the error of one that is away."""
    return [
        row
        for database in databases()
        for row in OutboxJob.objects.using(database).filter(PARKED).order_by("parked_at")
    ]


def name_of(row: OutboxJob) -> str:
    """A job's name for people: the database and its number there, `a:17`."""
    return f"{row._state.db}:{row.id}"


def _earlier(one: datetime | None, other: datetime | None) -> datetime | None:
    return min(filter(None, (one, other)), default=None)
