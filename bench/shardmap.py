"""The photo→user map at any size, beside what it replaces; in a scratch database of the map's Redis."""

import random
import time
from collections.abc import Callable, Iterator

from django.conf import settings
from redis import Redis

from shardmap import photo_map
from shardmap.ids import SEQUENCE_BITS, SHARD_BITS

# A production shard: 14 million users and 300 million photos on 4096 shards, over some 500 days.
SHARDS = 4096
USERS_A_SHARD = 3_400
PHOTOS_A_WINDOW = 110
OTHERS = 500_000  # entries of what is compared: enough to tell bytes by
ROUNDS, LOOKUPS, PHOTOS_A_LOOKUP = 5, 1_000, 20  # the best round counts: others may be on the machine
LOOKED_UP = 200_000  # entries to choose from, of all hashes
SCRATCH_DATABASE = 15
NOW_MS = 15 * 365 * 24 * 3600 * 1000

Owners = dict[int, int]


def run(n: int = 1_000_000) -> dict[str, float]:
    url, shards = settings.REDIS_SHARDMAP_URL, settings.LOGICAL_SHARDS
    settings.LOGICAL_SHARDS = SHARDS
    settings.REDIS_SHARDMAP_URL = f"{url.rpartition('/')[0]}/{SCRATCH_DATABASE}"
    redis = Redis.from_url(
        settings.REDIS_SHARDMAP_URL, socket_timeout=60
    )  # emptying it takes longer than the app waits
    try:
        used, resident, seconds, sample = _measure(redis, n, photo_map._write)
        lookups = _lookups_a_second(sample)
        others = {
            "SET": _measure(redis, OTHERS, _set)[0],
            "the 2011 recipe with our IDs": _measure(redis, OTHERS, _recipe_of_2011)[0],
        }
    finally:
        redis.flushdb()
        settings.REDIS_SHARDMAP_URL, settings.LOGICAL_SHARDS = url, shards
    return {
        "entries": n,
        "bytes an entry": round(used, 2),
        "of resident memory": round(resident, 2),
        "GB for 300 million": round(used * 300e6 / 1e9, 2),
        "GB resident for 300 million": round(resident * 300e6 / 1e9, 2),
        **{f"bytes an entry, {name}": round(size, 1) for name, size in others.items()},
        "writes a second": round(n / seconds),
        f"lookups a second, by {PHOTOS_A_LOOKUP}": round(lookups),
    }


def _measure(redis: Redis, n: int, write: Callable[[Owners], None]) -> tuple[float, float, float, Owners]:
    """Writes n entries: bytes an entry, used and resident; the seconds that it took; and some of the entries."""
    redis.flushdb()
    redis.memory_purge()  # else what was freed just now would be filled first, and resident memory seem not to grow
    before = redis.info("memory")
    seconds, sample = 0.0, {}
    for batch in _batches(n):
        start = time.perf_counter()
        write(batch)
        seconds += time.perf_counter() - start
        some = min(len(batch), LOOKED_UP * len(batch) // n + 1)
        sample |= {photo: batch[photo] for photo in random.sample(list(batch), some)}
    after = redis.info("memory")
    sizes = [(after[name] - before[name]) / n for name in ("used_memory", "used_memory_rss")]
    return *sizes, seconds, sample


def _batches(n: int) -> Iterator[Owners]:
    """n photos of random owners at random times, window by window, with the IDs that next_id() makes."""
    bits = settings.MAP_WINDOWS[-1][1]
    window = NOW_MS >> bits
    batch: Owners = {}
    while n:
        for shard in range(SHARDS):
            count = min(n, round(random.gauss(PHOTOS_A_WINDOW, PHOTOS_A_WINDOW**0.5)))
            for rest in random.sample(range(1 << bits), count):
                # Each millisecond begins with sequence 0 (shardmap/ids.py).
                photo = (window << bits | rest) << (SHARD_BITS + SEQUENCE_BITS) | shard << SEQUENCE_BITS
                batch[photo] = random.randrange(USERS_A_SHARD) * SHARDS + shard
            n -= count
            if len(batch) >= photo_map.BATCH or not n:
                yield batch
                batch = {}
            if not n:
                return
        window -= 1


def _lookups_a_second(sample: Owners) -> float:
    ids = list(sample)
    best = float("inf")
    for _ in range(ROUNDS):
        wanted = [random.sample(ids, PHOTOS_A_LOOKUP) for _ in range(LOOKUPS)]
        start = time.perf_counter()
        answers = [photo_map.owners_of(photos) for photos in wanted]
        best = min(best, time.perf_counter() - start)
        expected = [{photo: sample[photo] for photo in photos} for photos in wanted]
        if answers != expected:
            raise AssertionError("the map does not answer what was written")
    return LOOKUPS * PHOTOS_A_LOOKUP / best


def _set(owners: Owners) -> None:
    with photo_map._redis().pipeline(transaction=False) as pipeline:
        for photo, owner in owners.items():
            pipeline.set(f"media:{photo}", owner)
        pipeline.execute()


def _recipe_of_2011(owners: Owners) -> None:
    """A hash for each thousand IDs (Instagram, "Storing hundreds of millions of simple key-value pairs in Redis")."""
    with photo_map._redis().pipeline(transaction=False) as pipeline:
        for photo, owner in owners.items():
            pipeline.hset(f"mediabucket:{photo // 1000}", photo, owner)
        pipeline.execute()
