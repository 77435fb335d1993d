"""The activity feed: who liked, commented, mentioned, followed, or asked to follow. See docs/feeds.md.

Rows are in the recipient's shard, made and removed by jobs that look at what is true now (a like, a comment, an edge),
so that they may come twice and in any order. What is shown is decided at the read, as in the home feed. Redis has a
copy of each reader's newest rows, and when they were read last.

A new row brings the job `notifications.tell` with it: it may be worth a push.
"""

import json
import logging
import time
from functools import partial
from typing import NamedTuple

from django.conf import settings
from redis import WatchError

from accounts import graph
from accounts.cached import EDGES, USERS
from accounts.models import Edge
from accounts.visibility import Sight, sight_of
from feeds.models import Activity, Kind
from photos import comments, likes
from photos.cached import MEDIA
from photos.mentions import mentioned_in
from photos.services import caption_of
from photos.visible import seen
from shardmap import cache
from shardmap.batches import delete_all
from shardmap.ids import MAX_ID, first_id_at
from shardmap.redis_client import Unavailable, ask_all, redis_client
from shardmap.rows import execute, insert_if_absent
from shardmap.shards import current_database, on_shard, shard_transaction
from workers.mirror import mirror
from workers.outbox import NOT_ON_DISK_YET, do_held, enqueue, insert_for_each
from workers.registry import all_jobs

logger = logging.getLogger(__name__)

ROWS = 1000  # that one page is made of at most, however many likes are grouped in it
COPY_SECONDS = 7 * 24 * 3600
READ_SECONDS = 30 * 24 * 3600  # Redis knows for so long when a user read the activity
UNREAD_SECONDS = 24 * 3600  # what is older counts as read, if Redis does not know
MOST_UNREAD = 99
ACTORS_SHOWN = 4  # of a group
TAGS = 64  # copies are spread over so many hash tags, so over as many nodes of a Redis Cluster
FIELDS = ("id", "kind", "actor_id", "photo_id", "owner_id", "comment_id")
ONE = f"""
    SELECT {", ".join(FIELDS)}, (
        SELECT count(*) FROM (
            SELECT FROM "logical"."feeds_activity"
            WHERE recipient_id = one.recipient_id AND id > %s LIMIT {MOST_UNREAD}
        ) AS unread
    ) FROM "logical"."feeds_activity" AS one WHERE id = %s AND recipient_id = %s
"""
# Of a new row, its ID and that of its job. It need not wait for the disk: the job that is at it has its own row in the
# same database, and a crash that loses this loses the end of that, too.
LIKED = f"""
    WITH new AS (
        INSERT INTO "logical"."feeds_activity" (recipient_id, kind, actor_id, photo_id, owner_id, comment_id)
        SELECT %(owner_id)s, '{Kind.LIKE}', %(actor_id)s, %(photo_id)s, %(owner_id)s, 0 WHERE {NOT_ON_DISK_YET}
        ON CONFLICT DO NOTHING RETURNING id
    ), job AS ({
    insert_for_each(
        "new",
        "notifications.tell",
        "jsonb_build_object('user_id', %(owner_id)s, 'activity_id', id)",
        is_held=True,
    )
}) SELECT new.id, job.id FROM new, job
"""
NO_PHOTO = {"photo_id": 0, "owner_id": 0, "comment_id": 0}
IN_EDGES = {Kind.FOLLOW: "follows", Kind.REQUEST: "requested"}


class Row(NamedTuple):
    id: int
    kind: Kind
    actor_id: int
    photo_id: int
    owner_id: int
    comment_id: int


class Group(NamedTuple):
    """Likes on one photo, latest first; or one row of another kind."""

    newest: Row
    actors: list[int]


def set_like(user_id: int, owner_id: int, photo_id: int, is_liked: bool) -> None:
    """Tells a photo's owner of a like, or takes that back.

    The push is sent at once, by the job that is at it: likes are most of what happens, and a job less for each counts.
    """
    if user_id == owner_id:
        return
    if not is_liked:
        _set(owner_id, False, kind=Kind.LIKE, actor_id=user_id, photo_id=photo_id, owner_id=owner_id)
        return
    with on_shard(owner_id):
        database = current_database()
        told = execute(LIKED, {"actor_id": user_id, "photo_id": photo_id, "owner_id": owner_id}, database)
    _forget_copy(owner_id)
    for activity_id, row_id in told:
        do_held(database, row_id, partial(all_jobs()["notifications.tell"], user_id=owner_id, activity_id=activity_id))


def said(user_id: int, owner_id: int, photo_id: int, comment_id: int, text: str) -> None:
    """Tells of a comment, or of a caption (`comment_id` 0), whom it concerns; as a job.

    `text` is what it said when the job was written, so that those can be found whom it no longer mentions.
    """

    def read() -> str | None:
        return comments.text_of(owner_id, photo_id, comment_id) if comment_id else caption_of(owner_id, photo_id)

    def concerned(said: str | None) -> dict[int, Kind]:
        if said is None:
            return {}
        kinds = dict.fromkeys(mentioned_in(said), Kind.MENTION)
        if comment_id:
            kinds[owner_id] = Kind.COMMENT
        return {recipient_id: kind for recipient_id, kind in kinds.items() if recipient_id != user_id}

    def write(said: str | None) -> None:
        now = concerned(said)
        if now and not comment_id:  # a new photo may be cached as not ready yet: then nobody would be told, ever
            cache.refresh_surely(MEDIA, photo_id)
        for recipient_id, kind in (concerned(text) | now).items():
            what = {"actor_id": user_id, "photo_id": photo_id, "owner_id": owner_id, "comment_id": comment_id}
            _set(recipient_id, recipient_id in now, kind=kind, **what)

    mirror(read, write)


def edge_changed(follower_id: int, followee_id: int) -> None:
    """Tells a followee of a follow, or of a request, or takes that back; as a job."""

    def write(status: Edge) -> None:
        _set(followee_id, status == Edge.FOLLOWS, kind=Kind.FOLLOW, actor_id=follower_id)
        _set(followee_id, status == Edge.REQUESTED, kind=Kind.REQUEST, actor_id=follower_id)

    mirror(lambda: graph.status_seen_by_followee(follower_id, followee_id), write)


def forget_photo(owner_id: int, photo_id: int) -> None:
    """Takes a deleted photo out of its owner's activity. (In that of others it is no longer shown.)"""
    with on_shard(owner_id):
        delete_all(Activity.objects.filter(recipient_id=owner_id, photo_id=photo_id))
    _forget_copy(owner_id)


def erase(user_id: int) -> None:
    """Removes what a deleted user was told."""
    with on_shard(user_id):
        delete_all(Activity.objects.filter(recipient_id=user_id))
    _forget_copy(user_id)


def read(user_id: int, below: int, count: int) -> tuple[list[dict], int | None]:
    """At most `count` groups of what happened to a user before the ID `below`, and the next page's `below`, if any.

    A group is {id, kind, count, actors (kind USERS, ACTORS_SHOWN at most), photo (kind MEDIA), comment}.
    """
    rows = _newest(user_id) if below == MAX_ID else _from_shard(user_id, below)
    groups, last = _grouped(rows, count)
    return _shown(user_id, groups), last


def happened(user_id: int, activity_id: int) -> dict | None:
    """One row as `read` would show it, as a group of its own; None unless what it tells is still true, and shown.

    Along with what is `unread`: how many rows have come since the user read the activity last, MOST_UNREAD at most.
    Raises redis_client.Unavailable.
    """
    read_at = int(_redis().get(_read_key(user_id)) or first_id_at(time.time() - UNREAD_SECONDS))
    with on_shard(user_id):
        found = execute(ONE, [read_at, activity_id, user_id])
    if not found:
        return None
    *row, unread = found[0]
    row = Row(*row)
    if not _holds(user_id, row):
        return None
    shown = _shown(user_id, [Group(row, [row.actor_id])])
    return shown[0] | {"unread": unread} if shown else None


def _holds(user_id: int, row: Row) -> bool:
    """Whether a row is still true. (Of a comment, or of a caption, `_shown` finds out.)"""
    if row.kind == Kind.LIKE:
        return likes.is_liked(row.actor_id, row.photo_id, row.owner_id)
    if row.kind in IN_EDGES:
        (edges,) = cache.fetch((EDGES, [row.actor_id]))
        return user_id in edges[row.actor_id][IN_EDGES[row.kind]]
    return True


def _shown(user_id: int, groups: list[Group]) -> list[dict]:
    """Those groups that the user may see."""
    people = [actor_id for group in groups for actor_id in group.actors[: 2 * ACTORS_SHOWN]]
    users, *sight = cache.fetch((USERS, people), *sight_of(user_id))
    viewer = Sight.of(user_id, *sight)
    photos = seen(
        user_id, [(group.newest.photo_id, group.newest.owner_id) for group in groups if group.newest.photo_id]
    )
    photo_of = {photo["id"]: photo for photo in photos}
    comment_of = comments.comments_by_id([g.newest.comment_id for g in groups if g.newest.comment_id])
    shown = []
    for group in groups:
        actor_ids = [actor_id for actor_id in group.actors if actor_id not in viewer.hidden]
        actors = [users[actor_id] for actor_id in actor_ids if actor_id in users][:ACTORS_SHOWN]
        photo, comment = photo_of.get(group.newest.photo_id), comment_of.get(group.newest.comment_id)
        gone = (group.newest.photo_id and photo is None) or (group.newest.comment_id and comment is None)
        if actors and not gone:
            what = {"id": group.newest.id, "kind": group.newest.kind, "count": len(actor_ids)}
            shown.append(what | {"actors": actors, "photo": photo, "comment": comment})
    return shown


def _grouped(rows: list[Row], count: int) -> tuple[list[Group], int | None]:
    """Rows, newest first, as at most `count` groups; and the last row's ID, if more may follow it."""
    groups: dict[tuple, Group] = {}
    last = None
    for row in rows:
        key = (row.kind, row.photo_id) if row.kind == Kind.LIKE else (row.id,)
        if key not in groups and len(groups) == count:
            return list(groups.values()), last
        groups.setdefault(key, Group(row, [])).actors.append(row.actor_id)
        last = row.id
    return list(groups.values()), last if len(rows) == ROWS else None


def _set(recipient_id: int, holds: bool, **what) -> None:
    """Brings one row to be there, or not."""
    with shard_transaction(recipient_id):
        if not holds:
            Activity.objects.filter(recipient_id=recipient_id, **what).delete()
        elif activity_id := insert_if_absent(Activity, returning="id", recipient_id=recipient_id, **(NO_PHOTO | what)):
            enqueue("notifications.tell", user_id=recipient_id, activity_id=activity_id)
    _forget_copy(recipient_id)


def _from_shard(user_id: int, below: int) -> list[Row]:
    with on_shard(user_id):
        rows = Activity.objects.filter(recipient_id=user_id, id__lt=below).order_by("-id")
        return [Row(*row) for row in rows.values_list(*FIELDS)[:ROWS]]


def _newest(user_id: int) -> list[Row]:
    """The newest rows: from Redis, where they are copied to if nobody changes them meanwhile.

    They are noted as read.
    """
    key = _key(user_id)
    mark_read = "SET", _read_key(user_id), first_id_at(time.time()), "EX", READ_SECONDS
    try:
        copy, _ = ask_all(_redis(), [("GET", key), mark_read])
        if copy:
            return [Row(*row) for row in json.loads(copy)]
        with _redis().pipeline(transaction=True) as pipeline:
            pipeline.watch(key)
            rows = _from_shard(user_id, MAX_ID)
            pipeline.multi()
            pipeline.set(key, json.dumps(rows, separators=(",", ":")), ex=COPY_SECONDS)
            pipeline.execute()
    except WatchError:
        return rows
    except Unavailable as error:
        logger.warning("the activity of user %s comes from the shard: %s", user_id, error)
        return _from_shard(user_id, MAX_ID)
    return rows


def _forget_copy(user_id: int) -> None:
    """Raises redis_client.Unavailable. An empty value is no copy, but a change, which who fills the key is told of."""
    _redis().set(_key(user_id), b"", ex=1)


def _key(user_id: int) -> str:
    return f"activity:{{{user_id % TAGS}}}:{user_id}"


def _read_key(user_id: int) -> str:
    return f"activity:{{{user_id % TAGS}}}:{user_id}:read"


def _redis():
    return redis_client(settings.REDIS_FEEDS_URL)
