"""Whatever dies while jobs are in flight: afterwards all are done, and none is left."""

import os
import signal

import pytest
from django.db import Error, connections

from shardmap.shards import database_of, shard_of
from tests.support import ctl, eventually
from tests.workers.pool import USER, Run, lives

JOBS = 300


@pytest.fixture
def run():
    run = Run()
    yield run
    run.clean_up()


@pytest.fixture
def pool(run):
    """Four processes in the middle of JOBS jobs."""
    pool = run.pool("--processes", "4")
    run.enqueue("note", range(JOBS // 2), seconds=0.05)
    run.enqueue("urgent", range(JOBS // 2, JOBS), seconds=0.05)
    eventually(lambda: len(run.done()) > 20)
    assert len(run.done()) < JOBS / 2
    return pool


def assert_all_done(run, jobs: int = JOBS, most_repeated: int = 0) -> None:
    """Each was done, nothing is left, and only what was cut off in the middle was begun once more."""

    def is_done() -> bool:
        try:
            run.end_leases_of_the_dead()
            return not run.rows().exists()
        except Error:  # our own connection was killed, too
            connections.close_all()
            return False

    eventually(is_done, 60, "all jobs are done")
    assert set(run.done()) == set(range(jobs))
    assert len(run.begun()) <= jobs + most_repeated


def test_gearmand_killed(run, pool):
    ctl("kill", "gearmand")
    run.enqueue("note", range(JOBS, JOBS + 10))  # meanwhile
    assert_all_done(run, JOBS + 10)


def test_processes_killed(run, pool):
    for _ in range(3):
        before = pool.children()
        for pid in before[:2]:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda before=before: len(set(pool.children()) - set(before)) == 2)
    assert_all_done(run, most_repeated=6)


def test_the_whole_pool_killed(run, pool):
    children = pool.children()
    pool.process.kill()
    eventually(lambda: not any(lives(pid) for pid in children), 5)
    assert run.rows().exists()
    run.pool("--processes", "4")
    assert_all_done(run, most_repeated=4)


def test_the_relay_killed(run, pool):
    ctl("kill", "relay")
    ctl("kill", "gearmand")  # so that what waits needs a relay
    assert_all_done(run)


def test_postgres_restarted(run, pool):
    ctl("restart", f"postgres_{database_of(shard_of(USER))}")
    assert_all_done(run, most_repeated=4)
