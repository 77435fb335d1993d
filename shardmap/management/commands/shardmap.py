"""The photo→user map (docs/sharding.md).

shardmap status     how large it is, and how full its hashes are
shardmap rebuild    writes all of it from the shards, while the site runs
"""

import time

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from shardmap import photo_map
from shardmap.progress import draw
from shardmap.redis_client import Unavailable


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser) -> None:
        parser.add_argument("action", choices=["status", "rebuild"])

    def handle(self, *args, **options) -> None:
        try:
            status() if options["action"] == "status" else rebuild()
        except Unavailable as error:
            raise CommandError(f"Redis (REDIS_SHARDMAP_URL) is away: {error}") from error


def status() -> None:
    result = photo_map.status()
    for name, value in result.items():
        print(f"{name:26}{value:>14,}")
    if result["entries in the fullest"] > photo_map.PACKED / 2:
        print("Hashes fill up: let narrower windows begin some weeks from now (MAP_WINDOWS in instagram/settings.py).")


def rebuild() -> None:
    began = time.monotonic()
    total = photo_map.rebuild(lambda done, photos: draw(done, settings.LOGICAL_SHARDS, f"shards, {photos} photos"))
    print(f"the map has {total} photos; {total / (time.monotonic() - began):,.0f} a second")
