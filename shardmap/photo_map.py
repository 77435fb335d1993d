"""The photo→user map: who owns a photo of which only the ID is known.

Redis hashes, each the photos of one logical shard in one window of time. Nothing is stored twice: shard and window
are in the key, the field is what remains of the ID, and the value is the user's number within the shard, a small
integer. Small hashes are listpacks in Redis (hash-max-listpack-entries 2048, in deploy/redis), in which a whole number
takes fewer bytes than text does. So the field is a number wherever it can be: an ID whose sequence is 0, as nearly all
are (shardmap.ids), has only its milliseconds within the window left to tell. `manage.py bench shardmap` measures the
bytes an entry.

    ID:  | ms: window 15 bits | ms: rest 26 bits | shard 13 bits | sequence 10 bits |
    key  owners:{<shard>}:<bits of the rest>:<window>    value  owner // LOGICAL_SHARDS
    field, sequence 0    <rest> as a decimal number, which Redis keeps in 4 bytes
    field, any other     1 and <rest><sequence>, in 5 bytes that are never the digits of a number

The key says how wide the window is, so that no window is ever taken for another. 2**26 ms are 19 hours. On 4096
shards, a site with 0.6 million photos a day fills a window with 110 entries, one with 10 million a day with 1,900:
neither so few that the key weighs, nor so many that Redis gives up the listpack. (Twice as long saves 0.4 bytes an
entry, but Redis searches twice as many: 15% fewer lookups and 35% fewer writes a second, measured.) A site that comes
near that gets narrower windows from some day on (settings.MAP_WINDOWS); `manage.py shardmap status` says when. A
window that is too full all the same takes 88 bytes an entry, and works as well.

The map is a shortcut, not the truth. A photo that it does not know, or that is asked for while Redis is away, is
looked up in the shard that its ID names. So it may be lost at any time, and comes back entry by entry as photos are
asked for, or at once by `manage.py shardmap rebuild`.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from django.conf import settings
from redis import Redis

from shardmap.ids import MAX_ID, SEQUENCE_BITS, SHARD_BITS, shard_of_id
from shardmap.redis_client import Client, Unavailable, ask, ask_all, nodes, redis_client
from shardmap.shards import shard_of

logger = logging.getLogger(__name__)

PACKED = 2048  # entries that Redis keeps in a listpack (hash-max-listpack-entries in deploy/redis)
LOOSE_BYTES = 78  # more that an entry takes in a hash with more of them (measured)
LOOKED_AT = 1000  # random hashes a node, for a status
FIELD_BYTES = 5
MILLISECONDS_AT = SHARD_BITS + SEQUENCE_BITS
SHARD_MASK = (1 << SHARD_BITS) - 1
SEQUENCE_MASK = (1 << SEQUENCE_BITS) - 1
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


def _addresses(photo_ids: Iterable[int]) -> Iterator[tuple[int, bytes, bytes]]:
    """For each photo its ID, the hash's key, and the field in it. Called for each lookup, hence all in one place."""
    windows = settings.MAP_WINDOWS
    for photo_id in photo_ids:
        milliseconds = photo_id >> MILLISECONDS_AT
        for begin, bits in windows:  # noqa: B007  (it is used below)
            if milliseconds >= begin:
                break
        rest = milliseconds & ((1 << bits) - 1)
        if sequence := photo_id & SEQUENCE_MASK:
            field = (NO_NUMBER | rest << SEQUENCE_BITS | sequence).to_bytes(FIELD_BYTES, "big")
        else:
            field = b"%d" % rest
        # The tag in braces keeps a shard on one node of a Redis Cluster.
        shard = photo_id >> SEQUENCE_BITS & SHARD_MASK
        yield photo_id, b"owners:{%d}:%d:%d" % (shard, bits, milliseconds >> bits), field


def _redis() -> Client:
    return redis_client(settings.REDIS_SHARDMAP_URL)


def _write(owners: Owners) -> None:
    """Raises what the first hash met that could not be written."""
    hashes: dict[bytes, list[bytes]] = {}
    shards = settings.LOGICAL_SHARDS
    for photo_id, key, field in _addresses(owners):
        hashes.setdefault(key, []).extend((field, b"%d" % (owners[photo_id] // shards)))
    ask_all(_redis(), [("HSET", key, *items) for key, items in hashes.items()])


def remember(photo_id: int, owner_id: int) -> None:
    """Notes a photo's owner. While Redis is away nothing is noted, and `owner_of` asks the shard."""
    if shard_of_id(photo_id) != shard_of(owner_id):
        raise ValueError(f"photo {photo_id} was not made in the shard of user {owner_id}")
    _note({photo_id: owner_id})


def owner_of(photo_id: int) -> int | None:
    """The owner's ID, or None when there is no such photo."""
    return owners_of([photo_id]).get(photo_id)


def owners_of(photo_ids: Iterable[int]) -> Owners:
    """The owners of many photos in one round trip to each node; photos that do not exist are left out.

    Those that Redis does not know cost a query for each of their shards, and are noted for the next time. Those of a
    node that is away cost the query too.
    """
    shards = settings.LOGICAL_SHARDS
    wanted = [
        photo_id
        for photo_id in dict.fromkeys(photo_ids)
        if 0 < photo_id <= MAX_ID and photo_id >> SEQUENCE_BITS & SHARD_MASK < shards
    ]
    try:
        replies = ask(_redis(), [("HGET", key, field) for _, key, field in _addresses(wanted)])
    except Unavailable as error:  # no node of a cluster answers
        replies = [error] * len(wanted)
    answers = list(zip(wanted, replies, strict=True))
    owners = {
        photo_id: int(reply) * shards + (photo_id >> SEQUENCE_BITS & SHARD_MASK)
        for photo_id, reply in answers
        if type(reply) is bytes
    }
    if len(owners) == len(wanted):
        return owners
    if unknown := [photo_id for photo_id, reply in answers if reply is None]:
        found = _read_from_shards(unknown)
        _note(found)
        owners |= found
    if errors := {photo_id: reply for photo_id, reply in answers if isinstance(reply, Exception)}:
        logger.warning("photo map: asking the shards for %d photos: %s", len(errors), next(iter(errors.values())))
        owners |= _read_from_shards(list(errors))
    return owners


def forget(photo_id: int) -> None:
    """Takes a photo out of the map. Raises `redis_client.Unavailable`: who deletes must know that it happened."""
    [(_, key, field)] = _addresses([photo_id])
    _redis().hdel(key, field)


def rebuild(progress: Callable[[int, int], None]) -> int:
    """Writes the whole map from the shards, while the site runs; returns the number of photos.

    `progress(shards done, photos so far)` is called after each batch. Raises one of `redis_client.Unavailable`.
    """
    total = 0
    # Redis works on one batch while the next is read from Postgres; never on more, so that memory stays flat.
    with ThreadPoolExecutor(1) as writer:
        writing = writer.submit(_write, {})
        for shard in range(settings.LOGICAL_SHARDS):
            photos = iter(_truth()(shard, None))
            while batch := dict(islice(photos, BATCH)):
                writing.result()
                writing = writer.submit(_write, batch)
                total += len(batch)
                progress(shard, total)
            progress(shard + 1, total)
        writing.result()
    return total


def status() -> dict[str, dict[str, float] | Exception]:
    """What each node says of itself and a random sample of its hashes, or why it says nothing."""
    return {name: _status_of(node) for name, node in nodes(_redis()).items()}


def _status_of(node: Redis) -> dict[str, float] | Exception:
    try:
        memory, hashes = node.info("memory"), node.dbsize()
        keys = set(ask_all(node, [("RANDOMKEY",)] * LOOKED_AT)) - {None}
        lengths = ask_all(node, [("HLEN", key) for key in keys])
        encodings = ask_all(node, [("OBJECT", "ENCODING", key) for key in keys])
    except Unavailable as error:
        return error
    share = hashes / len(keys) if keys else 0  # hashes that one in the sample stands for
    loose = [length for length, encoding in zip(lengths, encodings, strict=True) if encoding != b"listpack"]
    return {
        "hashes": hashes,
        "photos": round(share * sum(lengths)),
        "MB used": memory["used_memory"] / 2**20,
        "MB resident": memory["used_memory_rss"] / 2**20,
        "hashes more than half full": round(share * sum(length > PACKED / 2 for length in lengths)),
        "hashes too full to be packed": round(share * len(loose)),
        "MB that those cost": share * sum(loose) * LOOSE_BYTES / 2**20,
        "photos in the fullest": max(lengths, default=0),
    }


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
