"""What each role of the inventory means for a host that has it: packages, configuration, services.

Nothing here talks to a host: `fab provision` (deploy/provision.py) brings there what these functions return.
"""

from collections.abc import Callable

from deploy.roles.app import app, map_snapshots, push, worker
from deploy.roles.edge import edge
from deploy.roles.host import base
from deploy.roles.memory import gearman, memcached, redis, sentinel
from deploy.roles.place import Part, Place
from deploy.roles.postgres import pgbouncer, postgres
from deploy.roles.watch import munin, munin_node

PARTS: dict[str, Callable[[Place], Part]] = {
    "edge": edge,
    "app": app,
    "worker": worker,
    "push": push,
    "pgbouncer": pgbouncer,
    "postgres": postgres,
    "map_snapshots": map_snapshots,
    "redis_shardmap": lambda place: redis(place, "redis_shardmap", maxmemory_policy="noeviction", appendonly="yes"),
    "redis_feeds": lambda place: redis(place, "redis_feeds", maxmemory_policy="allkeys-lru", appendonly="no"),
    "sentinel": sentinel,
    "memcached": memcached,
    "gearman": gearman,
    "munin": munin,
}


def parts(place: Place) -> list[Part]:
    """All that the host needs: what every host has, and its roles' in the inventory's order."""
    return [
        base(place),
        *(PARTS[role](place) for role in place.host.roles),
        *([munin_node(place)] if place.inventory.of("munin") else []),
    ]
