import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta

import pytest
import redis
from django.core.management import call_command
from django.db import transaction
from django.db.models.functions import Now

from shardmap.shards import current_shard, database_of, on_shard, shard_transaction
from tests.support import ctl, eventually, new_username
from workers import outbox, registry, worker
from workers.models import OutboxJob

USER = 4  # lives in shard 4
SETUP = "import django; django.setup()"


@pytest.fixture
def job(monkeypatch):
    """A job of this process alone, whose name the stack's workers don't know. Fails with `error` if that is set."""

    class Job:
        name = f"tests.{new_username()}"
        runs: list = []
        error: BaseException | None = None

        def __call__(self, **args) -> None:
            self.runs.append(args)
            if self.error:
                raise self.error

    job = Job()
    job.runs = []
    registry.all_jobs()
    monkeypatch.setitem(registry._jobs, job.name, job)
    yield job
    for database in ("default", "a", "b"):
        OutboxJob.objects.using(database).filter(job=job.name).delete()


def put(job, **args) -> OutboxJob:
    """Writes a job to the outbox of USER's shard."""
    with shard_transaction(USER):
        outbox.enqueue(job.name, **args)
    return row_of(job)


def row_of(job) -> OutboxJob | None:
    with on_shard(USER):
        return OutboxJob.objects.using(database_of(current_shard())).filter(job=job.name).first()


def make_due(row: OutboxJob) -> None:
    """What else only the passing of time does."""
    OutboxJob.objects.using(row._state.db).filter(id=row.id).update(due_at=Now(), held_until=Now())


def run(row: OutboxJob) -> None:
    worker.run(row._state.db, row.id)


def test_enqueue_outside_of_a_transaction_is_refused(job):
    with on_shard(USER), pytest.raises(RuntimeError, match="transaction"):
        outbox.enqueue(job.name)
    with pytest.raises(RuntimeError, match="transaction"):
        outbox.enqueue_in(timedelta(seconds=1), job.name)
    with pytest.raises(RuntimeError, match="transaction"):
        outbox.enqueue(job.name)
    with pytest.raises(RuntimeError, match="transaction"):
        outbox.enqueue_in_case(job.name)


def test_a_job_that_is_put_off_is_left_alone_until_it_is_due(job):
    with transaction.atomic():
        outbox.enqueue_in(timedelta(seconds=60), job.name, number=1)
    (row,) = OutboxJob.objects.using("default").filter(job=job.name)
    assert 59 < (row.due_at - row.created_at).total_seconds() < 61
    outbox.relay("default")  # would move it on
    assert OutboxJob.objects.using("default").get(id=row.id).due_at == row.due_at
    run(row)
    assert job.runs == [{"number": 1}]


def put_in_case(job) -> Callable[[], None]:
    with shard_transaction(USER):
        return outbox.enqueue_in_case(job.name, number=1)


def test_a_job_that_the_request_does_itself_leaves_no_row(job):
    do_now = put_in_case(job)
    assert row_of(job)
    assert not job.runs
    do_now()
    assert row_of(job) is None
    assert job.runs == [{"number": 1}]


@pytest.mark.parametrize("error", [redis.ConnectionError("Redis is away"), ValueError("what the caller should know")])
def test_what_the_request_could_not_do_is_left_to_the_relay(job, error):
    do_now, job.error = put_in_case(job), error
    with pytest.raises(ValueError) if isinstance(error, ValueError) else nullcontext():
        do_now()
    row = row_of(job)
    assert row.due_at - row.created_at < outbox.LEASE - timedelta(seconds=5)  # the relay may have had it meanwhile
    job.error = None
    run(row)
    assert row_of(job) is None
    assert job.runs == [{"number": 1}] * 2


def test_while_the_request_has_the_job_no_worker_takes_it(job):
    do_now = put_in_case(job)
    row = row_of(job)
    assert row.due_at - row.created_at == pytest.approx(outbox.LEASE, abs=timedelta(seconds=1))
    run(row)
    assert job.runs == []
    make_due(row)  # the request has died
    run(row)
    assert job.runs == [{"number": 1}]
    do_now()  # or was it only very slow
    assert row_of(job) is None


def test_a_request_that_cannot_take_its_job_back_hears_nothing_of_that(job, monkeypatch):
    do_now = put_in_case(job)
    monkeypatch.setattr(outbox, "DELETE", "DELETE FROM nowhere WHERE id = %s")
    do_now()
    assert row_of(job)
    assert job.runs == [{"number": 1}]


def test_what_a_rolled_back_change_wanted_is_no_job_either(job):
    with shard_transaction(USER):
        outbox.enqueue_in_case(job.name)
        transaction.set_rollback(True, using=database_of(current_shard()))
    assert row_of(job) is None


def test_a_job_is_written_to_the_database_of_its_change(job):
    assert put(job)._state.db == database_of(4)
    with transaction.atomic():
        outbox.enqueue(job.name)
    assert OutboxJob.objects.using("default").filter(job=job.name).count() == 1


def test_a_change_that_is_rolled_back_leaves_no_job(job):
    with shard_transaction(USER):
        outbox.enqueue(job.name)
        transaction.set_rollback(True, using=database_of(current_shard()))
    assert row_of(job) is None


def test_a_job_runs_with_its_arguments_and_its_row_goes(job):
    run(put(job, photo_id=2**62, names=["é"]))
    assert job.runs == [{"photo_id": 2**62, "names": ["é"]}]
    assert row_of(job) is None


def test_a_job_that_is_done_is_not_run_again(job):
    row = put(job)
    run(row)
    run(row)
    assert len(job.runs) == 1


def test_a_failed_job_waits_for_its_backoff_and_is_then_tried_again(job, monkeypatch):
    monkeypatch.setattr(outbox.random, "uniform", lambda *_: 60)  # not over before we are at "too early"
    job.error = ValueError("no luck")
    row = put(job)
    run(row)
    failed = row_of(job)
    assert failed.attempts == 1
    assert "no luck" in failed.last_error
    run(row)
    assert len(job.runs) == 1  # too early
    job.error = None
    make_due(row)
    run(row)
    assert len(job.runs) == 2
    assert row_of(job) is None


def test_the_backoff_grows(job):
    job.error = ValueError()
    row = put(job)
    waits = []
    for _ in range(6):
        make_due(row)
        run(row)
        failed = row_of(job)
        # Not `due_at`, which the stack's relay moves on when that has come.
        waits.append((failed.held_until - failed.created_at).total_seconds())
    assert waits == sorted(waits)
    assert waits[-1] > 20


def test_two_workers_do_not_do_a_job_at_the_same_time(job):
    row = put(job)
    assert outbox.claim(row._state.db, row.id) is not None
    assert outbox.claim(row._state.db, row.id) is None


def test_a_job_whose_worker_was_killed_is_done_after_the_lease(job):
    row = put(job)
    outbox.claim(row._state.db, row.id)  # and the worker dies here
    make_due(row)
    run(row)
    assert len(job.runs) == 1
    assert row_of(job) is None


def test_a_job_that_keeps_failing_is_parked_and_can_be_replayed(job, capsys):
    job.error = ValueError("never works")
    row = put(job)
    for _ in range(outbox.MAX_ATTEMPTS + 3):
        make_due(row)
        run(row)
    assert len(job.runs) == outbox.MAX_ATTEMPTS

    call_command("jobs", "parked")
    listed = capsys.readouterr().out
    name = f"{row._state.db}:{row.id}"
    assert name in listed
    assert "never works" in listed

    job.error = None
    call_command("jobs", "replay", name)
    run(row)
    assert len(job.runs) == outbox.MAX_ATTEMPTS + 1
    assert row_of(job) is None


def test_what_was_replayed_a_moment_ago_keeps_its_lease(job):
    row = put(job)
    OutboxJob.objects.using(row._state.db).filter(id=row.id).update(parked_at=Now(), held_until=Now())
    outbox.replay(row)
    assert outbox.claim(row._state.db, row.id)
    outbox.replay(row)  # by somebody whose list is a moment old
    assert outbox.claim(row._state.db, row.id) is None
    assert row_of(job).attempts == 1


def test_a_job_that_keeps_killing_its_worker_is_parked(job):
    row = put(job)
    for _ in range(outbox.MAX_ATTEMPTS):
        make_due(row)
        assert outbox.claim(row._state.db, row.id) is not None
    make_due(row)
    assert outbox.claim(row._state.db, row.id) is None
    assert row_of(job).parked_at is not None
    assert "died" in row_of(job).last_error


def test_a_job_that_takes_too_long_is_stopped(job, monkeypatch):
    monkeypatch.setattr(worker, "JOB_SECONDS", 1)
    monkeypatch.setitem(registry._jobs, job.name, lambda: threading.Event().wait(30))
    run(put(job))
    assert "JobTimeout" in row_of(job).last_error


def test_a_job_that_cannot_be_interrupted_ends_its_worker():
    stuck = """
import signal, threading
from workers import worker
worker.SECONDS_TO_GIVE_UP = 1
with worker.time_limit(1):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # like C code that does not come back to Python
    threading.Event().wait(60)
"""
    ended = subprocess.run([sys.executable, "-c", SETUP + stuck], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr


def test_jobs_that_nobody_takes_do_not_keep_others_from_their_turn(job, monkeypatch):
    monkeypatch.setattr(outbox, "RELAY_BATCH", 2)
    submitted = []
    monkeypatch.setattr(outbox.gearman, "submit", lambda database, jobs, turn: submitted.extend(i for i, _ in jobs))
    rows = OutboxJob.objects.using("default").filter(job=job.name)
    with transaction.atomic():  # so that the stack's own relay does not see them, and take some
        outbox.enqueue_many(job.name, [{"n": n} for n in range(5)])
        rows.update(due_at=Now() - timedelta(days=1))
        for _ in range(3):
            outbox.relay("default")
        assert set(rows.values_list("id", flat=True)) <= set(submitted)


def test_enqueueing_nothing_is_nothing(job):
    outbox.enqueue_many(job.name, [])
    assert row_of(job) is None


def forget_job() -> OutboxJob:
    """A job that the stack's own workers do."""
    key = new_username()
    with shard_transaction(USER):
        outbox.enqueue("accounts.forget", keys=[key])
        return OutboxJob.objects.using(database_of(current_shard())).get(job="accounts.forget", args={"keys": [key]})


def is_done(row: OutboxJob) -> bool:
    return not OutboxJob.objects.using(row._state.db).filter(id=row.id).exists()


def test_a_worker_process_does_a_job_right_after_the_commit():
    row = forget_job()
    # Sooner than the relay would bring it.
    eventually(lambda: is_done(row), outbox.GRACE.total_seconds() - 1)


def test_what_is_enqueued_while_gearmand_is_dead_is_done_when_it_is_back(stopped):
    stopped("gearmand")
    rows = [forget_job() for _ in range(3)]
    assert not any(is_done(row) for row in rows)
    ctl("start", "gearmand")
    eventually(lambda: all(is_done(row) for row in rows), 20)


def test_the_relay_brings_back_what_a_dead_worker_had_claimed():
    with shard_transaction(USER):
        row = forget_job()
        # Claimed in the same transaction: no worker of the stack can be faster.
        assert outbox.claim(row._state.db, row.id)
    assert not is_done(row)
    make_due(row)
    eventually(lambda: is_done(row))


def test_workers_and_relay_outlive_gearmand_being_killed():
    ctl("kill", "gearmand")
    row = forget_job()
    eventually(lambda: is_done(row), 20)
