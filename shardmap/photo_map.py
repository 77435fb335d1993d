"""The photo→user map: who owns a photo of which only the ID is known.

Redis hashes, each the photos of one logical shard in one window of time. Nothing is stored twice: shard and window
are in the key, the field is what remains of the ID, and the value is the user's number within the shard, a small
integer. Small hashes are listpacks in Redis (hash-max-listpack-entries 2048, in deploy/redis), in which a whole number
takes fewer bytes than text does. So the field is a number wherever it can be: an ID whose sequence is 0, as nearly all
are (shardmap.ids), has only its milliseconds within the window left to tell. `manage.py bench shardmap` measures the
bytes an entry.

    ID:  | ms: window 14 bits | ms: rest 27 bits | shard 13 bits | sequence 10 bits |
    key  owners:{<shard>}:<window>    value  owner // LOGICAL_SHARDS
    field, sequence 0    <rest> as a decimal number, which Redis keeps in 4 bytes
    field, any other     1 and <rest><sequence>, in 5 bytes that are never the digits of a number

2**27 ms are 37 hours. On 4096 shards, a site with 0.6 million photos a day fills a window with 220 entries, one with
5 million a day with 1,900: neither so few that the key weighs, nor so many that Redis gives up the listpack. A site
that comes near that gets narrower windows from some day on (settings.MAP_WINDOWS); `manage.py shardmap status` says
when. A window that is too full all the same takes 88 bytes an entry, and works as well.

The map is a shortcut, not the truth. A photo that it does not know, or that is asked for while Redis is away, is
looked up in the shard that its ID names. So it may be lost at any time, and comes back entry by entry as photos are
asked for, or at once by `manage.py shardmap rebuild`.
"""

import logging
from collections.abc import Callable, Iterable, Iterator

from django.conf import settings

from shardmap.ids import MAX_ID, SEQUENCE_BITS, milliseconds_of_id, shard_of_id
from shardmap.redis_client import Unavailable, redis_client
from shardmap.shards import shard_of

logger = logging.getLogger(__name__)

PACKED = 2048  # entries that Redis keeps in a listpack (hash-max-listpack-entries in deploy/redis)
LOOKED_AT = 1000  # hashes, for a status
FIELD_BYTES = 5
NO_NUMBER = 1 << (8 * FIELD_BYTES - 1)  # makes the first byte no ASCII character
BATCH = 5000  # entries a round trip in a rebuild

Owners = dict[int, int]  # photo ID → user ID
# (logical shard, photo IDs or None for all of the shard) → (photo ID, owner's ID), …
Source = Callable[[int, list[int] | None], Iterable[tuple[int, int]]]

_source: Source | None = None


def use_source(source: Source) -> None:
    """Says how the truth is read from a shard; called once, by the app that has the photos."""
    global _source
    _source = source


def _address(photo_id: int) -> tuple[str, bytes]:
    """The hash's key, and the field in it."""
    milliseconds = milliseconds_of_id(photo_id)
    bits = next(bits for begin, bits in settings.MAP_WINDOWS if milliseconds >= begin)
    window, rest = milliseconds >> bits, milliseconds & ((1 << bits) - 1)
    sequence = photo_id & ((1 << SEQUENCE_BITS) - 1)
    field = b"%d" % rest
    if sequence:
        field = (NO_NUMBER | rest << SEQUENCE_BITS | sequence).to_bytes(FIELD_BYTES, "big")
    # The tag in braces keeps a shard on one node of a Redis Cluster.
    return f"owners:{{{shard_of_id(photo_id)}}}:{window}", field


def _redis():
    return redis_client(settings.REDIS_SHARDMAP_URL)


def _write(owners: Owners) -> None:
    hashes: dict[str, list[bytes | int]] = {}
    for photo_id, owner_id in owners.items():
        key, field = _address(photo_id)
        hashes.setdefault(key, []).extend((field, owner_id // settings.LOGICAL_SHARDS))
    with _redis().pipeline(transaction=False) as pipeline:
        for key, items in hashes.items():
            pipeline.hset(key, items=items)
        pipeline.execute()


def _read(photo_ids: list[int]) -> Owners:
    with _redis().pipeline(transaction=False) as pipeline:
        for photo_id in photo_ids:
            pipeline.hget(*_address(photo_id))
        values = pipeline.execute()
    return {
        photo_id: int(value) * settings.LOGICAL_SHARDS + shard_of_id(photo_id)
        for photo_id, value in zip(photo_ids, values, strict=True)
        if value is not None
    }


def remember(photo_id: int, owner_id: int) -> None:
    """Notes a photo's owner. While Redis is away nothing is noted, and `owner_of` asks the shard."""
    if shard_of_id(photo_id) != shard_of(owner_id):
        raise ValueError(f"photo {photo_id} was not made in the shard of user {owner_id}")
    _note({photo_id: owner_id})


def owner_of(photo_id: int) -> int | None:
    """The owner's ID, or None when there is no such photo."""
    return owners_of([photo_id]).get(photo_id)


def owners_of(photo_ids: Iterable[int]) -> Owners:
    """The owners of many photos in one round trip to Redis; photos that do not exist are left out.

    Those that Redis does not know cost a query for each of their shards, and are noted for the next time.
    """
    wanted = [
        photo_id
        for photo_id in dict.fromkeys(photo_ids)
        if 0 < photo_id <= MAX_ID and shard_of_id(photo_id) < settings.LOGICAL_SHARDS
    ]
    try:
        owners = _read(wanted)
    except Unavailable as error:
        logger.warning("photo map: asking the shards: %s", error)
        return _read_from_shards(wanted)
    if unknown := [photo_id for photo_id in wanted if photo_id not in owners]:
        found = _read_from_shards(unknown)
        _note(found)
        owners |= found
    return owners


def forget(photo_id: int) -> None:
    """Takes a photo out of the map. Raises `redis_client.Unavailable`: who deletes must know that it happened."""
    key, field = _address(photo_id)
    _redis().hdel(key, field)


def rebuild(progress: Callable[[int, int], None]) -> int:
    """Writes the whole map from the shards, while the site runs; returns the number of photos.

    `progress(shards done, photos so far)` is called after each batch. Raises `redis_client.Unavailable`.
    """
    total = 0
    for shard in range(settings.LOGICAL_SHARDS):
        for batch in _batches(_truth()(shard, None)):
            _write(dict(batch))
            total += len(batch)
            progress(shard, total)
        progress(shard + 1, total)
    return total


def status() -> dict[str, int | float]:
    """What Redis says of the map, and what a random sample of its hashes does. Raises `redis_client.Unavailable`."""
    redis = _redis()
    memory, hashes = redis.info("memory"), redis.dbsize()
    with redis.pipeline(transaction=False) as pipeline:
        for _ in range(min(LOOKED_AT, hashes)):
            pipeline.randomkey()
        keys = set(pipeline.execute())
        for key in keys:
            pipeline.hlen(key)
            pipeline.object("encoding", key)
        answers = pipeline.execute()
    lengths, encodings = answers[::2], answers[1::2]
    photos = round(hashes * sum(lengths) / len(keys)) if keys else 0
    return {
        "hashes": hashes,
        "photos, about": photos,
        "MB used": round(memory["used_memory"] / 2**20, 1),
        "MB resident": round(memory["used_memory_rss"] / 2**20, 1),
        "bytes a photo": round(memory["used_memory"] / photos, 1) if photos else 0,
        "hashes looked at": len(keys),
        "entries in the fullest": max(lengths, default=0),
        "entries that are packed": PACKED,
        "not packed": sum(encoding != b"listpack" for encoding in encodings),
    }


def _batches(pairs: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    batch = []
    for pair in pairs:
        batch.append(pair)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _note(owners: Owners) -> None:
    try:
        _write(owners)
    except Unavailable as error:
        logger.warning("photo map: %d photos are not noted: %s", len(owners), error)


def _read_from_shards(photo_ids: list[int]) -> Owners:
    by_shard: dict[int, list[int]] = {}
    for photo_id in photo_ids:
        by_shard.setdefault(shard_of_id(photo_id), []).append(photo_id)
    return {photo_id: owner_id for shard, ids in by_shard.items() for photo_id, owner_id in _truth()(shard, ids)}


def _truth() -> Source:
    if _source is None:
        raise RuntimeError("photo map: no source is set; the app with the photos calls use_source()")
    return _source
