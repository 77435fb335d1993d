"""Likes: the row in the photo's shard is the truth, the one in the liker's shard its mirror."""

import json
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from accounts.errors import NotFound
from accounts.paging import full_page
from accounts.visibility import known
from photos.cached import LIKED, MEDIA
from photos.models import Like, Liked, Status
from photos.services import get
from photos.visible import Row, page
from shardmap import cache, replicas
from shardmap.ids import MAX_ID
from shardmap.rows import execute, insert_if_absent
from shardmap.shards import current_database, on_shard, shard_transaction
from workers.mirror import mirror
from workers.outbox import do_held, enqueue_many, insert_for_each, submit

LIKES_A_JOB = 100  # of a deleted user: a second or two of work
BURIED_A_JOB = 1000  # of a deleted photo: a job for each of their likers

# All that a like writes, in one round trip, so in one transaction. First of all the photo's row is locked: whoever
# likes, unlikes or deletes it at the same time waits there, and the second statement sees what they did.
# The mirror's job is written also if nothing has changed: whoever changed it may have died before that.
CHANGE = f"""
    SELECT id FROM "logical"."photos_photo" WHERE id = %(photo_id)s AND status = '{Status.READY}' FOR UPDATE;
    WITH photo AS (
        SELECT id FROM "logical"."photos_photo" WHERE id = %(photo_id)s AND status = '{Status.READY}'
    ), changed AS (
        {{change}}
    ), counted AS (
        UPDATE "logical"."photos_photo" SET likes = likes {{by}} WHERE id IN (SELECT photo_id FROM changed)
    ), told AS (
        {insert_for_each("changed", "feeds.liked", "%(args)s::jsonb")}
    ), mirrored AS (
        {insert_for_each("photo", "photos.mirror_like", "%(args)s::jsonb", is_held=True)}
    ) SELECT (SELECT id FROM told), (SELECT id FROM mirrored)
"""
LIKE = CHANGE.format(
    by="+ 1",
    change="""
        INSERT INTO "logical"."photos_like" (photo_id, user_id) SELECT id, %(user_id)s FROM photo
        ON CONFLICT DO NOTHING RETURNING photo_id
    """,
)
UNLIKE = CHANGE.format(
    by="- 1",
    change="""
        DELETE FROM "logical"."photos_like" WHERE photo_id = (SELECT id FROM photo) AND user_id = %(user_id)s
        RETURNING photo_id
    """,
)
IS_LIKED = 'SELECT 1 FROM "logical"."photos_like" WHERE photo_id = %(photo_id)s AND user_id = %(user_id)s'
STATE = f"""
    SELECT likes, EXISTS ({IS_LIKED})
    FROM "logical"."photos_photo" WHERE id = %(photo_id)s AND status = '{Status.READY}'
"""


class State(NamedTuple):
    """Nobody likes a photo that is not there to be liked."""

    likes: int
    is_liked: bool


def like(user_id: int, photo_id: int, owner_id: int | None = None) -> None:
    """Notes that a user likes a photo; doing it again changes nothing. Raises as `services.get`."""
    photo = get(user_id, photo_id, owner_id)
    _set(user_id, photo, liked=True)


def unlike(user_id: int, photo_id: int, owner_id: int | None = None) -> None:
    """Takes a like back; if there is none, nothing changes. Raises as `services.get`."""
    photo = get(user_id, photo_id, owner_id)
    _set(user_id, photo, liked=False)


def likers_of(
    viewer_id: int | None, photo_id: int, owner_id: int | None, cursor: int, count: int
) -> tuple[list[dict], int | None]:
    """Who likes a photo, latest first: values of kind USERS, and the cursor of the next page. Raises as `get`."""
    photo = get(viewer_id, photo_id, owner_id)

    def rows_below(position: int, count: int) -> list[tuple[int, int]]:
        with on_shard(photo["owner_id"]):
            likes = Like.objects.filter(photo_id=photo_id, since__lt=position).order_by("-since")
            return replicas.read(likes.values_list("user_id", "since")[:count], viewer_id, first=position == MAX_ID)

    people, _, last = full_page(rows_below, lambda rows: known(viewer_id, [row[0] for row in rows]), cursor, count)
    return people, last


def likes_of(owner_id: int, photo_id: int) -> int:
    """How many like a photo, from the shard; 0 if it is not there to be liked."""
    return state_of(0, photo_id, owner_id).likes


def is_liked(user_id: int, photo_id: int, owner_id: int) -> bool:
    """Whether a user likes a photo, from the photo's shard."""
    with on_shard(owner_id):
        return bool(execute(IS_LIKED, {"photo_id": photo_id, "user_id": user_id}))


def state_of(user_id: int, photo_id: int, owner_id: int) -> State:
    """What the photo's shard knows of its likes, and of this user's."""
    with on_shard(owner_id):
        found = execute(STATE, {"photo_id": photo_id, "user_id": user_id})
    return State(*found[0]) if found else State(0, False)


def liked_by(user_id: int, max_like_id: int, count: int) -> tuple[list[dict], int | None]:
    """The photos that a user likes, latest like first, as values of kind MEDIA; and the next page's `max_like_id`."""

    def rows_below(position: int, count: int) -> list[Row]:
        with on_shard(user_id):
            liked = Liked.objects.filter(user_id=user_id, since__lt=position).order_by("-since")
            wanted = liked.values_list("photo_id", "owner_id", "since")[:count]
            return replicas.read(wanted, user_id, first=position == MAX_ID)

    photos, _, last = page(user_id, rows_below, max_like_id, count)
    return photos, last


def unlike_some_of(user_id: int) -> bool:
    """Takes back some of the likes of a deleted user; returns whether there were any left."""
    with on_shard(user_id):
        likes = list(Liked.objects.filter(user_id=user_id).values_list("photo_id", "owner_id")[:LIKES_A_JOB])
    for photo_id, owner_id in likes:
        with suppress(NotFound):  # the photo is deleted, with all likes
            _set(user_id, {"id": photo_id, "owner_id": owner_id}, liked=False)
        with on_shard(user_id):
            Liked.objects.filter(user_id=user_id, photo_id=photo_id).delete()
    return bool(likes)


def bury_some_of(owner_id: int, photo_id: int) -> bool:
    """Removes some of a deleted photo's likes, also from the likers' lists; returns whether there may be more."""
    with shard_transaction(owner_id):
        likes = Like.objects.filter(photo_id=photo_id)
        user_ids = list(likes.values_list("user_id", flat=True)[:BURIED_A_JOB])
        likes.filter(user_id__in=user_ids).delete()
        whose = {"photo_id": photo_id, "owner_id": owner_id}
        enqueue_many("photos.mirror_like", [{"user_id": user_id, **whose} for user_id in user_ids])
    return len(user_ids) == BURIED_A_JOB


def mirror_like(user_id: int, photo_id: int, owner_id: int, liked: bool | None = None) -> None:
    """What follows a like, or the end of one, for the photo and its liker; as a job that the request does itself.

    `liked` is what the photo's shard said a moment ago, if that is known.
    """
    try:
        _mirror(user_id, photo_id, owner_id, liked)
    finally:  # the photo is not the liker's: that the liker's shard is away concerns nobody else
        cache.refresh_surely(MEDIA, photo_id, LIKED.key(user_id), *replicas.keys_of_writers(user_id))


def _set(user_id: int, photo: dict, *, liked: bool) -> None:
    like = {"photo_id": photo["id"], "user_id": user_id, "owner_id": photo["owner_id"]}
    with on_shard(photo["owner_id"]):
        database = current_database()
        values = like | {"args": json.dumps(like)}
        ((told, mirrored),) = execute(LIKE if liked else UNLIKE, values, database)
    if mirrored is None:
        raise NotFound(f"there is no media {photo['id']}")
    if told:
        submit(database, [(told, "feeds.liked")])
    do_held(database, mirrored, partial(mirror_like, **like, liked=liked))


def _mirror(user_id: int, photo_id: int, owner_id: int, liked: bool | None) -> None:
    def write(liked: bool) -> None:
        with on_shard(user_id):
            if liked:
                insert_if_absent(Liked, returning="since", user_id=user_id, photo_id=photo_id, owner_id=owner_id)
            else:
                Liked.objects.filter(user_id=user_id, photo_id=photo_id).delete()

    mirror(lambda: is_liked(user_id, photo_id, owner_id), write, liked)
