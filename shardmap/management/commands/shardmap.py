"""The photo→user map: `manage.py shardmap rebuild` writes all of it from the shards, while the site runs."""

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from shardmap import photo_map
from shardmap.redis_client import Unavailable


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser) -> None:
        parser.add_argument("action", choices=["rebuild"])

    def handle(self, *args, **options) -> None:
        try:
            total = photo_map.rebuild(
                lambda shard, photos: print(f"shard {shard + 1}/{settings.LOGICAL_SHARDS}: {photos} photos so far")
            )
        except Unavailable as error:
            raise CommandError(f"Redis (REDIS_SHARDMAP_URL) is away: {error}") from error
        print(f"the map has {total} photos")
