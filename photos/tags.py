"""Tags: #words in captions and in the owner's own comments, listed in the shard of each tag's hash."""

import re
from collections.abc import Iterable
from zlib import crc32

from django.conf import settings

from accounts.errors import NotFound
from photos.cached import MEDIA
from photos.models import Comment, Photo, Status, Tag, Tagging, TagName
from photos.visible import Row, page
from shardmap import cache, replicas
from shardmap.ids import MAX_ID
from shardmap.scatter import scatter
from shardmap.shards import logical_shard_transaction, on_logical_shard, on_shard, shard_transaction
from workers.mirror import mirror
from workers.outbox import enqueue

# Letters and digits of any script, and underscore, as Instagram had it; not within a word, as in a URL's a#b.
TAG = re.compile(r"(?<!\w)#(\w+)")
LONGEST_TAG = 100
MOST_TAGS = 30  # of a photo, as on Instagram; the first ones count


def tags_in(text: str) -> tuple[str, ...]:
    """The tags of a text, case folded, each once, in their order: the first MOST_TAGS."""
    names = dict.fromkeys(name for name in map(normal, TAG.findall(text)) if len(name) <= LONGEST_TAG)
    return tuple(names)[:MOST_TAGS]


def normal(name: str) -> str:
    """A tag's name as it is stored, whatever its case."""
    return name.casefold()


def retag(owner_id: int, photo_id: int) -> None:
    """Lists a photo under the tags that it has now, and under no others; a job, in whatever order they come."""

    def write(wanted: set[str]) -> None:
        # Noted before it is listed, so that whoever comes after a crash knows what there may be to take back.
        noted = _note(owner_id, photo_id, add=wanted)
        for name in wanted:
            _list(name, photo_id, owner_id)
        for name in noted - wanted:
            _unlist(name, photo_id)
        _note(owner_id, photo_id, remove=noted - wanted)

    mirror(lambda: _wanted(owner_id, photo_id), write)
    cache.refresh_surely(MEDIA, photo_id, *replicas.keys_of_writers(owner_id))


def get_tag(name: str) -> tuple[str, int]:
    """A tag's name and its number of photos. Raises NotFound."""
    name = normal(name)
    with _on_shard_of(name):
        tag = Tag.objects.filter(name=name).first()
    if tag is None:
        raise NotFound(f"there is no tag {name!r}")
    return tag.name, tag.media_count


def media_of(
    viewer_id: int | None, name: str, below: int, above: int, count: int
) -> tuple[list[dict], int | None, int | None]:
    """The photos under a tag that the viewer may see, latest first, as values of kind MEDIA.

    Between the taggings `above` and `below`; also returned are the first tagging of the page, and the last one, if
    there are more.
    """
    name = normal(name)

    def rows_below(position: int, count: int) -> list[Row]:
        with _on_shard_of(name):
            taggings = Tagging.objects.filter(name=name, since__lt=position, since__gt=above).order_by("-since")
            wanted = taggings.values_list("photo_id", "owner_id", "since")[:count]
            return replicas.read(wanted, viewer_id, first=position == MAX_ID)

    return page(viewer_id, rows_below, below, count)


def search(text: str, count: int) -> list[tuple[str, int]]:
    """Tags that begin with a text, (name, photos): that very tag first, then by number of photos."""
    prefix = normal(text.lstrip("#"))
    if not TAG.fullmatch(f"#{prefix}"):
        return []
    known = TagName.objects.filter(name__startswith=prefix).order_by("-digits", "name")
    by_shard: dict[int, list[str]] = {}
    for name in {prefix, *known.values_list("name", flat=True)[:count]}:
        by_shard.setdefault(shard_of_tag(name), []).append(name)
    rows = scatter(
        'SELECT name, media_count FROM "logical"."photos_tag" WHERE name = ANY(%s) AND media_count > 0',
        {shard: [names] for shard, names in by_shard.items()},
    )
    return sorted(rows, key=lambda row: (row[0] != prefix, -row[1], row[0]))[:count]


def rank(name: str) -> None:
    """Brings what the directory knows of a tag up to the tag, as a job."""

    def read() -> int:
        with _on_shard_of(name):
            return Tag.objects.get(name=name).media_count.bit_length()

    def write(digits: int) -> None:
        if digits:
            TagName.objects.update_or_create(name=name, defaults={"digits": digits})
        else:
            TagName.objects.filter(name=name).delete()

    mirror(read, write)


def _wanted(owner_id: int, photo_id: int) -> set[str]:
    with on_shard(owner_id):
        photo = Photo.objects.get(id=photo_id)
        if photo.status != Status.READY:
            return set()
        own = Comment.objects.filter(photo_id=photo_id, user_id=owner_id, text__contains="#").order_by("id")
        texts = [photo.caption, *own.values_list("text", flat=True)]
    return set(tags_in(" ".join(texts)))


def _note(owner_id: int, photo_id: int, add: Iterable[str] = (), remove: Iterable[str] = ()) -> set[str]:
    """Changes the tags on the photo's row; returns what they are now."""
    with shard_transaction(owner_id):
        photo = Photo.objects.select_for_update().get(id=photo_id)
        tags = set(photo.tags).union(add).difference(remove)
        Photo.objects.filter(id=photo_id).update(tags=sorted(tags))
    return tags


def _list(name: str, photo_id: int, owner_id: int) -> None:
    with logical_shard_transaction(shard_of_tag(name)):
        Tag.objects.get_or_create(name=name)
        # Locked before the tagging gets its place, so that none appears below one that was seen before.
        tag = Tag.objects.select_for_update().get(name=name)
        _, created = Tagging.objects.get_or_create(name=name, photo_id=photo_id, defaults={"owner_id": owner_id})
        if created:
            _count(tag, +1)
            enqueue("notifications.tagged", owner_id=owner_id, photo_id=photo_id, name=name)


def _unlist(name: str, photo_id: int) -> None:
    with logical_shard_transaction(shard_of_tag(name)):
        if Tagging.objects.filter(name=name, photo_id=photo_id).delete()[0]:
            _count(Tag.objects.select_for_update().get(name=name), -1)


def _count(tag: Tag, change: int) -> None:
    """Changes a tag's number of photos; it must be locked."""
    before, tag.media_count = tag.media_count, tag.media_count + change
    tag.save(update_fields=["media_count"])
    if before.bit_length() != tag.media_count.bit_length():
        enqueue("photos.rank_tag", name=tag.name)


def shard_of_tag(name: str) -> int:
    """The logical shard of a tag, by its name as it is stored."""
    return crc32(name.encode()) % settings.LOGICAL_SHARDS


def _on_shard_of(name: str):
    return on_logical_shard(shard_of_tag(name))
