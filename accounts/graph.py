"""The follow graph: follow, unfollow, approve, ignore, block.

An edge between two users is two rows. The follower's shard has the truth (Follow), the followee's shard has its mirror
(Follower), from which fan-out and the list of followers are read. Both counts are changed in the transaction of their
row, and only when the edge becomes, or ceases to be, `FOLLOWS`.
"""

from collections.abc import Callable

from django.db import connections
from django.db.models import QuerySet, Window
from django.db.models.functions import Mod, RowNumber

from accounts.cached import BLOCKS, COUNTS, EDGES, USERS
from accounts.counts import add_to_counts
from accounts.errors import InvalidParameters, NotAllowed, NotFound
from accounts.models import Block, BlockedBy, Edge, Follow, Follower, User
from accounts.paging import full_page
from accounts.schemas import Relationship
from accounts.visibility import Sight, known, sight_of
from shardmap import cache, replicas
from shardmap.fields import NextId
from shardmap.ids import MAX_ID
from shardmap.shards import current_database, on_shard, shard_transaction
from workers.outbox import enqueue

# Instagram's own limit. It bounds the rebuild of a feed and the size of the cached set of followees.
MAX_FOLLOWS = 7500
OTHERS_A_JOB = 200  # with whom a deleted user's ties are ended: a second or two of work

Page = tuple[list[dict], int | None]  # users (values of kind USERS), and the cursor of the next page


def follow(follower_id: int, followee_id: int) -> None:
    """Makes one user follow another, or ask to if the other is private; doing it again changes nothing.

    Raises InvalidParameters (oneself), NotFound, NotAllowed (a block, or MAX_FOLLOWS reached).
    """
    if follower_id == followee_id:
        raise InvalidParameters("user_id: you cannot follow yourself")
    users, edges, blocks = cache.fetch((USERS, [followee_id]), *sight_of(follower_id))
    followee = _existing(users, followee_id)
    Sight.of(follower_id, edges, blocks).require_known(followee)
    followees = edges[follower_id]["follows"]
    if len(followees) >= MAX_FOLLOWS and followee_id not in followees:
        raise NotAllowed(f"you follow {MAX_FOLLOWS} accounts, which is the most allowed")

    def followed(now: Edge) -> Edge:
        return Edge.REQUESTED if followee["is_private"] and now != Edge.FOLLOWS else Edge.FOLLOWS

    _change(follower_id, followee_id, followed)


def unfollow(follower_id: int, followee_id: int) -> None:
    """Ends a follow, or withdraws the request for one; if there is neither, nothing changes."""
    _change(follower_id, followee_id, lambda now: Edge.NONE)


def approve(followee_id: int, follower_id: int) -> None:
    """Lets in who has asked to follow. Raises NotFound when there is no such request."""
    if _change(follower_id, followee_id, _approved) == Edge.NONE:
        raise NotFound(f"user {follower_id} has not asked to follow you")


def ignore(followee_id: int, follower_id: int) -> None:
    """Takes a request to follow off the list; the other is not told. If there is none, nothing changes."""
    _change(follower_id, followee_id, lambda now: Edge.NONE if now == Edge.REQUESTED else now)


def approve_all(user_id: int) -> None:
    """Lets in all who have asked to follow, as a job, after the account was made public."""
    with on_shard(user_id):
        asking = Follower.objects.filter(followee_id=user_id, status=Edge.REQUESTED)
        follower_ids = list(asking.values_list("follower_id", flat=True))
    for follower_id in follower_ids:
        _change(follower_id, user_id, _approved)


def block(blocker_id: int, blocked_id: int) -> None:
    """Hides two users from each other, and ends the follows between them. Raises InvalidParameters, NotFound."""
    if blocker_id == blocked_id:
        raise InvalidParameters("user_id: you cannot block yourself")
    (users,) = cache.fetch((USERS, [blocked_id]))
    _existing(users, blocked_id)
    with shard_transaction(blocker_id):
        Block.objects.get_or_create(blocker_id=blocker_id, blocked_id=blocked_id)
        enqueue("accounts.mirror_block", blocker_id=blocker_id, blocked_id=blocked_id)
    _mirror_block(blocker_id, blocked_id)
    cache.forget(BLOCKS.key(blocker_id), BLOCKS.key(blocked_id))


def unblock(blocker_id: int, blocked_id: int) -> None:
    """Lifts a block. The follows that it ended stay ended."""
    with shard_transaction(blocker_id):
        Block.objects.filter(blocker_id=blocker_id, blocked_id=blocked_id).delete()
        enqueue("accounts.mirror_block", blocker_id=blocker_id, blocked_id=blocked_id)
    _mirror_block(blocker_id, blocked_id)
    cache.forget(BLOCKS.key(blocker_id), BLOCKS.key(blocked_id))


def mirror_block(blocker_id: int, blocked_id: int) -> None:
    """The rest of `block` and `unblock`, as a job: whatever of it the request did not get to."""
    _mirror_block(blocker_id, blocked_id)
    cache.forget_surely(BLOCKS.key(blocker_id), BLOCKS.key(blocked_id))


def _mirror_block(blocker_id: int, blocked_id: int) -> None:
    with shard_transaction(blocked_id):
        # One at a time, and the truth is read by whose turn it is: after a block, or its end, was answered, no job that
        # has read what was before writes that. (Nothing for what is frequent: it holds connections to two databases.)
        with connections[current_database()].cursor() as cursor:
            cursor.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"block {blocker_id} {blocked_id}"]
            )
        is_blocked = _is_blocked(blocker_id, blocked_id)
        if is_blocked:
            BlockedBy.objects.get_or_create(blocked_id=blocked_id, blocker_id=blocker_id)
        else:
            BlockedBy.objects.filter(blocked_id=blocked_id, blocker_id=blocker_id).delete()
    if is_blocked:
        unfollow(blocker_id, blocked_id)
        unfollow(blocked_id, blocker_id)


def _is_blocked(blocker_id: int, blocked_id: int) -> bool:
    with on_shard(blocker_id):
        return Block.objects.filter(blocker_id=blocker_id, blocked_id=blocked_id).exists()


def mirror_follow(follower_id: int, followee_id: int) -> None:
    """Brings the followee's side of an edge up to the follower's, whichever of its jobs came first or twice."""
    with on_shard(follower_id):
        edge = Follow.objects.get(follower_id=follower_id, followee_id=followee_id)
    with shard_transaction(followee_id):
        Follower.objects.get_or_create(
            followee_id=followee_id, follower_id=follower_id, defaults={"status": Edge.NONE, "version": 0}
        )
        mirrored = Follower.objects.select_for_update().get(followee_id=followee_id, follower_id=follower_id)
        if edge.version > mirrored.version:
            followed_by = (edge.status == Edge.FOLLOWS) - (mirrored.status == Edge.FOLLOWS)
            mirrored.status, mirrored.version, mirrored.since = edge.status, edge.version, NextId()
            mirrored.save(update_fields=["status", "version", "since"])
            if followed_by:
                add_to_counts(followee_id, followed_by=followed_by)
            enqueue("feeds.follow_changed", follower_id=follower_id, followee_id=followee_id)
        # A follow that began before a block and committed after it: the block wins.
        blocked = edge.status and Block.objects.filter(blocker_id=followee_id, blocked_id=follower_id).exists()
    # Either of them may have done this: it is a follow of the one, or an approval of the other.
    writers = replicas.keys_of_writers(follower_id, followee_id)
    cache.forget_surely(EDGES.key(follower_id), COUNTS.key(follower_id), COUNTS.key(followee_id), *writers)
    if blocked:
        unfollow(follower_id, followee_id)
    elif edge.status == Edge.REQUESTED and User.objects.filter(id=followee_id, is_private=False).exists():
        # A request that began before the account was made public, and came after all others were let in.
        _change(follower_id, followee_id, _approved)


def leave(user_id: int, after: int) -> int | None:
    """Ends all that there is between a user and the next others with IDs above `after`; returns the last one's ID.

    None when there are no more.
    """
    with on_shard(user_id):
        rows_of = [
            (Follow.objects.filter(follower_id=user_id).exclude(status=Edge.NONE), "followee_id"),
            (Follower.objects.filter(followee_id=user_id).exclude(status=Edge.NONE), "follower_id"),
            (Block.objects.filter(blocker_id=user_id), "blocked_id"),
            (BlockedBy.objects.filter(blocked_id=user_id), "blocker_id"),
        ]
        follows, followers, blocked, blockers = (
            set(rows.filter(**{f"{other}__gt": after}).order_by(other).values_list(other, flat=True)[:OTHERS_A_JOB])
            for rows, other in rows_of
        )
    others = sorted(follows | followers | blocked | blockers)[:OTHERS_A_JOB]
    for other_id in others:
        if other_id in follows:
            unfollow(user_id, other_id)
        if other_id in followers:
            unfollow(other_id, user_id)
        if other_id in blocked:
            unblock(user_id, other_id)
        if other_id in blockers:
            unblock(other_id, user_id)
    return others[-1] if others else None


def relationship(viewer_id: int, user_id: int) -> Relationship:
    """How two users stand to each other, from the first one's side, as the API has it. Raises NotFound, NotAllowed."""
    users, theirs, edges, blocks = cache.fetch((USERS, [user_id]), (EDGES, [user_id]), *sight_of(viewer_id))
    user = _existing(users, user_id)
    if user_id in blocks[viewer_id]["blocked_by"] and user_id not in blocks[viewer_id]["blocked"]:
        raise NotAllowed("you cannot view this resource")
    incoming = _status_of(viewer_id, theirs[user_id], "followed_by", "requested_by")
    return {
        "outgoing_status": _status_of(user_id, edges[viewer_id], "follows", "requested"),
        "incoming_status": "blocked_by_you" if user_id in blocks[viewer_id]["blocked"] else incoming,
        "target_user_is_private": user["is_private"],
    }


def _status_of(user_id: int, edges: dict[str, list[int]], follows: str, requested: str) -> str:
    if user_id in edges["follows"]:
        return follows
    return requested if user_id in edges["requested"] else "none"


def follows_of(viewer_id: int | None, user_id: int, cursor: int, count: int) -> Page:
    """Whom a user follows, latest first. Raises NotFound, NotAllowed."""
    _require_seen(viewer_id, user_id)
    with on_shard(user_id):
        edges = Follow.objects.filter(follower_id=user_id, status=Edge.FOLLOWS)
        return _people(viewer_id, edges, "followee_id", cursor, count)


def followers_of(viewer_id: int | None, user_id: int, cursor: int, count: int) -> Page:
    """Who follows a user, latest first. Raises NotFound, NotAllowed."""
    _require_seen(viewer_id, user_id)
    with on_shard(user_id):
        return _people(viewer_id, _followers(user_id), "follower_id", cursor, count)


def requests_to(user_id: int, cursor: int, count: int) -> Page:
    """Who has asked to follow a user, latest first."""
    with on_shard(user_id):
        edges = Follower.objects.filter(followee_id=user_id, status=Edge.REQUESTED)
        return _people(user_id, edges, "follower_id", cursor, count)


def _people(viewer_id: int | None, edges: QuerySet, column: str, cursor: int, count: int) -> Page:
    """A page of the users at the other end of edges, without those of whom the viewer may not know."""

    def rows_below(position: int, count: int) -> list[tuple[int, int]]:
        wanted = edges.filter(since__lt=position).order_by("-since").values_list(column, "since")[:count]
        return replicas.read(wanted, viewer_id, first=position == MAX_ID)

    people, _, last = full_page(rows_below, lambda rows: known(viewer_id, [row[0] for row in rows]), cursor, count)
    return people, last


def followees_of(user_id: int) -> set[int]:
    """Whom a user follows, from the shard."""
    with on_shard(user_id):
        edges = Follow.objects.filter(follower_id=user_id, status=Edge.FOLLOWS)
        return set(edges.values_list("followee_id", flat=True))


def follows(follower_id: int, followee_id: int) -> tuple[bool, int]:
    """Whether one user follows another, and the version of that answer (0: never did)."""
    with on_shard(follower_id):
        edge = Follow.objects.filter(follower_id=follower_id, followee_id=followee_id).first()
    return (edge.status == Edge.FOLLOWS, edge.version) if edge else (False, 0)


def status_seen_by_followee(follower_id: int, followee_id: int) -> Edge:
    """How a follower stands to a followee, as far as the followee's shard knows."""
    with on_shard(followee_id):
        edge = Follower.objects.filter(follower_id=follower_id, followee_id=followee_id).first()
    return Edge(edge.status) if edge else Edge.NONE


def follower_chunks(user_id: int, size: int) -> list[tuple[int, int]]:
    """The followers cut into ranges with `size` of them each, by when they followed: (first, last) of `since`, …

    So they lie side by side in the table: by their IDs, reading a chunk took six times as long. The last range is open.
    Who follows again meanwhile may leave the range, and a job feeds.follow_changed comes for that follow anyway.
    """
    place = Window(RowNumber(), order_by="since")
    with on_shard(user_id):
        every = _followers(user_id).annotate(after=Mod(place - 1, size)).filter(after=0).order_by("since")
        firsts = list(every.values_list("since", flat=True))
    return list(zip(firsts, [first - 1 for first in firsts[1:]] + [MAX_ID], strict=True)) if firsts else []


def followers_between(user_id: int, first: int, last: int) -> list[int]:
    """The followers in a range of `follower_chunks`."""
    with on_shard(user_id):
        return list(_followers(user_id).filter(since__range=(first, last)).values_list("follower_id", flat=True))


def _followers(user_id: int) -> QuerySet[Follower]:
    return Follower.objects.filter(followee_id=user_id, status=Edge.FOLLOWS)


def _change(follower_id: int, followee_id: int, change: Callable[[Edge], Edge]) -> Edge:
    """Turns an edge into what `change` makes of it, with all that follows from it; returns what it is now."""
    with shard_transaction(follower_id):
        edges = Follow.objects.select_for_update().filter(follower_id=follower_id, followee_id=followee_id)
        edge = edges.first()
        if edge is None and change(Edge.NONE) == Edge.NONE:
            return Edge.NONE
        if edge is None:
            # Whoever is second here waits for the first to commit.
            Follow.objects.get_or_create(
                follower_id=follower_id, followee_id=followee_id, defaults={"status": Edge.NONE, "version": 0}
            )
            edge = edges.get()
        before, now = Edge(edge.status), change(Edge(edge.status))
        if now != before:
            edges.update(status=now, version=edge.version + 1, since=NextId())
            if follows := (now == Edge.FOLLOWS) - (before == Edge.FOLLOWS):
                add_to_counts(follower_id, follows=follows)
            enqueue("accounts.mirror_follow", follower_id=follower_id, followee_id=followee_id)
            if change is _approved:
                enqueue("notifications.approved", follower_id=follower_id, followee_id=followee_id)
    cache.forget(EDGES.key(follower_id), COUNTS.key(follower_id))
    return now


def _approved(now: Edge) -> Edge:
    return Edge.FOLLOWS if now == Edge.REQUESTED else now


def _existing(users: dict[int, dict], user_id: int) -> dict:
    if user_id not in users:
        raise NotFound(f"there is no user {user_id}")
    return users[user_id]


def _require_seen(viewer_id: int | None, user_id: int) -> None:
    users, *sight = cache.fetch((USERS, [user_id]), *sight_of(viewer_id))
    Sight.of(viewer_id, *sight).require_seen(_existing(users, user_id))
