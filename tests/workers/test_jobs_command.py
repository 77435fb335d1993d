"""`manage.py jobs`: what is still to be done, and letting what was given up try again."""

import json
import subprocess
import sys

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import transaction
from django.db.models.functions import Now

from shardmap.shards import shard_transaction
from tests.support import eventually, new_username
from workers import outbox
from workers.models import OutboxJob


@pytest.fixture
def name():
    """A job that no worker knows."""
    name = f"tests.{new_username()}"
    yield name
    for database in ("default", "a", "b"):
        OutboxJob.objects.using(database).filter(job=name).delete()


def status(capsys) -> dict:
    call_command("jobs", "status", "--json")
    return json.loads(capsys.readouterr().out)


def enqueue_everywhere(name: str) -> list[OutboxJob]:
    """One in the directory, one on each shard server."""
    with transaction.atomic():
        outbox.enqueue(name)
    for user_id in range(settings.LOGICAL_SHARDS):
        with shard_transaction(user_id):
            outbox.enqueue(name)
    return [row for database in ("default", "a", "b") for row in OutboxJob.objects.using(database).filter(job=name)]


def test_status_counts_over_all_databases(name, capsys):
    rows = enqueue_everywhere(name)
    assert {row._state.db for row in rows} == {"default", "a", "b"}
    outbox.claim("a", next(row.id for row in rows if row._state.db == "a"))
    for row in rows[-1:]:
        OutboxJob.objects.using("b").filter(id=row.id).update(parked_at=Now())
    job = status(capsys)["jobs"][name]
    assert (job["waiting"], job["running"], job["parked"]) == (len(rows) - 2, 1, 1)
    assert job["queue"] == "default"
    assert 0 <= job["oldest_seconds"] < 60
    call_command("jobs", "status")
    shown = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(name))
    assert shown.split()[1:4] == [str(len(rows) - 2), "1", "1"]
    assert shown.split()[-1] == "default"


def test_status_has_the_totals_of_each_queue(name, capsys):
    enqueue_everywhere(name)
    found = status(capsys)
    assert list(found["queues"]) == ["urgent", "default"]
    for queue, total in found["queues"].items():
        jobs = [job for job in found["jobs"].values() if job["queue"] == queue]
        for state in ("waiting", "running", "parked"):
            assert total[state] == sum(job[state] for job in jobs)
        ages = [job["oldest_seconds"] for job in jobs if job["oldest_seconds"] is not None]
        assert total["oldest_seconds"] == max(ages, default=None)
    assert found["queues"]["default"]["waiting"] >= found["jobs"][name]["waiting"] > 1
    call_command("jobs", "status")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["queue", "urgent", "default"]


def test_a_failed_job_waits(name, capsys):
    rows = enqueue_everywhere(name)
    outbox.failed(outbox.claim("a", next(row.id for row in rows if row._state.db == "a")), "no luck")
    job = status(capsys)["jobs"][name]
    assert (job["waiting"], job["running"]) == (len(rows), 0)


def test_replay_wants_to_know_which(name):
    for arguments in ([], ["a:1", "--all"]):
        with pytest.raises(CommandError, match="replay which"):
            call_command("jobs", "replay", *arguments)
    with pytest.raises(CommandError, match="not parked: a:0"):
        call_command("jobs", "replay", "a:0")


def test_replay_all(name, capsys):
    rows = enqueue_everywhere(name)
    for row in rows:
        OutboxJob.objects.using(row._state.db).filter(id=row.id).update(parked_at=Now(), attempts=20)
    call_command("jobs", "replay", "--all")
    assert f"{len(rows)} will be tried again" in capsys.readouterr().out
    job = status(capsys)["jobs"][name]
    assert (job["waiting"], job["parked"]) == (len(rows), 0)


def test_a_database_that_is_away_is_named_and_the_others_are_counted(name, stopped):
    enqueue_everywhere(name)
    stopped("postgres_b")
    command = [sys.executable, settings.BASE_DIR / "manage.py", "jobs", "status", "--json"]

    def says_so() -> bool:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        answer = json.loads(done.stdout)
        return done.returncode and list(answer["away"]) == ["b"] and answer["jobs"][name]["waiting"] > 1

    eventually(says_so, 20)
