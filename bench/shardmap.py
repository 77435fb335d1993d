"""The photo→user map at any size, beside what it replaces; in a scratch database of the map's Redis."""

import random
import time
from collections.abc import Callable, Iterator

from django.conf import settings
from django.db import connections
from redis import Redis

from photos.models import Photo, Status
from shardmap import photo_map
from shardmap.ids import SEQUENCE_BITS, SHARD_BITS
from shardmap.shards import current_database, on_logical_shard

# A production shard: 14 million users and 300 million photos on 4096 shards, over some 500 days.
SHARDS = 4096
USERS_A_SHARD = 3_400
PHOTOS_A_WINDOW = 110
OTHERS = 500_000  # entries of what is compared: enough to tell bytes by
ROUNDS, LOOKUPS, PHOTOS_A_LOOKUP = 5, 1_000, 20  # the best round counts: others may be on the machine
LOOKED_UP = 200_000  # entries to choose from, of all hashes
REBUILT = 200_000  # photos in Postgres, on all shards
NOBODY = 2**40  # and the users after it, one a shard: nobody has these IDs
SCRATCH_DATABASE = 15
NOW_MS = 15 * 365 * 24 * 3600 * 1000
PLOTTED = ("bytes an entry", "lookups/s")

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
        sizes = {
            "ours": used,
            "SET": _measure(redis, OTHERS, _set)[0],
            "the 2011 recipe with our IDs": _measure(redis, OTHERS, _recipe_of_2011)[0],
        }
        settings.LOGICAL_SHARDS = shards
        redis.flushdb()
        rebuilt = _rebuilt_a_second()
    finally:
        redis.flushdb()
        settings.REDIS_SHARDMAP_URL, settings.LOGICAL_SHARDS = url, shards
    return {
        "entries": n,
        **{f"{name}, bytes an entry": round(size, 1) for name, size in sizes.items()},
        "GB for 300 million": round(used * 300e6 / 1e9, 2),
        "GB resident for 300 million": round(resident * 300e6 / 1e9, 2),
        **{f"{name}, lookups/s": round(rate) for name, rate in lookups.items()},
        "photos a lookup": PHOTOS_A_LOOKUP,
        "ours, writes/s": round(n / seconds),
        "rebuild from Postgres, entries/s": round(rebuilt),
    }


def _measure(redis: Redis, n: int, write: Callable[[Owners], None]) -> tuple[float, float, float, Owners]:
    """Writes n entries: bytes an entry, used and resident; the seconds that it took; and some of the entries."""
    redis.flushdb()
    redis.memory_purge()  # else what was freed just now would be filled first, and resident memory seem not to grow
    before = _memory(redis)
    seconds, sample = 0.0, {}
    for batch in _batches(n):
        start = time.perf_counter()
        write(batch)
        seconds += time.perf_counter() - start
        some = min(len(batch), LOOKED_UP * len(batch) // n + 1)
        sample |= {photo: batch[photo] for photo in random.sample(list(batch), some)}
    after = _memory(redis)
    # Without what clients and the append-only file hold at this moment.
    held = [one["mem_clients_normal"] + one["mem_aof_buffer"] for one in (before, after)]
    sizes = [(after[name] - before[name] - (held[1] - held[0])) / n for name in ("used_memory", "used_memory_rss")]
    return *sizes, seconds, sample


def _memory(redis: Redis) -> dict[str, int]:
    """What Redis uses, once nothing waits to be written to the append-only file: a slow disk makes that megabytes."""
    deadline = time.monotonic() + 60
    while redis.info("persistence").get("aof_buffer_length", 0) > 64 * 1024:
        if time.monotonic() > deadline:
            raise RuntimeError("the append-only file was not written within 60 s")
        time.sleep(0.05)
    return redis.info("memory")


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


def _lookups_a_second(sample: Owners) -> dict[str, float]:
    """Of what is compared, in turns: others may be on the machine."""
    ids, seconds = list(sample), {}
    for _ in range(ROUNDS):
        wanted = [random.sample(ids, PHOTOS_A_LOOKUP) for _ in range(LOOKUPS)]
        expected = [{photo: sample[photo] for photo in photos} for photos in wanted]
        for name, look_up in {"ours": photo_map.owners_of, "redis-py's pipeline": _pipelined}.items():
            start = time.perf_counter()
            answers = [look_up(photos) for photos in wanted]
            seconds[name] = min(seconds.get(name, float("inf")), time.perf_counter() - start)
            if answers != expected:
                raise AssertionError(f"{name}: not what was written")
    return {name: LOOKUPS * PHOTOS_A_LOOKUP / best for name, best in seconds.items()}


def _pipelined(photos: list[int]) -> Owners:
    with photo_map._redis().pipeline(transaction=False) as pipeline:
        for _, key, field in photo_map._addresses(photos):
            pipeline.hget(key, field)
        replies = pipeline.execute()
    return {
        photo: int(reply) * SHARDS + (photo >> SEQUENCE_BITS) % SHARDS
        for photo, reply in zip(photos, replies, strict=True)
    }


def _rebuilt_a_second() -> float:
    """From Postgres to Redis: the photos that are there, and REBUILT more, of 2011 and later, of nobody."""
    shards = range(settings.LOGICAL_SHARDS)
    photos = REBUILT // len(shards)
    ids = f"k * {2**26 // PHOTOS_A_WINDOW} << {SHARD_BITS + SEQUENCE_BITS}"
    try:
        for shard in shards:
            with on_logical_shard(shard), connections[current_database()].cursor() as cursor:
                cursor.execute(
                    """INSERT INTO "logical"."photos_photo"
                        (id, owner_id, upload_id, status, decodes, message, caption, filter)"""
                    f" SELECT {ids} | {shard << SEQUENCE_BITS}, {NOBODY + shard}, k, '{Status.READY}', 1, '', '', ''"
                    f" FROM generate_series(1, {photos}::bigint) k"
                )
        start = time.perf_counter()
        written = photo_map.rebuild(lambda shard, total: None)
        return written / (time.perf_counter() - start)
    finally:
        for shard in shards:
            with on_logical_shard(shard):
                Photo.objects.filter(owner_id=NOBODY + shard).delete()


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
