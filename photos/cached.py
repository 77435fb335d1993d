"""What Memcached holds about photos, and how each kind of it is read from the shards."""

from photos.models import Liked, Location, Status
from shardmap import cache
from shardmap.ids import shard_of_id
from shardmap.scatter import scatter
from shardmap.shards import on_shard

LIKERS_SHOWN = 4  # beside a photo, as Instagram did
COMMENTS_SHOWN = 8

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


def liked_id(user_id: int, photo_id: int) -> str:
    """How LIKED names a pair."""
    return f"{user_id}:{photo_id}"


def _load_liked(pairs: list[str]) -> dict[str, bool]:
    photos_of: dict[int, list[int]] = {}
    for pair in pairs:
        user_id, photo_id = map(int, pair.split(":"))
        photos_of.setdefault(user_id, []).append(photo_id)
    liked = dict.fromkeys(pairs, False)
    for user_id, photo_ids in photos_of.items():
        with on_shard(user_id):
            found = Liked.objects.filter(user_id=user_id, photo_id__in=photo_ids)
            liked |= {liked_id(user_id, photo_id): True for photo_id in found.values_list("photo_id", flat=True)}
    return liked


MEDIA = cache.Kind("media", _load_media, SELECT_MEDIA)  # a photo's row, its latest likers and comments
LIKED = cache.Kind("liked", _load_liked, "bool")  # whether a user likes a photo
LOCATIONS = cache.Kind("location", _load_locations, "id name latitude longitude")
