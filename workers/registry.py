"""Which function does which job.

A job is a function in an app's `jobs.py`:

    @job("photos.process")
    def process(photo_id: int, owner_id: int) -> None:

It may run twice, and two jobs may arrive in any order, so it reads the present state and moves it to where it should
be. A record that is gone by now is success, not an error.
"""

from collections.abc import Callable
from typing import TypeVar

from django.utils.module_loading import autodiscover_modules

Job = TypeVar("Job", bound=Callable[..., None])

_jobs: dict[str, Callable[..., None]] = {}


def job(name: str) -> Callable[[Job], Job]:
    """Registers a function as the body of the job of this name, `"<app>.<verb>"`."""

    def register(function: Job) -> Job:
        if name in _jobs:
            raise ValueError(f"two functions do the job {name!r}")
        _jobs[name] = function
        return function

    return register


def all_jobs() -> dict[str, Callable[..., None]]:
    """Job name → function, of all installed apps."""
    autodiscover_modules("jobs")
    return _jobs
