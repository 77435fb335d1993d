"""`manage.py worker`: its processes, how they end and are replaced, which jobs they prefer."""

import os
import re
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db.models.functions import Now
from django.test import override_settings

from shardmap.shards import database_of, shard_of
from tests.support import eventually
from tests.workers.pool import USER, Run, lives
from workers import outbox, registry
from workers.pool import Pool


@pytest.fixture
def run():
    run = Run()
    yield run
    run.clean_up()


def test_each_process_shows_what_it_does(run):
    pool = run.pool("--processes", "2")
    eventually(lambda: sorted(pool.titles()) == [f"worker {n} (urgent, default): waits" for n in (0, 1)])
    run.enqueue("note", range(1), seconds=2)
    eventually(lambda: any(re.search(rf": {run.name}.note [ab]:\d+$", title) for title in pool.titles()))
    eventually(lambda: all(title.endswith(": waits") for title in pool.titles()))
    assert run.done() == [0]


def test_a_process_is_replaced_after_so_many_jobs_and_none_is_lost(run):
    run.pool("--processes", "1", "--max-jobs", "10")
    run.enqueue("note", range(35))
    # What the relay brings again, when that has waited for long, might count as a job, too.
    run.rows().update(due_at=Now() + timedelta(minutes=1))
    eventually(lambda: not run.rows().exists(), 20)
    assert sorted(run.done()) == list(range(35))
    processes = run.processes()
    assert [processes.count(pid) for pid in dict.fromkeys(processes)] == [10, 10, 10, 5]


def test_a_process_hears_of_both_gearmands_also_after_both_have_called_it_at_once(run, stopped):
    stopped("relay")  # which would bring again, seconds later, what a gearmand calls nobody for
    run.pool("--processes", "2")
    for number in range(0, 300, 3):  # each to one gearmand or the other
        run.enqueue("note", range(number, number + 3))
        eventually(lambda: not run.rows().exists())
    run.enqueue("note", range(300, 301), seconds=15)
    eventually(lambda: 300 in run.begun())
    for number in range(301, 321):
        run.enqueue("note", range(number, number + 1))
    eventually(lambda: len(run.done()) == 320, 10, "all are done by the process that is free")
    assert 300 not in run.done()


def test_a_process_is_replaced_when_it_has_grown(run):
    run.pool("--processes", "1", "--max-mb", "300")
    run.enqueue("note", range(5))
    eventually(lambda: len(run.done()) == 5)
    assert len(set(run.processes())) == 1
    run.enqueue("fat", range(5, 6))
    eventually(lambda: len(run.done()) == 6)
    run.enqueue("note", range(6, 7))
    eventually(lambda: len(run.done()) == 7)
    assert run.processes()[5] == run.processes()[0]
    assert run.processes()[6] != run.processes()[5]


def test_told_to_stop_it_finishes_the_jobs_at_hand_and_begins_no_other(run):
    pool = run.pool("--processes", "2")
    run.enqueue("note", range(10), seconds=2)
    eventually(lambda: len(run.begun()) == 2)
    children = pool.children()
    assert pool.stop() == 0
    assert sorted(run.done()) == sorted(run.begun())
    assert len(run.done()) == 2
    assert run.rows().count() == 8
    assert not any(lives(pid) for pid in children)


def test_a_killed_process_is_replaced_and_its_job_comes_again(run):
    pool = run.pool("--processes", "1")
    run.enqueue("note", range(1), seconds=3)
    eventually(run.begun)
    (killed,) = pool.children()
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: pool.children() not in ([], [killed]))
    run.make_due()
    eventually(lambda: not run.rows().exists())
    assert run.begun() == [0, 0]
    assert run.done() == [0]


def test_the_processes_die_with_their_parent(run):
    pool = run.pool("--processes", "3")
    eventually(lambda: len(pool.children()) == 3)
    children = pool.children()
    pool.process.kill()
    eventually(lambda: not any(lives(pid) for pid in children), 5)


def test_a_process_that_dies_at_its_start_is_started_again_ever_later(monkeypatch):
    pool = Pool(("default",), 1, max_jobs=1, max_megabytes=1)
    (place,) = pool.places
    monkeypatch.setattr(pool, "_work", lambda *_: os._exit(1))
    monkeypatch.setattr("workers.pool.time", SimpleNamespace(monotonic=lambda: 0.0))  # however long a fork takes
    pauses = []
    for _ in range(8):
        pool._start(place, stop=None)
        started_at = place.started_at
        eventually(lambda: pool._reap() or place.pid is None)
        pauses.append(place.start_at - started_at)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_a_poisonous_job_is_parked_and_the_others_go_on(run):
    run.pool("--processes", "2")
    run.enqueue("poison", range(1))
    for number in range(1, outbox.MAX_ATTEMPTS + 1):
        eventually(lambda number=number: run.begun().count(0) == number, 20)
        run.enqueue("note", range(number, number + 1))
        eventually(lambda number=number: number in run.done())
        run.make_due()
    (row,) = eventually(lambda: run.rows().filter(parked_at__isnull=False))
    assert row.job == f"{run.name}.poison"
    assert run.begun().count(0) == outbox.MAX_ATTEMPTS


def test_urgent_jobs_are_preferred_and_the_others_do_not_starve(run):
    # Both kinds are there before there is a process.
    run.enqueue("note", range(1000, 1150), seconds=0.02)
    run.enqueue("urgent", range(150), seconds=0.02)
    run.pool("--processes", "3")
    eventually(lambda: len(run.done()) == 300, 40)
    first = run.done()[:150]
    urgent = sum(number < 1000 for number in first)
    # One process takes urgent ones alone, two take turns: about two of three are urgent.
    assert 75 < urgent < 150


def test_a_flood_of_slow_jobs_leaves_a_process_to_the_urgent_ones(run):
    run.pool("--processes", "3")
    run.enqueue("note", range(1000, 1010), seconds=15)
    eventually(lambda: len(run.begun()) == 2)
    run.enqueue("urgent", range(20))
    eventually(lambda: len(run.done()) == 20)
    assert max(run.done()) < 1000


def test_a_pool_takes_the_queues_that_it_is_told(run):
    run.pool("--queues", "urgent", "--processes", "1")
    run.enqueue("note", range(1000, 1005))
    run.enqueue("urgent", range(5))
    eventually(lambda: len(run.done()) == 5)
    assert sorted(run.done()) == list(range(5))
    run.pool("--queues", "default", "--processes", "1")
    eventually(lambda: len(run.done()) == 10)


@pytest.mark.parametrize("arguments", [("--queues", "slow"), ("--processes", "0"), ("--max-jobs", "many")])
def test_nonsense_is_refused(arguments):
    with pytest.raises(CommandError, match=f"{arguments[0]}: .*{arguments[1]}"):
        call_command("worker", *arguments)


def test_a_job_in_a_queue_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="urgent, default"):
        registry.job("tests.misplaced", queue="slow")


# Two gearmands.


@contextmanager
def gearmand(port: int):
    server = subprocess.Popen(
        ["gearmand", "--listen=127.0.0.1", f"--port={port}", "--round-robin", "--log-file=stderr"]
    )
    try:
        eventually(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
        yield server
    finally:
        server.kill()
        server.wait(timeout=10)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def two_gearmands(stopped):
    """Their ports, with their processes; this process submits to them."""
    stopped("relay")  # knows of others
    ports = free_port(), free_port()
    outbox.gearman._drop_client()
    try:
        with (
            override_settings(GEARMAN=[f"127.0.0.1:{port}" for port in ports]),
            gearmand(ports[0]) as first,
            gearmand(ports[1]) as second,
        ):
            yield {ports[0]: first, ports[1]: second}
    finally:
        outbox.gearman._silent_until.clear()
        outbox.gearman._drop_client()


def test_two_gearmands_share_the_jobs_and_one_is_enough(run, two_gearmands):
    run.enqueue("note", range(100))
    waiting = [waiting_at(port, f"{run.name}.note") for port in two_gearmands]
    assert sum(waiting) == 100
    assert min(waiting) > 10
    run.pool("--processes", "2", GEARMAN=",".join(settings.GEARMAN))
    eventually(lambda: len(run.done()) == 100)
    port, first = next(iter(two_gearmands.items()))
    first.kill()
    first.wait(timeout=10)
    for number in range(100, 120):
        run.enqueue("note", range(number, number + 1))
    eventually(lambda: len(run.done()) == 120, outbox.GRACE.total_seconds() - 1)
    with gearmand(port):
        # Nobody has told the worker; it looks by itself.
        eventually(lambda: workers_at(port, f"{run.name}.note") == 2, 20)


def test_a_gearmand_that_is_silent_is_waited_for_once(run, two_gearmands):
    (_, first), (other, _) = two_gearmands.items()
    first.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    for number in range(0, 100, 10):
        run.enqueue("note", range(number, number + 10))
    assert time.monotonic() - began < 5 * outbox.gearman.SUBMIT_SECONDS
    assert waiting_at(other, f"{run.name}.note") == 100


def test_a_gearmand_that_is_silent_keeps_no_process_from_the_other(run, two_gearmands):
    (_, first), (other, _) = two_gearmands.items()
    run.pool("--processes", "1", GEARMAN=",".join(settings.GEARMAN))
    run.enqueue("note", range(20), seconds=0.2)
    eventually(run.begun)
    first.send_signal(signal.SIGSTOP)  # which has called the process, and has jobs for it
    eventually(lambda: waiting_at(other, f"{run.name}.note") == 0, 30)


def test_what_is_submitted_again_waits_once_and_after_a_minute_at_the_next_gearmand_as_well(run, two_gearmands):
    def waiting() -> list[int]:
        return [waiting_at(port, f"{run.name}.note") for port in two_gearmands]

    run.enqueue("note", range(100))
    run.make_due()
    assert outbox.relay(database_of(shard_of(USER))) >= 100
    assert sum(waiting()) == 100
    run.make_due()
    run.rows().update(created_at=Now() - outbox.TURN)
    outbox.relay(database_of(shard_of(USER)))
    assert waiting() == [100, 100]


def status_at(port: int, job: str) -> list[int]:
    """gearmand's counts of a job: waiting and running, running, workers."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"status\n")
        answer = b""
        while not answer.endswith(b".\n"):
            answer += connection.recv(65536)
    rows = [line.split("\t") for line in answer.decode().splitlines()]
    return next(([int(count) for count in counts] for name, *counts in rows if name == job), [0, 0, 0])


def waiting_at(port: int, job: str) -> int:
    return status_at(port, job)[0]


def workers_at(port: int, job: str) -> int:
    return status_at(port, job)[2]
