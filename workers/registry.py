"""Which function does which job.

A job is a function in an app's `jobs.py`:

    @job("photos.process", queue="urgent")
    def process(photo_id: int, owner_id: int) -> None:

It may run twice, and two jobs may arrive in any order, so it reads the present state and moves it to where it should
be. A record that is gone by now is success, not an error.

A job without arguments may be periodic: `@job("accounts.clear_expired", every=timedelta(days=1))`. The relay enqueues
it (periodic.py).
"""

from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import cache
from typing import TypeVar

from django.utils.module_loading import autodiscover_modules

Job = TypeVar("Job", bound=Callable[..., None])

# Urgent is what somebody waits for with the phone in the hand. The first one is preferred (pool.py).
QUEUES = ("urgent", "default")

_jobs: dict[str, Callable[..., None]] = {}
_queues: dict[str, str] = {}
_periods: dict[str, timedelta] = {}


def job(name: str, *, queue: str = "default", every: timedelta | None = None) -> Callable[[Job], Job]:
    """Registers a function as the body of the job of this name, `"<app>.<verb>"`."""
    if queue not in QUEUES:
        raise ValueError(f"the job {name!r} is in {queue!r}, but the queues are {', '.join(QUEUES)}")

    def register(function: Job) -> Job:
        if name in _jobs:
            raise ValueError(f"two functions do the job {name!r}")
        _jobs[name] = function
        _queues[name] = queue
        if every:
            _periods[name] = every
        return function

    return register


def all_jobs() -> dict[str, Callable[..., None]]:
    """Job name → function, of all installed apps."""
    _discover()
    return _jobs


@cache
def _discover() -> None:
    autodiscover_modules("jobs")


def names_in(queues: Iterable[str]) -> list[str]:
    """The names of the jobs in these queues."""
    return [name for name in all_jobs() if queue_of(name) in queues]


def queue_of(name: str) -> str:
    return _queues.get(name, "default")


def all_periods() -> dict[str, timedelta]:
    """Of the periodic jobs: name → how often."""
    all_jobs()
    return _periods
