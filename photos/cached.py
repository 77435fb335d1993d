"""What Memcached holds about photos, and how each kind of it is read from the shards."""

from photos.models import Liked, Location, Status
from shardmap import cache
from shardmap.ids import shard_of_id
from shardmap.scatter import scatter
from shardmap.shards import on_shard

LIKERS_SHOWN = 4  # beside a photo, as Instagram did
COMMENTS_SHOWN = 8
LIKED_KEPT = 300  # in the cache, of a user: some 6 kB, and more than are on the pages that most people look at

FIELDS = (
    *("id", "owner_id", "upload_id", "status", "message"),
    *("caption", "filter", "latitude", "longitude", "location_id", "likes", "comments", "tags"),
)

# One statement a database, whatever is shown beside each photo.
SELECT_MEDIA = f"""
    SELECT {", ".join(FIELDS)},
        ARRAY(
            SELECT user_id FROM "logical"."photos_like" AS liked
            WHERE liked.photo_id = photo.id ORDER BY since DESC LIMIT {LIKERS_SHOWN}
        ),
        (
            SELECT json_agg(latest ORDER BY latest.id) FROM (
                SELECT comment.id, comment.user_id, comment.text FROM "logical"."photos_comment" AS comment
                WHERE comment.photo_id = photo.id ORDER BY comment.id DESC LIMIT {COMMENTS_SHOWN}
            ) AS latest
        )
    FROM "logical"."photos_photo" AS photo WHERE photo.id = ANY(%s) AND photo.status <> '{Status.DELETED}'
"""


def _load_media(photo_ids: list[int]) -> dict[int, dict]:
    by_shard: dict[int, list[int]] = {}
    for photo_id in photo_ids:
        by_shard.setdefault(shard_of_id(photo_id), []).append(photo_id)
    media = {}
    for *fields, likers, comments in scatter(SELECT_MEDIA, {shard: [ids] for shard, ids in by_shard.items()}):
        photo = dict(zip(FIELDS, fields, strict=True))
        media[photo["id"]] = photo | {"likers": likers, "latest_comments": comments or []}
    return media


def _load_locations(location_ids: list[int]) -> dict[int, dict]:
    locations = Location.objects.filter(id__in=location_ids)
    return {one["id"]: one for one in locations.values("id", "name", "latitude", "longitude")}


def _load_liked(user_ids: list[int]) -> dict[int, dict]:
    return {user_id: _newest_liked(user_id) for user_id in user_ids}


def _newest_liked(user_id: int) -> dict:
    with on_shard(user_id):
        newest = Liked.objects.filter(user_id=user_id).order_by("-photo_id")
        photo_ids = list(newest.values_list("photo_id", flat=True)[:LIKED_KEPT])
    return {"photos": photo_ids, "from": photo_ids[-1] if len(photo_ids) == LIKED_KEPT else 0}


def liked_among(user_id: int, photo_ids: list[int], newest: dict) -> frozenset[int]:
    """Which of some photos a user likes; `newest` is the user's value of kind LIKED."""
    older = [photo_id for photo_id in photo_ids if photo_id < newest["from"]]
    if not older:
        return newest["photos"]
    with on_shard(user_id):
        found = Liked.objects.filter(user_id=user_id, photo_id__in=older)
        return newest["photos"].union(found.values_list("photo_id", flat=True))


class CachedPhoto(dict):
    """A photo's row, its latest likers and comments; and what photos/schemas.py has made of them, as `rendering`."""

    __slots__ = ("rendering",)


MEDIA = cache.Kind("media", _load_media, SELECT_MEDIA, CachedPhoto)
# Those of the photos that a user likes which were published last, and from which photo on that is all of them.
LIKED = cache.Kind("liked", _load_liked, "photos from", lambda value: value | {"photos": frozenset(value["photos"])})
LOCATIONS = cache.Kind("location", _load_locations, "id name latitude longitude")
