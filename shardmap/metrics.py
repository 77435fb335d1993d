"""Counters and histograms without a round trip: a process adds in memory, in a file that Munin's plugins read.

They are prometheus_client's, in its multiprocess mode: a file of memory for each process, and who reads sums them up.
By itself it names the files after process IDs, and leaves those of the dead to somebody else, who must not lose what
they counted. Here a process takes the first place that no living one has, and counts on in that place's files: there
are as many files as processes ever lived at a time, and sums never go backwards, whoever dies.

    pushes = labelled(Counter("pushes", "Notifications, by what became of them", ["outcome"]))
    pushes("delivered").inc()
"""

import fcntl
import itertools
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from django.conf import settings
from prometheus_client import Counter, Histogram, values
from prometheus_client.multiprocess import MultiProcessCollector

__all__ = ["Counter", "Histogram", "labelled", "totals"]

_place, _owner, _lock = "", 0, None
_choosing = threading.Lock()


def labelled(metric: Counter | Histogram) -> Callable[..., Counter | Histogram]:
    """A metric by its labels' values, remembered: prometheus_client takes longer to find it than to count."""
    return cache(metric.labels)


def totals(directory: Path) -> Mapping[tuple[str, ...], float]:
    """What all processes have counted: (name, labels' values …) → sum.

    Counters have names with _total; histograms with _count, _sum, and _bucket, whose last label is the bucket's end.
    """
    merged = MultiProcessCollector.merge([str(file) for file in directory.glob("*.db")])
    samples = [sample for metric in merged for sample in metric.samples]
    return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


def _own_place() -> str:
    """The name of this process's place, which its death gives back; after a fork, a new one."""
    global _place, _owner, _lock
    if _owner != os.getpid():
        _place, _lock = _take_place()
        _owner = os.getpid()
    return _place


def _take_place() -> tuple[str, object]:
    for number in itertools.count():
        place = f"{os.getuid()}-{number}"  # not everybody may write everybody's files
        lock = open(Path(settings.METRICS_DIR) / f"{place}.lock", "w")  # noqa: SIM115  (for as long as we live)
        with suppress(BlockingIOError):
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: no fork inherits it
            return place, lock
        lock.close()


@cache
def _value_class() -> type:
    if not os.access(settings.METRICS_DIR, os.W_OK):
        return values.MutexValue  # an operator's shell, say, whose user may not write there: nobody reads that
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = settings.METRICS_DIR
    return values.MultiProcessValue(_own_place)


if settings.METRICS_DIR:

    def _new_value(*args, **options):
        """Its class is made at the first value, not at the import: most commands of manage.py count nothing."""
        with _choosing:  # two threads' first values would get a class each, which write over one another's file
            chosen = _value_class()
        return chosen(*args, **options)

    values.ValueClass = _new_value
