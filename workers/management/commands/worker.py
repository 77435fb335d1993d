"""A pool of processes that do jobs, until it is told to stop (SIGTERM); those at hand are finished first."""

import argparse

from django.core.management.base import BaseCommand

from workers.pool import Pool
from workers.registry import QUEUES
from workers.worker import stop_on_signals


def queues(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(QUEUES):
        raise argparse.ArgumentTypeError(f"no queue {', '.join(sorted(unknown))}; there are: {', '.join(QUEUES)}")
    return names


def number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser) -> None:
        parser.add_argument("--queues", type=queues, default=QUEUES, help=f"of {','.join(QUEUES)}; without it: all")
        parser.add_argument("--processes", type=number, default=3)
        parser.add_argument("--max-jobs", type=number, default=5000, help="then a process is replaced")
        parser.add_argument("--max-mb", type=number, default=500, help="with more memory, too")

    def handle(self, *args, **options) -> None:
        pool = Pool(options["queues"], options["processes"], options["max_jobs"], options["max_mb"])
        pool.run(stop_on_signals())
