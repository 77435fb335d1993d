"""The outbox: what is still to be done, written in the transaction that made it necessary."""

from django.db import models
from django.db.models.functions import Now

from shardmap.shards import physical_table


class OutboxJob(models.Model):
    """A job that has not succeeded yet. The row dies with the job's success and not before."""

    job = models.CharField(max_length=100)  # the name given to @job, e.g. "photos.process"
    args = models.JSONField()  # keyword arguments
    created_at = models.DateTimeField(db_default=Now())
    due_at = models.DateTimeField(db_default=Now())  # when the relay hands it to gearmand (again)
    # No worker takes it before this: another one has it, or it failed and waits for its backoff.
    held_until = models.DateTimeField(db_default=Now())
    started_at = models.DateTimeField(null=True)  # by the worker that has it, or had it when it died
    attempts = models.IntegerField(default=0)
    last_error = models.TextField(default="")
    parked_at = models.DateTimeField(null=True)  # given up; `manage.py jobs replay` tries again

    class Meta:
        db_table = physical_table("workers_outbox")
        indexes = [
            models.Index(fields=["due_at"], condition=models.Q(parked_at=None), name="outbox_due"),
        ]


class PeriodicJob(models.Model):
    """When a periodic job was last enqueued."""

    job = models.CharField(max_length=100, primary_key=True)
    enqueued_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "workers_periodic"
