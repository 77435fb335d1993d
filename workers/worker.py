"""The worker process: takes jobs from gearmand one at a time, and tells the outbox how they ended."""

import faulthandler
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import gearman as pygearman
from django.conf import settings
from django.db import Error, close_old_connections

from shardmap.shards import following_moves
from workers import gearman, outbox
from workers.registry import all_jobs

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
        close_old_connections()  # perhaps it failed because this connection has died
        outbox.failed(row, "".join(traceback.format_exception(error))[-4000:])
    else:
        outbox.succeeded(row)


class Worker(gearman.Worker):
    """Runs until `stop` is set; a job that has begun is finished first."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__(settings.GEARMAN)
        self.stop = stop
        for name in all_jobs():
            self.register_task(name.encode(), self._do)

    def _do(self, _worker: pygearman.GearmanWorker, job: pygearman.job.GearmanJob) -> bytes:
        close_old_connections()
        try:
            run(*gearman.unpack(job.data))
        except Error:
            # The row is still there, so the relay will bring the job again.
            logger.exception("the outbox is away")
        finally:
            close_old_connections()
        return b""

    def after_poll(self, any_activity: bool) -> bool:
        return not self.stop.is_set()

    def after_job(self) -> bool:
        return not self.stop.is_set()


def work_until(stop: threading.Event) -> None:
    """The main loop of `manage.py worker`; outlives gearmand's deaths."""
    while not stop.is_set():
        worker = Worker(stop)
        try:
            worker.work(poll_timeout=POLL_SECONDS)
        except pygearman.errors.GearmanError as error:
            logger.warning("gearmand is away: %s", error or type(error).__name__)
            stop.wait(RECONNECT_SECONDS)
        finally:
            worker.shutdown()


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    return stop


def relay_until(stop: threading.Event) -> None:
    """The main loop of `manage.py relay`: hands every database's due jobs to gearmand, each second."""
    databases = ["default", *settings.SHARD_SERVERS]
    while not stop.is_set():
        for database in databases:
            close_old_connections()
            try:
                if count := outbox.relay(database):
                    logger.info("submitted %d jobs of %s again", count, database)
            except gearman.Unavailable as error:
                logger.warning("gearmand is away: %s", error)
            except Error as error:
                logger.warning("%s is away: %s", database, error)
        stop.wait(POLL_SECONDS)
