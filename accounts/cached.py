"""What Memcached holds about users, and how each kind of it is read from the databases."""

from collections.abc import Callable

from accounts.models import Block, BlockedBy, Counts, Edge, Follow, User
from shardmap import cache
from shardmap.shards import on_shard

FIELDS = ("id", "username", "full_name", "bio", "website", "profile_picture", "is_private")


def _load_users(user_ids: list[int]) -> dict[int, dict]:
    return {user["id"]: user for user in User.objects.filter(id__in=user_ids, is_active=True).values(*FIELDS)}


def _each_in_its_shard(load: Callable[[int], object]) -> Callable[[list[int]], dict[int, object]]:
    def load_all(user_ids: list[int]) -> dict[int, object]:
        loaded = {}
        for user_id in user_ids:
            with on_shard(user_id):
                loaded[user_id] = load(user_id)
        return loaded

    return load_all


def _load_counts(user_id: int) -> dict[str, int]:
    counts = Counts.objects.filter(user_id=user_id).values("media", "follows", "followed_by").first()
    return counts or {"media": 0, "follows": 0, "followed_by": 0}


def _load_edges(user_id: int) -> dict[str, list[int]]:
    edges = Follow.objects.filter(follower_id=user_id).exclude(status=Edge.NONE).values_list("followee_id", "status")
    by_status: dict[str, list[int]] = {"follows": [], "requested": []}
    for followee_id, status in edges:
        by_status["follows" if status == Edge.FOLLOWS else "requested"].append(followee_id)
    return by_status


def _load_blocks(user_id: int) -> dict[str, list[int]]:
    return {
        "blocked": list(Block.objects.filter(blocker_id=user_id).values_list("blocked_id", flat=True)),
        "blocked_by": list(BlockedBy.objects.filter(blocked_id=user_id).values_list("blocker_id", flat=True)),
    }


USERS = cache.Kind("user", _load_users, " ".join(FIELDS))
COUNTS = cache.Kind("counts", _each_in_its_shard(_load_counts), "media follows followed_by")
# Whom a user follows, or has asked to; whom a user blocked, who blocked the user, and both.
EDGES = cache.Kind(
    "edges",
    _each_in_its_shard(_load_edges),
    "follows requested",
    lambda value: {status: frozenset(user_ids) for status, user_ids in value.items()},
)
BLOCKS = cache.Kind(
    "blocks",
    _each_in_its_shard(_load_blocks),
    "blocked blocked_by",
    lambda value: value | {"hidden": frozenset(value["blocked"]).union(value["blocked_by"])},
)
