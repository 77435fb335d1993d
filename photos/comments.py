"""Comments, in the photo's shard."""

from collections.abc import Callable, Iterable
from itertools import islice

from django.conf import settings
from django.db.models import F

from accounts.errors import InvalidParameters, NotAllowed, NotFound
from accounts.paging import full_page
from accounts.visibility import known
from photos.models import Comment, Photo, Status
from photos.services import get
from shardmap import replicas
from shardmap.ids import MAX_ID, shard_of_id
from shardmap.scatter import scatter
from shardmap.shards import on_shard, shard_transaction
from workers.outbox import enqueue, enqueue_in_case, enqueue_many

LONGEST_COMMENT = 300
COMMENTS_A_JOB = 100  # of a deleted user: a second or two of work
BURIED_A_JOB = 1000  # of a deleted photo

FIELDS = ("id", "user_id", "text")

Ref = tuple[int, int | None]  # photo, and its owner as far as known


def comment(user_id: int, ref: Ref, text: str) -> dict:
    """Adds a comment: {id, user_id, text}. Raises InvalidParameters, and as `services.get`."""
    text = text.strip()
    if not 1 <= len(text) <= LONGEST_COMMENT:
        raise InvalidParameters(f"text: must have 1 to {LONGEST_COMMENT} characters")
    photo = get(user_id, *ref)
    with shard_transaction(photo["owner_id"]):
        if not Photo.objects.filter(id=photo["id"], status=Status.READY).update(comments=F("comments") + 1):
            raise NotFound(f"there is no media {photo['id']}")
        added = Comment.objects.create(photo_id=photo["id"], user_id=user_id, text=text)
        refresh_now = _changed(photo, added)
    refresh_now()
    return {"id": added.id, "user_id": user_id, "text": text}


def delete_comment(user_id: int, ref: Ref, comment_id: int) -> None:
    """Removes a comment; its author and the photo's owner may. Raises NotFound, NotAllowed, and as `services.get`."""
    photo = get(user_id, *ref)
    with on_shard(photo["owner_id"]):
        said = Comment.objects.filter(id=comment_id, photo_id=photo["id"]).first()
    if said is None:
        raise NotFound(f"there is no comment {comment_id} on media {photo['id']}")
    if user_id not in (said.user_id, photo["owner_id"]):
        raise NotAllowed("only its author and the owner of the photo may delete a comment")
    _remove(photo, said)


def delete_some_of(user_id: int) -> bool:
    """Removes some of the comments of a deleted user, in all shards; returns whether there were any left."""
    comments = f"""
        SELECT comment.id, comment.text, photo.id, photo.owner_id
        FROM "logical"."photos_comment" AS comment JOIN "logical"."photos_photo" AS photo ON photo.id = comment.photo_id
        WHERE comment.user_id = %s LIMIT {COMMENTS_A_JOB}
    """
    everywhere = {shard: [user_id] for shard in range(settings.LOGICAL_SHARDS)}
    rows = list(islice(scatter(comments, everywhere), COMMENTS_A_JOB))
    for comment_id, text, photo_id, owner_id in rows:
        said = Comment(id=comment_id, photo_id=photo_id, user_id=user_id, text=text)
        _remove({"id": photo_id, "owner_id": owner_id}, said)
    return bool(rows)


def bury_some_of(owner_id: int, photo_id: int) -> bool:
    """Removes some of the comments on a deleted photo; returns whether there may be more."""
    with shard_transaction(owner_id):
        comments = Comment.objects.filter(photo_id=photo_id)
        rows = list(comments.values_list("id", "user_id", "text")[:BURIED_A_JOB])
        comments.filter(id__in=[comment_id for comment_id, _, _ in rows]).delete()
        # The owner's activity is cleared as a whole; that of others has only what mentions them.
        mentions = [dict(zip(("comment_id", "user_id", "text"), row, strict=True)) for row in rows if "@" in row[2]]
        enqueue_many("feeds.said", [{"owner_id": owner_id, "photo_id": photo_id, **said} for said in mentions])
    return len(rows) == BURIED_A_JOB


def _remove(photo: dict, said: Comment) -> None:
    with shard_transaction(photo["owner_id"]):
        if not Comment.objects.filter(id=said.id).delete()[0]:
            return
        Photo.objects.filter(id=photo["id"]).update(comments=F("comments") - 1)
        refresh_now = _changed(photo, said)
    refresh_now()


def _changed(photo: dict, said: Comment) -> Callable[[], None]:
    """What a comment's coming or going brings about, but for what is returned: that is to be called after the commit.

    The owner's own may have tags.
    """
    if said.user_id == photo["owner_id"] and "#" in said.text:
        enqueue("photos.tag", owner_id=photo["owner_id"], photo_id=photo["id"])
    said_where = {"owner_id": photo["owner_id"], "photo_id": photo["id"], "comment_id": said.id}
    enqueue("feeds.said", user_id=said.user_id, text=said.text, **said_where)
    return enqueue_in_case("photos.refresh", photo_id=photo["id"])


def text_of(owner_id: int, photo_id: int, comment_id: int) -> str | None:
    """What a comment says, from the shard; None if it is gone."""
    with on_shard(owner_id):
        return Comment.objects.filter(id=comment_id, photo_id=photo_id).values_list("text", flat=True).first()


def comments_by_id(comment_ids: Iterable[int]) -> dict[int, dict]:
    """Comments, {id, user_id, text}, one query a database; those that are gone are left out."""
    by_shard: dict[int, list[int]] = {}
    for comment_id in comment_ids:
        by_shard.setdefault(shard_of_id(comment_id), []).append(comment_id)
    sql = 'SELECT id, user_id, text FROM "logical"."photos_comment" WHERE id = ANY(%s)'
    rows = scatter(sql, {shard: [ids] for shard, ids in by_shard.items()})
    return {row[0]: dict(zip(FIELDS, row, strict=True)) for row in rows}


def comments_on(viewer_id: int | None, ref: Ref, cursor: int, count: int) -> tuple[list[dict], dict, int | None]:
    """The latest comments, oldest of them first; their authors (kind USERS); the cursor of the page before them.

    Those of people of whom the viewer may not know are left out. Raises as `services.get`.
    """
    photo, authors = get(viewer_id, *ref), {}

    def rows_below(position: int, count: int) -> list[tuple]:
        with on_shard(photo["owner_id"]):
            comments = Comment.objects.filter(photo_id=photo["id"], id__lt=position).order_by("-id")
            wanted = comments.values_list("id", "user_id", "text", "id")[:count]
            return replicas.read(wanted, viewer_id, first=position == MAX_ID)

    def seen(rows: list[tuple]) -> dict[int, dict]:
        authors.update(known(viewer_id, [row[1] for row in rows]))
        return {row[0]: dict(zip(FIELDS, row, strict=False)) for row in rows if row[1] in authors}

    page, _, last = full_page(rows_below, seen, cursor, count)
    return page[::-1], authors, last
