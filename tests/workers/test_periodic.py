"""Periodic jobs: once a period, whoever asks."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connection
from django.db.models.functions import Now

from tests.support import new_username
from workers import outbox, periodic, registry
from workers.models import OutboxJob, PeriodicJob

HOUR = timedelta(hours=1)


@pytest.fixture
def name():
    """The name of a job that only this process knows."""
    name = f"tests.{new_username()}"
    yield name
    OutboxJob.objects.filter(job=name).delete()
    PeriodicJob.objects.filter(job=name).delete()


def turns(name: str) -> int:
    return OutboxJob.objects.filter(job=name).count()


def do(name: str) -> None:
    """As a worker that has done them."""
    for row in OutboxJob.objects.filter(job=name):
        outbox.succeeded(row)


def pass_time(name: str, time: timedelta) -> None:
    assert PeriodicJob.objects.filter(job=name).update(enqueued_at=Now() - time) == 1


def test_once_a_period(name):
    assert periodic.take_turn(name, HOUR)
    do(name)
    assert not periodic.take_turn(name, HOUR)
    pass_time(name, HOUR - timedelta(seconds=10))
    assert not periodic.take_turn(name, HOUR)
    pass_time(name, HOUR)
    assert periodic.take_turn(name, HOUR)
    assert turns(name) == 1


def test_missed_periods_are_made_up_for_once(name):
    periodic.take_turn(name, HOUR)
    do(name)
    pass_time(name, 10 * HOUR)
    assert [periodic.take_turn(name, HOUR) for _ in range(3)] == [True, False, False]
    assert turns(name) == 1


def test_a_turn_that_is_not_over_is_not_enqueued_twice(name):
    periodic.take_turn(name, HOUR)
    pass_time(name, 10 * HOUR)
    assert not periodic.take_turn(name, HOUR)
    OutboxJob.objects.filter(job=name).update(parked_at=Now())  # given up: the next turn may work
    assert periodic.take_turn(name, HOUR)


def test_many_relays_at_the_same_moment_enqueue_it_once(name):
    def as_a_relay(_) -> bool:
        try:
            return periodic.take_turn(name, HOUR)
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as relays:
        assert sum(relays.map(as_a_relay, range(40))) == 1
        do(name)
        pass_time(name, HOUR)
        assert sum(relays.map(as_a_relay, range(40))) == 1


def test_the_relay_enqueues_what_says_how_often(name, monkeypatch):
    registry.all_jobs()
    for registered in ("_jobs", "_queues", "_periods"):
        monkeypatch.setattr(registry, registered, dict(getattr(registry, registered)))
    registry.job(name, every=HOUR)(lambda: None)
    periodic.enqueue_due()
    periodic.enqueue_due()
    assert turns(name) == 1
