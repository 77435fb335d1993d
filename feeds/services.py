"""The home feed: fan-out on write, and the read that trusts nothing but the truth. See docs/feeds.md.

What a feed in Redis holds are candidates. What is shown is decided at the read: only photos that exist, of owners
whom the viewer follows at this moment. So a chunk that was queued before an unfollow, a delete or a block may come
whenever it wants.
"""

import logging
from collections.abc import Callable

from accounts import graph
from accounts.cached import USERS
from accounts.visibility import Sight, sight_of
from feeds import home
from feeds.home import Entry
from photos.cached import MEDIA
from photos.models import Status
from photos.services import is_ready, newest_of
from shardmap import cache
from shardmap.redis_client import Unavailable
from shardmap.shards import shard_transaction
from workers.mirror import mirror
from workers.outbox import enqueue_many

logger = logging.getLogger(__name__)

CHUNK = 20_000  # followers a job: a tenth of a second of work, so that a retry repeats little
REBUILD_TRIES = 3
LARGER_STEP = 100  # candidates, when a page's worth of them was not enough


def fan_out(owner_id: int, photo_id: int) -> None:
    """Brings a new photo to its owner's feed and to those of the followers.

    The first CHUNK of them are reached by this job, so for nearly all accounts it is the only one. The others get a job
    a chunk: of another name, for gearmand hands out jobs by their names in turn, so nobody's `fan_out` waits for them.
    """
    if is_ready(owner_id, photo_id):
        home.push([owner_id], (photo_id, owner_id))
        _in_chunks("feeds.push_chunk", _push, owner_id, photo_id)


def push_chunk(owner_id: int, photo_id: int, first: int, last: int) -> None:
    """Brings a photo to the followers of one range of `follower_chunks`, as far as it exists by now."""
    if is_ready(owner_id, photo_id):
        _push(owner_id, photo_id, first, last)


def remove_photo(owner_id: int, photo_id: int) -> None:
    """Takes a deleted photo out of its owner's feed and of those of the followers."""
    home.remove([owner_id], (photo_id, owner_id))
    _in_chunks("feeds.remove_chunk", remove_chunk, owner_id, photo_id)


def remove_chunk(owner_id: int, photo_id: int, first: int, last: int) -> None:
    home.remove(graph.followers_between(owner_id, first, last), (photo_id, owner_id))


def follow_changed(follower_id: int, followee_id: int) -> None:
    """Brings a follower's feed up to a follow or an unfollow: merges the followee's photos into it, or removes them."""

    def write(edge: tuple[bool, int]) -> None:
        following, _version = edge
        if following:
            home.add(follower_id, newest_of([followee_id], None, home.FEED_LENGTH))
        else:
            home.remove_owner(follower_id, followee_id)

    mirror(lambda: graph.follows(follower_id, followee_id), write)


def read(viewer_id: int, max_id: int | None, min_id: int | None, count: int) -> list[dict]:
    """The viewer's feed: at most `count` photos (kind MEDIA), newest first, between `max_id` and `min_id`."""
    items: list[dict] = []
    wanted = count
    while True:
        entries, at_end = _candidates(viewer_id, max_id, wanted)
        newer = [entry for entry in entries if min_id is None or entry[0] > min_id]
        items += _shown(viewer_id, newer)
        if at_end or len(items) >= count or len(newer) < len(entries):
            return items[:count]
        # Some candidates were not to be shown: go on below them, in larger steps, for there may be many.
        max_id = entries[-1][0]
        wanted = max(count, LARGER_STEP)


def _candidates(viewer_id: int, max_id: int | None, count: int) -> tuple[list[Entry], bool]:
    """Up to `count` entries older than `max_id`, from Redis or beyond it from the shards; and whether that is all."""
    found = _from_redis(viewer_id, max_id, count)
    if found is not None:
        entries, at_end = found
        if at_end or len(entries) == count:
            return entries, at_end
        max_id = entries[-1][0] if entries else max_id
    else:
        entries = []
    missing = count - len(entries)
    older = newest_of(_owners_in_feed(viewer_id), max_id, missing)
    return entries + older, len(older) < missing


def _from_redis(viewer_id: int, max_id: int | None, count: int) -> tuple[list[Entry], bool] | None:
    """A page of the feed in Redis, which is rebuilt first if it is cold; None when Redis cannot serve it."""
    try:
        found = home.page(viewer_id, max_id, count)
        if found is not None:
            return found
        for _ in range(REBUILD_TRIES):
            try:
                home.rebuild(viewer_id, lambda length: newest_of(_owners_in_feed(viewer_id), None, length))
            except home.RebuildInterrupted as error:
                logger.warning("reading again: %s", error)
            else:
                return home.page(viewer_id, max_id, count)
    except Unavailable as error:
        logger.warning("the feed of user %s comes from the shards: %s", viewer_id, error)
    return None


def _shown(viewer_id: int, entries: list[Entry]) -> list[dict]:
    """Those of the candidates that may be shown, in one round trip to each Memcached."""
    media, users, *sight = cache.fetch(
        (MEDIA, [photo_id for photo_id, _ in entries]),
        (USERS, [owner_id for _, owner_id in entries]),
        *sight_of(viewer_id),
    )
    viewer = Sight.of(viewer_id, *sight)
    shown, gone = [], []
    for photo_id, owner_id in entries:
        photo = media.get(photo_id)
        if photo is None:
            # Deleted for good, and pushed by a chunk that came later than the removal.
            gone.append((photo_id, owner_id))
        elif photo["status"] == Status.READY and owner_id in users and viewer.has_in_feed(owner_id):
            shown.append(photo)
    if gone:
        try:
            home.remove([viewer_id], *gone)
        except Unavailable as error:
            logger.warning("dead photos stay in the feed of user %s: %s", viewer_id, error)
    return shown


def _owners_in_feed(user_id: int) -> set[int]:
    """Whose photos are in a user's feed, from the shards: the followees' and one's own."""
    return graph.followees_of(user_id) | {user_id}


def _push(owner_id: int, photo_id: int, first: int, last: int) -> None:
    home.push(graph.followers_between(owner_id, first, last), (photo_id, owner_id))


def _in_chunks(job: str, do: Callable[[int, int, int, int], None], owner_id: int, photo_id: int) -> None:
    """Does the first chunk of the followers, and then writes a job for each of the others."""
    ranges = graph.follower_chunks(owner_id, CHUNK)
    for first, last in ranges[:1]:
        do(owner_id, photo_id, first, last)
    with shard_transaction(owner_id):
        enqueue_many(job, [{"owner_id": owner_id, "photo_id": photo_id, "first": a, "last": b} for a, b in ranges[1:]])
