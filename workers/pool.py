"""The pool: one parent, which loads the code, forks, and looks after its children; they do the jobs (worker.py).

Of the queues that a pool has, the first is preferred: a third of the processes take its jobs alone, and the others take
all jobs, each name in turn (gearmand's --round-robin). So whatever there is of other work, urgent jobs find processes
that are free of it; and whatever there is of urgent work, two thirds of the processes come to every other name.
"""

import ctypes
import gc
import logging
import mmap
import os
import signal
import threading
import time
from dataclasses import dataclass

from gunicorn.systemd import sd_notify
from setproctitle import setproctitle

from workers import sentry
from workers.registry import QUEUES, all_jobs
from workers.worker import Duty, work_until

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.1  # how often the parent looks after its children
# A child that dies so soon, and before it took a job, was not killed by the job: the next one has to wait, longer and
# longer. (No pause after a job that kills its process, which would stop the others' jobs as well.)
START_SECONDS = 5
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30
PR_SET_PDEATHSIG = 1  # linux/prctl.h

# What a child has come to, which its parent sees.
STARTS, WAITS, TOOK_A_JOB = range(3)


@dataclass
class Place:
    """One of the pool's processes: the one that runs, or the next."""

    number: int
    queues: tuple[str, ...]
    pid: int | None = None
    started_at: float = 0
    start_at: float = 0  # not before
    bad_starts: int = 0  # in a row


class Pool:
    def __init__(self, queues: tuple[str, ...], processes: int, max_jobs: int, max_megabytes: int) -> None:
        self.queues = tuple(queue for queue in QUEUES if queue in queues)
        self.max_jobs, self.max_megabytes = max_jobs, max_megabytes
        reserved = processes // 3 if len(self.queues) > 1 else 0
        self.places = [Place(n, self.queues[:1] if n < reserved else self.queues) for n in range(processes)]
        self.reached = mmap.mmap(-1, processes)  # a byte a place, which parent and child both see

    def run(self, stop: threading.Event) -> None:
        """Keeps the processes running until `stop` is set; then lets each finish its job.

        systemd is told when all of them wait for jobs for the first time: a release whose workers cannot is not well.
        """
        all_jobs()  # loaded once, before the forks
        gc.collect()
        gc.freeze()  # as in deploy/gunicorn/gunicorn.conf.py
        setproctitle(f"worker pool: {len(self.places)} processes for {', '.join(self.queues)}")
        is_ready = False
        while not stop.is_set():
            if not is_ready and STARTS not in self.reached[:]:
                sd_notify("READY=1", logger)
                is_ready = True
            for place in self.places:
                if place.pid is None and time.monotonic() >= place.start_at:
                    self._start(place, stop)
            time.sleep(LOOK_SECONDS)
            self._reap()
        for place in self.places:
            if place.pid:
                os.kill(place.pid, signal.SIGTERM)
        while any(place.pid for place in self.places):
            time.sleep(LOOK_SECONDS)
            self._reap()

    def _start(self, place: Place, stop: threading.Event) -> None:
        self.reached[place.number] = STARTS
        place.started_at = time.monotonic()
        parent = os.getpid()
        place.pid = os.fork()
        if place.pid == 0:
            self._be_child(place, stop, parent)

    def _be_child(self, place: Place, stop: threading.Event, parent: int) -> None:
        """Never returns: what the parent has on its stack is not the child's to go on with."""
        code = 1
        try:
            # Without its parent nobody would look after it, or end it; the job at hand comes again.
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == parent:
                self._work(place, stop)
                code = 0
        except BaseException as error:
            logger.exception("worker %d", place.number)
            sentry.capture(error)
            sentry.flush()
        finally:
            os._exit(code)

    def _work(self, place: Place, stop: threading.Event) -> None:
        title = f"worker {place.number} ({', '.join(place.queues)})"

        def show(doing: str) -> None:
            setproctitle(f"{title}: {doing}")

        def wait() -> None:
            self.reached[place.number] = max(WAITS, self.reached[place.number])
            show("waits")

        def begin(job: str) -> None:
            self.reached[place.number] = TOOK_A_JOB
            show(job)

        work_until(stop, Duty(place.queues, self.max_jobs, self.max_megabytes, wait, begin))

    def _reap(self) -> None:
        for place in self.places:
            if place.pid is None:
                continue
            pid, status = os.waitpid(place.pid, os.WNOHANG)
            if not pid:
                continue
            place.pid = None
            now = time.monotonic()
            code = os.waitstatus_to_exitcode(status)
            if code and self.reached[place.number] != TOOK_A_JOB and now - place.started_at < START_SECONDS:
                pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**place.bad_starts)
                place.bad_starts += 1
            else:
                pause = place.bad_starts = 0
            place.start_at = now + pause
            if code:
                logger.warning("worker %d, process %d, died (%d); the next in %g s", place.number, pid, code, pause)
