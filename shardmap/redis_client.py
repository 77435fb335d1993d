"""Connections to Redis, one pool a server and process."""

from functools import cache

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

# What any call to Redis may raise when the server is away, slow or still loading.
Unavailable = redis.RedisError


@cache
def redis_client(url: str) -> redis.Redis:
    """A thread-safe client that gives up within a second and a half: who asks has something better to do than wait."""
    return redis.Redis.from_url(
        url,
        socket_connect_timeout=0.5,
        socket_timeout=1,
        # One more try, at once: a pooled connection may be the corpse of a server that has restarted since.
        retry=Retry(NoBackoff(), 1),
    )
