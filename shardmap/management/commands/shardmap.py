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

FULLEST = "photos in the fullest"


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser) -> None:
        parser.add_argument("action", choices=["status", "rebuild"])

    def handle(self, *args, **options) -> None:
        try:
            status() if options["action"] == "status" else rebuild()
        except Unavailable as error:
            raise CommandError(f"Redis (REDIS_SHARDMAP_URL): {error}") from error
        except KeyboardInterrupt as error:
            raise CommandError(
                "stopped; what is in the map is right, and the rest is looked up in the shards"
            ) from error


def status() -> None:
    of_nodes = photo_map.status()
    away = {name: figures for name, figures in of_nodes.items() if isinstance(figures, Exception)}
    there = {name: figures for name, figures in of_nodes.items() if name not in away}
    if not there:
        raise next(iter(away.values()))
    for name in next(iter(there.values())):
        values = [figures[name] for figures in there.values()]
        print(f"{name:30}{max(values) if name == FULLEST else sum(values):>16,.0f}")
    used, photos = (sum(figures[name] for figures in there.values()) for name in ("MB used", "photos"))
    print(f"{'bytes a photo':30}{used * 2**20 / photos if photos else 0:>16,.1f}")
    for name, figures in there.items():
        print(f"node {name}: {figures['photos']:,.0f} photos, {figures['MB used']:,.0f} MB used")
    for name, error in away.items():
        print(f"node {name} is away ({error}): its photos are looked up in the shards")
    if max(figures[FULLEST] for figures in there.values()) > photo_map.PACKED / 2:
        print("Hashes fill up: let narrower windows begin some weeks from now (MAP_WINDOWS in instagram/settings.py).")


def rebuild() -> None:
    began = time.monotonic()
    total = photo_map.rebuild(lambda done, photos: draw(done, settings.LOGICAL_SHARDS, f"shards, {photos} photos"))
    print(f"the map has {total} photos; {total / (time.monotonic() - began):,.0f} a second")
