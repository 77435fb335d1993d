"""The photo→user map at a million entries, in a database of its own on the map's Redis."""

import random
import time

from django.conf import settings

from shardmap import photo_map
from shardmap.ids import SEQUENCE_BITS, SHARD_BITS
from shardmap.redis_client import redis_client

ENTRIES = 1_000_000
# A production shard: 14 million users and 300 million photos on 4096 shards, over some 500 days.
USERS_A_SHARD = 3_400
PHOTOS_A_WINDOW = 220
LOOKUPS, PHOTOS_A_LOOKUP = 2_000, 20
SCRATCH_DATABASE = 15


def run() -> dict[str, float]:
    url = settings.REDIS_SHARDMAP_URL
    settings.REDIS_SHARDMAP_URL = f"{url.rpartition('/')[0]}/{SCRATCH_DATABASE}"
    redis = redis_client(settings.REDIS_SHARDMAP_URL)
    redis.flushdb()
    try:
        owners = _owners()
        before = redis.info("memory")["used_memory"]
        ids = list(owners)
        start = time.perf_counter()
        for at in range(0, ENTRIES, photo_map.BATCH):
            photo_map._write({photo: owners[photo] for photo in ids[at : at + photo_map.BATCH]})
        written = time.perf_counter() - start
        size = (redis.info("memory")["used_memory"] - before) / ENTRIES
        start = time.perf_counter()
        for _ in range(LOOKUPS):
            wanted = random.sample(ids, PHOTOS_A_LOOKUP)
            assert photo_map.owners_of(wanted) == {photo: owners[photo] for photo in wanted}
        looked_up = time.perf_counter() - start
    finally:
        redis.flushdb()
        settings.REDIS_SHARDMAP_URL = url
    return {
        "entries": ENTRIES,
        "bytes an entry": round(size, 2),
        "GB for 300 million": round(size * 300e6 / 1e9, 2),
        "writes a second": round(ENTRIES / written),
        f"lookups of {PHOTOS_A_LOOKUP} a second": round(LOOKUPS / looked_up),
    }


def _owners() -> dict[int, int]:
    """A million photos of the last windows, at random times, of random owners."""
    shards = settings.LOGICAL_SHARDS
    windows = ENTRIES // (shards * PHOTOS_A_WINDOW) + 1
    now_ms = 15 * 365 * 24 * 3600 * 1000
    owners: dict[int, int] = {}
    while len(owners) < ENTRIES:
        shard = random.randrange(shards)
        milliseconds = now_ms - random.randrange(windows << photo_map.WINDOW_BITS)
        # next_id() begins each millisecond with sequence 0 (shardmap/ids.py).
        photo = milliseconds << (SHARD_BITS + SEQUENCE_BITS) | shard << SEQUENCE_BITS
        owners[photo] = random.randrange(USERS_A_SHARD) * shards + shard
    return owners
