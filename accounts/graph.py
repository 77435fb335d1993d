"""The follow graph: follow, unfollow, block.

An edge between two users is two rows. The follower's shard has the truth, written by the request (Follow); the
followee's shard has its mirror (Follower), from which fan-out and the list of followers are read. Both counts are
changed in the transaction of their row, and only if that row's `active` changed.
"""

from collections.abc import Iterator

from django.db.models import F, QuerySet

from accounts.errors import InvalidParameters, NotAllowed, NotFound
from accounts.models import Block, Follow, Follower
from accounts.services import BLOCKED, COUNTS, USERS, add_to_counts, refuse_blocked
from shardmap import cache
from shardmap.shards import on_shard, shard_transaction
from workers.outbox import enqueue

# Instagram's own limit. It bounds the rebuild of a feed and the size of the cached set of followees.
MAX_FOLLOWS = 7500


def _load_followees(user_ids: list[int]) -> dict[int, list[int]]:
    followees = {}
    for user_id in user_ids:
        with on_shard(user_id):
            active = Follow.objects.filter(follower_id=user_id, active=True)
            followees[user_id] = list(active.values_list("followee_id", flat=True))
    return followees


FOLLOWEES = cache.Kind("followees", _load_followees)  # whom a user follows


def follow(follower_id: int, followee_id: int) -> None:
    """Makes one user follow another; doing it again changes nothing.

    Raises InvalidParameters (oneself), NotFound, NotAllowed (blocked, or MAX_FOLLOWS reached).
    """
    if follower_id == followee_id:
        raise InvalidParameters("user_id: you cannot follow yourself")
    found, blocked, followees = cache.fetch(
        (USERS, [followee_id]), (BLOCKED, [followee_id, follower_id]), (FOLLOWEES, [follower_id])
    )
    if followee_id not in found:
        raise NotFound(f"there is no user {followee_id}")
    refuse_blocked(follower_id, blocked[followee_id])
    if followee_id in blocked[follower_id]:
        raise NotAllowed(f"you blocked user {followee_id}: unblock first")
    if len(followees[follower_id]) >= MAX_FOLLOWS and followee_id not in followees[follower_id]:
        raise NotAllowed(f"you follow {MAX_FOLLOWS} accounts, which is the most allowed")
    with shard_transaction(follower_id):
        edge, created = Follow.objects.get_or_create(
            follower_id=follower_id, followee_id=followee_id, defaults={"active": True, "version": 1}
        )
        if created or _turn(edge, active=True):
            _edge_changed(follower_id, followee_id, follows=+1)
    _forget(follower_id)


def unfollow(follower_id: int, followee_id: int) -> None:
    """Ends a follow; if there is none, nothing changes."""
    with shard_transaction(follower_id):
        if _turn(Follow(follower_id=follower_id, followee_id=followee_id), active=False):
            _edge_changed(follower_id, followee_id, follows=-1)
    _forget(follower_id)


def block(blocker_id: int, blocked_id: int) -> None:
    """Hides the blocker from the blocked one, and ends the follows between them. Raises as `follow` does."""
    if blocker_id == blocked_id:
        raise InvalidParameters("user_id: you cannot block yourself")
    (found,) = cache.fetch((USERS, [blocked_id]))
    if blocked_id not in found:
        raise NotFound(f"there is no user {blocked_id}")
    with shard_transaction(blocker_id):
        Block.objects.get_or_create(blocker_id=blocker_id, blocked_id=blocked_id)
        enqueue("accounts.sever", blocker_id=blocker_id, blocked_id=blocked_id)
    cache.forget(BLOCKED.key(blocker_id))
    unfollow(blocker_id, blocked_id)
    unfollow(blocked_id, blocker_id)


def unblock(blocker_id: int, blocked_id: int) -> None:
    """Lifts a block. The follows that it ended stay ended."""
    with shard_transaction(blocker_id):
        Block.objects.filter(blocker_id=blocker_id, blocked_id=blocked_id).delete()
        enqueue("accounts.forget", keys=[BLOCKED.key(blocker_id)])
    cache.forget(BLOCKED.key(blocker_id))


def sever(blocker_id: int, blocked_id: int) -> None:
    """The rest of a block, as a job: whatever of it the request did not get to."""
    with on_shard(blocker_id):
        still_blocked = Block.objects.filter(blocker_id=blocker_id, blocked_id=blocked_id).exists()
    if still_blocked:  # else unblocked by now, and perhaps followed anew
        unfollow(blocker_id, blocked_id)
        unfollow(blocked_id, blocker_id)
    cache.forget_surely(BLOCKED.key(blocker_id))


def mirror(follower_id: int, followee_id: int) -> None:
    """Brings the followee's side of an edge up to the follower's, whichever of its jobs came first or twice."""
    with on_shard(follower_id):
        edge = Follow.objects.get(follower_id=follower_id, followee_id=followee_id)
    with shard_transaction(followee_id):
        Follower.objects.get_or_create(
            followee_id=followee_id, follower_id=follower_id, defaults={"active": False, "version": 0}
        )
        mirrored = Follower.objects.select_for_update().get(followee_id=followee_id, follower_id=follower_id)
        if edge.version > mirrored.version:
            if edge.active != mirrored.active:
                add_to_counts(followee_id, followed_by=+1 if edge.active else -1)
            mirrored.active, mirrored.version = edge.active, edge.version
            mirrored.save(update_fields=["active", "version"])
            enqueue("feeds.follow_changed", follower_id=follower_id, followee_id=followee_id)
        # A follow that began before a block and committed after it: the block wins.
        blocked = edge.active and Block.objects.filter(blocker_id=followee_id, blocked_id=follower_id).exists()
    cache.forget_surely(FOLLOWEES.key(follower_id), COUNTS.key(follower_id), COUNTS.key(followee_id))
    if blocked:
        unfollow(follower_id, followee_id)


def relationship(viewer_id: int, user_id: int) -> dict:
    """How two users stand to each other, from the first one's side, as the API has it. Raises NotFound."""
    found, followees, blocked = cache.fetch(
        (USERS, [user_id]), (FOLLOWEES, [viewer_id, user_id]), (BLOCKED, [viewer_id])
    )
    if user_id not in found:
        raise NotFound(f"there is no user {user_id}")
    incoming = "followed_by" if viewer_id in followees[user_id] else "none"
    return {
        "outgoing_status": "follows" if user_id in followees[viewer_id] else "none",
        "incoming_status": "blocked_by_you" if user_id in blocked[viewer_id] else incoming,
        "target_user_is_private": False,
    }


def followees_of(user_id: int) -> set[int]:
    """Whom a user follows, from the shard."""
    return set(_load_followees([user_id])[user_id])


def follows(follower_id: int, followee_id: int) -> tuple[bool, int]:
    """Whether one user follows another, and the version of that answer (0: never did)."""
    with on_shard(follower_id):
        edge = Follow.objects.filter(follower_id=follower_id, followee_id=followee_id).first()
    return (edge.active, edge.version) if edge else (False, 0)


def follower_chunks(user_id: int, size: int) -> Iterator[tuple[int, int]]:
    """The followers, in order of ID, cut into ranges with `size` of them each: (first, last), …"""
    last = 0
    while True:
        with on_shard(user_id):
            ids = list(_followers(user_id).filter(follower_id__gt=last).values_list("follower_id", flat=True)[:size])
        if not ids:
            return
        last = ids[-1]
        yield ids[0], last


def followers_between(user_id: int, first: int, last: int) -> list[int]:
    """The followers whose IDs are in a range, ends included."""
    with on_shard(user_id):
        followers = _followers(user_id).filter(follower_id__gte=first, follower_id__lte=last)
        return list(followers.values_list("follower_id", flat=True))


def _followers(user_id: int) -> QuerySet[Follower]:
    return Follower.objects.filter(followee_id=user_id, active=True).order_by("follower_id")


def _turn(edge: Follow, *, active: bool) -> bool:
    """Turns an edge on or off; returns whether that changed it."""
    rows = Follow.objects.filter(follower_id=edge.follower_id, followee_id=edge.followee_id, active=not active)
    return rows.update(active=active, version=F("version") + 1) == 1


def _edge_changed(follower_id: int, followee_id: int, follows: int) -> None:
    add_to_counts(follower_id, follows=follows)
    enqueue("accounts.mirror_follow", follower_id=follower_id, followee_id=followee_id)


def _forget(follower_id: int) -> None:
    cache.forget(FOLLOWEES.key(follower_id), COUNTS.key(follower_id))
