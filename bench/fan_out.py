"""Fan-out's last step: one photo into many feeds in Redis; our script beside a pipeline of LPUSHX and LTRIM."""

import time

from django.conf import settings

from feeds import home
from feeds.services import CHUNK
from shardmap.redis_client import redis_client

FIRST = 10**12  # IDs that no user has
OWNER = FIRST - 1
PHOTOS = 5
PLOTTED = ("deliveries/s",)


def run(n: int = 50_000) -> dict[str, float]:
    redis = redis_client(settings.REDIS_FEEDS_URL)
    followers = range(FIRST, FIRST + n)
    chunks = [followers[at : at + CHUNK] for at in range(0, n, CHUNK)]
    for chunk in chunks:
        with redis.pipeline(transaction=False) as pipeline:
            for follower in chunk:
                pipeline.rpush(home._key(follower), home.END)
            pipeline.execute()

    def push(photo: int, chunk: range) -> None:
        home.push(chunk, (photo, OWNER))

    def pipelined(photo: int, chunk: range) -> None:
        with redis.pipeline(transaction=False) as pipeline:
            for follower in chunk:
                pipeline.lpushx(home._key(follower), home._text((photo, OWNER)))
                pipeline.ltrim(home._key(follower), 0, home.FEED_LENGTH - 1)
            pipeline.execute()

    try:
        rates = {}
        for name, deliver in {"our script": push, "LPUSHX and LTRIM": pipelined}.items():
            start = time.perf_counter()
            for photo in range(1, PHOTOS + 1):
                for chunk in chunks:
                    deliver(photo, chunk)
            rates[f"{name}, deliveries/s"] = round(PHOTOS * n / (time.perf_counter() - start))
        assert redis.lindex(home._key(FIRST), 0) == home._text((PHOTOS, OWNER)).encode()
    finally:
        for chunk in chunks:
            redis.unlink(*(home._key(follower) for follower in chunk))
    return {"followers": n, "photos": PHOTOS, **rates}
