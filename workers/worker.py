"""A worker process: takes jobs from gearmand one at a time, and tells the outbox how they ended (pool.py starts it)."""

import faulthandler
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gearman as pygearman
from django.conf import settings
from django.db import Error, close_old_connections
from gunicorn.systemd import sd_notify

from shardmap.shards import following_moves
from workers import gearman, outbox, periodic, sentry
from workers.registry import all_jobs, names_in

logger = logging.getLogger(__name__)

JOB_SECONDS = 20
SECONDS_TO_GIVE_UP = 5  # after them the process is ended; both together are less than outbox.LEASE
POLL_SECONDS = 1.0  # how soon a worker notices that it shall stop
RECONNECT_SECONDS = 0.5


class JobTimeout(BaseException):
    """A job ran longer than JOB_SECONDS. (Not an Exception: a job's own `except Exception` must not swallow it.)"""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raises JobTimeout in the main thread, and ends the process if that does not help.

    A signal's handler waits for C code to return to Python, and decoding a hostile picture may never do so.
    faulthandler's watchdog needs no Python to run: it writes a traceback and exits. The supervisor starts a new worker,
    and the outbox counts the attempt.
    """

    def stop(signum, frame):
        raise JobTimeout(f"not done after {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    faulthandler.dump_traceback_later(seconds + SECONDS_TO_GIVE_UP, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def run(database: str, row_id: int) -> None:
    """Does one job of the outbox, if it is still to be done. Only a database that is away makes this raise."""
    row = outbox.claim(database, row_id)
    if row is None:
        return
    try:
        with time_limit(JOB_SECONDS):
            following_moves(partial(all_jobs()[row.job], **row.args))
    except (Exception, JobTimeout) as error:
        logger.exception("%s %s failed, attempt %d", row.job, row.args, row.attempts)
        sentry.capture_job(row, error)
        close_old_connections()  # perhaps it failed because this connection has died
        outbox.failed(row, "".join(traceback.format_exception(error))[-4000:])
    else:
        outbox.succeeded(row)


@dataclass
class Duty:
    """What a worker process is for, and when it has done enough: a new one has nothing of what this one leaked."""

    queues: tuple[str, ...]
    max_jobs: int
    max_megabytes: int
    wait: Callable[[], None]  # is called when the process waits for a job
    begin: Callable[[str], None]  # is told of each job, before it
    jobs: int = 0

    def is_done(self) -> bool:
        return self.jobs >= self.max_jobs or (self.jobs > 0 and resident_megabytes() > self.max_megabytes)


def resident_megabytes() -> float:
    """The memory that this process has at the moment."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Worker(gearman.Worker):
    """Runs until `stop` is set or its duty is done; a job that has begun is finished first."""

    def __init__(self, stop: threading.Event, duty: Duty) -> None:
        super().__init__(settings.GEARMAN)
        self.stop, self.duty = stop, duty
        self.goes_on = True
        for name in names_in(duty.queues):
            self.register_task(name.encode(), self._do)

    def _do(self, _worker: pygearman.GearmanWorker, job: pygearman.job.GearmanJob) -> bytes:
        database, row_id = gearman.unpack(job.data)
        self.duty.begin(f"{job.task.decode()} {database}:{row_id}")
        close_old_connections()
        try:
            run(database, row_id)
        except Error:
            # The row is still there, so the relay will bring the job again.
            logger.exception("the outbox is away")
        finally:
            close_old_connections()
            self.duty.jobs += 1
            self.duty.wait()
            self.goes_on = not self.duty.is_done()
        return b""

    def after_poll(self, any_activity: bool) -> bool:
        return super().after_poll(any_activity) and self.goes_on and not self.stop.is_set()


def work_until(stop: threading.Event, duty: Duty) -> None:
    """The main loop of a worker process; outlives gearmand's deaths."""
    sentry.start("worker")
    while not stop.is_set() and not duty.is_done():
        worker = Worker(stop, duty)
        duty.wait()
        try:
            worker.work(poll_timeout=POLL_SECONDS)
        except pygearman.errors.GearmanError as error:
            logger.warning("gearmand is away: %s", error or type(error).__name__)
            stop.wait(RECONNECT_SECONDS)
        finally:
            worker.shutdown()
    sentry.flush()


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    return stop


def relay_until(stop: threading.Event) -> None:
    """The main loop of `manage.py relay`: hands every database's due jobs to gearmand, each second.

    After the first round, whoever was away in it, systemd is told that it runs.
    """
    databases = ["default", *settings.SHARD_SERVERS]
    while not stop.is_set():
        close_old_connections()
        try:
            periodic.enqueue_due()
        except Error as error:
            logger.warning("periodic jobs wait for the directory: %s", error)
        for database in databases:
            close_old_connections()
            try:
                if count := outbox.relay(database):
                    logger.info("submitted %d jobs of %s again", count, database)
            except gearman.Unavailable as error:
                logger.warning("gearmand is away: %s", error)
            except Error as error:
                logger.warning("%s is away: %s", database, error)
        sd_notify("READY=1", logger, unset_environment=True)
        stop.wait(POLL_SECONDS)
