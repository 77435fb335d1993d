"""Creates and migrates everything that is sharded: each physical database, then each logical shard."""

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from shardmap.migrate import migrate_shards, missing, place_shards, plan
from shardmap.progress import draw


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
            migrate_shards(todo, lambda done: draw(done, len(todo), "shards"))
        except KeyboardInterrupt:
            raise CommandError("stopped; the next run goes on from here", returncode=130) from None
        except (ValueError, RuntimeError) as error:
            raise CommandError(str(error)) from error
