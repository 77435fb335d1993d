"""A photo's way: `create_upload`, `publish`, `process`; and `delete`. See docs/photos.md.

phone                     app server                         worker
─ POST media/uploads ───▶ create_upload: a presigned form
─ the photo ────────────▶ S3
─ POST media ───────────▶ publish: row + job in the outbox ─▶ process: renditions into S3, status "ready"
◀──────────── the media, "processing" for its owner alone     └─▶ the job feeds.fan_out
"""

import heapq
import secrets
from collections.abc import Iterable, Iterator

from django.db import IntegrityError, connections
from django.db.models import F, QuerySet

from accounts.cached import COUNTS, USERS
from accounts.counts import add_to_counts
from accounts.errors import InvalidParameters, NotAllowed, NotFound
from accounts.visibility import Sight, sight_of
from photos import places, sharing, storage
from photos.cached import MEDIA
from photos.imaging import MAX_BYTES, NotAPicture, render
from photos.models import Avatar, Photo, Status
from shardmap import cache, photo_map, replicas
from shardmap.ids import MAX_ID, shard_of_id
from shardmap.scatter import shards_by_database
from shardmap.shards import on_logical_shard, on_shard, schema_name, shard_of, shard_transaction
from workers.outbox import enqueue

CONTENT_TYPES = ("image/jpeg", "image/png", "image/webp", "image/heic", "image/heif")
OWNERS_A_QUERY = 5000
MAX_DECODES = 3
NEWEST_PHOTOS = "SELECT photo, owner FROM public.newest_photos(%s, %s, %s, %s) ORDER BY photo DESC LIMIT %s"
PHOTOS_A_JOB = 100  # of a deleted user: a second or two of work


def create_upload(owner_id: int, content_type: str) -> dict:
    """A form by which the owner's phone uploads one photo to S3: {upload_id, url, fields}."""
    if content_type not in CONTENT_TYPES:
        raise InvalidParameters(f"content_type: {content_type!r} is none of {', '.join(CONTENT_TYPES)}")
    upload_id = secrets.token_hex(16)
    url, fields = storage.presign(owner_id, upload_id, content_type)
    return {"upload_id": upload_id, "url": url, "fields": fields}


def publish(
    owner_id: int,
    upload_id: str,
    caption: str = "",
    filter: str = "Normal",
    latitude: float | None = None,
    longitude: float | None = None,
    location_id: int | None = None,
    location_name: str | None = None,
    foursquare_v2_id: str | None = None,
    share_to: Iterable[str] = (),
) -> dict:
    """Makes a photo of an upload; returns its value of kind MEDIA. Doing it again returns the same photo.

    Raises InvalidParameters when nothing, or too much, was uploaded under this ID by this owner, or when no account is
    linked at a service to share it to; NotFound when there is no such location.
    """
    if (latitude is None) != (longitude is None):
        raise InvalidParameters("latitude: give both latitude and longitude, or neither")
    if not is_uploaded(owner_id, upload_id):
        # A phone that lost our first answer asks again, perhaps after the upload was processed and removed.
        if (published := _published(owner_id, upload_id)) is None:
            raise nothing_uploaded(upload_id)
        return _media(published)
    if share_to:
        sharing.require_linked(owner_id, share_to)
    if location_id is not None:
        there = places.get_location(location_id)
        if latitude is None:
            latitude, longitude = there["latitude"], there["longitude"]
    elif location_name is not None:
        location_id = places.find_or_make(location_name, latitude, longitude, foursquare_v2_id)
    try:
        with shard_transaction(owner_id):
            photo = Photo.objects.create(
                owner_id=owner_id,
                upload_id=upload_id,
                caption=caption,
                filter=filter,
                latitude=latitude,
                longitude=longitude,
                location_id=location_id,
            )
            sharing.wish(photo.id, share_to)
            enqueue("photos.process", owner_id=owner_id, photo_id=photo.id)
    except IntegrityError:
        # Published already; or at this instant, on another app server.
        if (published := _published(owner_id, upload_id)) is None:
            raise
        return _media(published)
    photo_map.remember(photo.id, owner_id)
    return _media(photo.id)


def is_uploaded(owner_id: int, upload_id: str) -> bool:
    """Whether there is this upload of this owner. Raises InvalidParameters if it is too large, or no ID."""
    if not storage.UPLOAD_ID.fullmatch(upload_id):
        raise InvalidParameters(f"upload_id: {upload_id!r} is not an upload_id")
    size = storage.upload_size(owner_id, upload_id)
    if size is not None and size > MAX_BYTES:
        raise InvalidParameters(f"upload_id: the photo has {size} bytes; {MAX_BYTES} are the most allowed")
    return size is not None


def nothing_uploaded(upload_id: str) -> InvalidParameters:
    return InvalidParameters(f"upload_id: you have no upload {upload_id!r}; upload the photo first")


def process(owner_id: int, photo_id: int) -> None:
    """Turns the upload into renditions and the photo's status to "ready", or to "rejected" if it is no picture."""
    with on_shard(owner_id):
        photo = Photo.objects.get(id=photo_id)
    if photo.status == Status.PROCESSING:
        try:
            with on_shard(owner_id):
                renditions = render_upload(owner_id, photo.upload_id, Photo.objects.filter(id=photo_id))
        except NotAPicture as error:
            _leave_processing(photo, Status.REJECTED, message=str(error)[:300])
        else:
            storage.put_renditions(photo.upload_id, renditions)
            _leave_processing(photo, Status.READY)
    cache.forget_surely(MEDIA.key(photo_id), COUNTS.key(owner_id), *replicas.keys_of_writers(owner_id))
    if photo.status == Status.DELETED:
        storage.delete_renditions(photo.upload_id)  # photos.bury may have come before they were written
    drop_upload(owner_id, photo.upload_id)


def render_upload(owner_id: int, upload_id: str, row: QuerySet) -> dict[str, bytes]:
    """The renditions of an upload. Raises NotAPicture, also if the upload took its workers down before.

    `row` is where that is counted, as `decodes`.
    """
    original = storage.read_upload(owner_id, upload_id)
    if original is None:
        raise NotAPicture("The upload is no longer there. Please upload the photo again.")
    if not row.filter(decodes__lt=MAX_DECODES).update(decodes=F("decodes") + 1):
        raise NotAPicture("This picture takes too long, or too much memory, to be decoded.")
    renditions = render(original)
    row.update(decodes=0)  # what fails from here on is no fault of the picture
    return renditions


def drop_upload(owner_id: int, upload_id: str) -> None:
    """Removes an upload, unless a photo or an avatar is still to be made of it: then that will remove it."""
    with on_shard(owner_id):
        photos = Photo.objects.filter(owner_id=owner_id, upload_id=upload_id, status=Status.PROCESSING)
        if photos.exists():
            return
    avatars = Avatar.objects.filter(user_id=owner_id, upload_id=upload_id, status=Status.PROCESSING)
    if not avatars.exists():
        storage.delete_upload(owner_id, upload_id)


def _leave_processing(photo: Photo, status: Status, message: str = "") -> None:
    """Ends the processing of a photo, unless something else has ended it."""
    with shard_transaction(photo.owner_id):
        still_processing = Photo.objects.filter(id=photo.id, status=Status.PROCESSING)
        ended = still_processing.update(status=status, message=message)
        photo.refresh_from_db()  # the caption may have been edited meanwhile, the photo deleted
        if ended and status == Status.READY:
            add_to_counts(photo.owner_id, media=+1)
            enqueue("feeds.fan_out", owner_id=photo.owner_id, photo_id=photo.id)
            enqueue("notifications.published", owner_id=photo.owner_id, photo_id=photo.id)
            if photo.latitude is not None:
                enqueue("photos.place", owner_id=photo.owner_id, photo_id=photo.id)
            if "#" in photo.caption:
                enqueue("photos.tag", owner_id=photo.owner_id, photo_id=photo.id)
            _tell_mentioned(photo, photo.caption)
        if ended:
            sharing.begin(photo)


def _tell_mentioned(photo: Photo, text: str) -> None:
    """Writes the job that looks whom the caption mentions; `text` is what it says now, and what it said before."""
    if "@" in text:
        said = {"owner_id": photo.owner_id, "photo_id": photo.id, "comment_id": 0}
        enqueue("feeds.said", user_id=photo.owner_id, text=text, **said)


def edit_caption(viewer_id: int, photo_id: int, owner_id: int | None, caption: str) -> dict:
    """Changes a photo's caption; returns its value of kind MEDIA. Raises NotFound, NotAllowed."""
    if get(viewer_id, photo_id, owner_id)["owner_id"] != viewer_id:
        raise NotAllowed("only its owner may edit a photo")
    with shard_transaction(viewer_id):
        photo = Photo.objects.select_for_update().filter(id=photo_id).exclude(status=Status.DELETED).first()
        if photo is None:
            raise NotFound(f"there is no media {photo_id}")
        Photo.objects.filter(id=photo_id).update(caption=caption)
        enqueue("photos.tag", owner_id=viewer_id, photo_id=photo_id)
        _tell_mentioned(photo, f"{photo.caption}\n{caption}")
    cache.forget(MEDIA.key(photo_id))
    return _media(photo_id)


def delete(viewer_id: int, photo_id: int, owner_id: int | None = None) -> None:
    """Takes a photo off the site at once; the job photos.bury removes its bytes. Raises NotFound, NotAllowed."""
    photo = get(viewer_id, photo_id, owner_id)
    if photo["owner_id"] != viewer_id:
        raise NotAllowed("only its owner may delete a photo")
    _take_off(viewer_id, photo_id)


def delete_some_of(owner_id: int) -> bool:
    """Takes off some of the photos of a deleted user; returns whether there were any left."""
    with on_shard(owner_id):
        left = Photo.objects.filter(owner_id=owner_id).exclude(status=Status.DELETED)
        photo_ids = list(left.values_list("id", flat=True)[:PHOTOS_A_JOB])
    for photo_id in photo_ids:
        _take_off(owner_id, photo_id)
    return bool(photo_ids)


def _take_off(owner_id: int, photo_id: int) -> None:
    with shard_transaction(owner_id):
        locked = Photo.objects.select_for_update().get(id=photo_id)
        if locked.status == Status.READY:
            add_to_counts(owner_id, media=-1)
        if locked.status != Status.DELETED:
            _tell_mentioned(locked, locked.caption)
            locked.status, locked.message, locked.caption = Status.DELETED, "", ""
            locked.latitude = locked.longitude = locked.location_id = None
            locked.save(update_fields=["status", "message", "caption", "latitude", "longitude", "location_id"])
            enqueue("photos.bury", owner_id=owner_id, photo_id=photo_id, upload_id=locked.upload_id)
            enqueue("feeds.remove_photo", owner_id=owner_id, photo_id=photo_id)
            enqueue("photos.tag", owner_id=owner_id, photo_id=photo_id)
            enqueue("photos.place", owner_id=owner_id, photo_id=photo_id)
    cache.forget(MEDIA.key(photo_id), COUNTS.key(owner_id))


def bury(owner_id: int, photo_id: int, upload_id: str) -> None:
    """Removes a deleted photo's bytes, and its entry in the map."""
    drop_upload(owner_id, upload_id)
    storage.delete_renditions(upload_id)
    photo_map.forget(photo_id)
    cache.forget_surely(MEDIA.key(photo_id), COUNTS.key(owner_id))


def get(viewer_id: int | None, photo_id: int, owner_id: int | None = None) -> dict:
    """A photo that the viewer may see, as a value of kind MEDIA.

    `owner_id` is what the caller takes for the owner, if anything; else the photo→user map is asked. Raises NotFound
    (also for what only its owner may see yet) and NotAllowed (a block, or a private account).
    """
    owner_id = owner_id if owner_id is not None else photo_map.owner_of(photo_id)
    not_found = NotFound(f"there is no media {photo_id}")
    if owner_id is None or not 0 < photo_id <= MAX_ID or shard_of(owner_id) != shard_of_id(photo_id):
        raise not_found
    media, users, *sight = cache.fetch((MEDIA, [photo_id]), (USERS, [owner_id]), *sight_of(viewer_id))
    photo = media.get(photo_id)
    if photo is None or photo["owner_id"] != owner_id or owner_id not in users:
        raise not_found
    if photo["status"] != Status.READY and viewer_id != owner_id:
        raise not_found
    Sight.of(viewer_id, *sight).require_seen(users[owner_id])
    return photo


def recent_of(
    viewer_id: int | None, owner_id: int, below: int, above: int, count: int
) -> tuple[list[dict], int | None]:
    """A user's newest photos with IDs between `above` and `below`, as values of kind MEDIA; and the page's last ID.

    The ID is None when there are no more. Raises as `get`.
    """
    found, *sight = cache.fetch((USERS, [owner_id]), *sight_of(viewer_id))
    if owner_id not in found:
        raise NotFound(f"there is no user {owner_id}")
    Sight.of(viewer_id, *sight).require_seen(found[owner_id])
    with on_shard(owner_id):
        photos = Photo.objects.filter(owner_id=owner_id, status=Status.READY, id__gt=above, id__lt=below)
        # One more than asked for tells whether there is a next page.
        wanted = photos.order_by("-id").values_list("id", flat=True)[: count + 1]
        ids = replicas.read(wanted, viewer_id, first=below == MAX_ID)
    page = ids[:count]
    (media,) = cache.fetch((MEDIA, page))
    photos = [media[photo_id] for photo_id in page if photo_id in media]
    return photos, page[-1] if len(ids) > count else None


def is_ready(owner_id: int, photo_id: int) -> bool:
    """Whether a photo may be shown, from the shard."""
    with on_shard(owner_id):
        return Photo.objects.filter(id=photo_id, status=Status.READY).exists()


def is_first(owner_id: int, photo_id: int) -> bool:
    """Whether a photo is its owner's first. One that was deleted was a photo, too; one that was no picture was none."""
    with on_shard(owner_id):
        earlier = Photo.objects.filter(owner_id=owner_id, id__lt=photo_id)
        return not earlier.exclude(status=Status.REJECTED).exists()


def caption_of(owner_id: int, photo_id: int) -> str | None:
    """What a photo's caption says, from the shard; None unless the photo may be shown."""
    with on_shard(owner_id):
        ready = Photo.objects.filter(id=photo_id, status=Status.READY)
        return ready.values_list("caption", flat=True).first()


def newest_of(owner_ids: Iterable[int], max_id: int | None, count: int) -> list[tuple[int, int]]:
    """The newest ready photos older than `max_id` of many owners together: (photo, owner), newest first."""
    owners_of: dict[int, list[int]] = {}
    for owner_id in owner_ids:
        owners_of.setdefault(shard_of(owner_id), []).append(owner_id)
    found: list[tuple[int, int]] = []
    for alias, shards in shards_by_database(owners_of).items():
        schemas = [schema_name(shard) for shard in shards]
        # As texts, since Postgres has no arrays of arrays of different lengths.
        owners = [f"{{{','.join(map(str, owners_of[shard]))}}}" for shard in shards]
        with connections[alias].cursor() as cursor:
            cursor.execute(NEWEST_PHOTOS, [schemas, owners, MAX_ID if max_id is None else max_id, count, count])
            found += cursor.fetchall()
    return heapq.nlargest(count, found)


def owners_in_shard(shard: int, photo_ids: list[int] | None) -> Iterator[tuple[int, int]]:
    """The truth behind the photo→user map: (photo, owner) of these photos, or of all, in order of ID."""
    after = 0
    while True:
        with on_logical_shard(shard):
            photos = Photo.objects.filter(id__gt=after).exclude(status=Status.DELETED).order_by("id")
            if photo_ids is not None:
                photos = photos.filter(id__in=photo_ids)
            rows = list(photos.values_list("id", "owner_id")[:OWNERS_A_QUERY])
        yield from rows
        if len(rows) < OWNERS_A_QUERY:
            return
        after = rows[-1][0]


def _published(owner_id: int, upload_id: str) -> int | None:
    """The ID of the photo that was published of an upload. Raises InvalidParameters if it was deleted since."""
    with on_shard(owner_id):
        photo = Photo.objects.filter(owner_id=owner_id, upload_id=upload_id).first()
    if photo is not None and photo.status == Status.DELETED:
        raise InvalidParameters(f"upload_id: the photo of {upload_id!r} was deleted; ask for a new upload")
    return photo and photo.id


def _media(photo_id: int) -> dict:
    (media,) = cache.fetch((MEDIA, [photo_id]))
    if photo_id not in media:  # deleted since
        raise NotFound(f"there is no media {photo_id}")
    return media[photo_id]
