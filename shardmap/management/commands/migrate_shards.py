"""Creates and migrates everything that is sharded: each physical database, then each logical shard."""

import sys

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from shardmap.migrate import migrate_shards, missing, place_shards, plan

BAR_WIDTH = 40


def draw(done: int, total: int) -> None:
    """A progress bar on a terminal; elsewhere only its end, so that logs stay readable."""
    filled = BAR_WIDTH * done // total
    if sys.stdout.isatty():
        print(f"\r[{'#' * filled:{BAR_WIDTH}}] {done}/{total} shards", end="", flush=True)
    if done == total:
        print() if sys.stdout.isatty() else print(f"{done}/{total} shards")


class Command(BaseCommand):
    help = __doc__

    def handle(self, *args, **options) -> None:
        try:
            place_shards()
            for alias in settings.SHARD_SERVERS:
                call_command("migrate", database=alias, verbosity=0, interactive=False)
            todo = missing(plan())
            if not todo:
                print(f"all {settings.LOGICAL_SHARDS} logical shards are up to date")
                return
            migrate_shards(todo, lambda done: draw(done, len(todo)))
        except (ValueError, RuntimeError) as error:
            raise CommandError(str(error)) from error
