"""Connections to Redis, one pool a server and process."""

import time
from functools import cache

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

# What any call to Redis may raise when the server is away, slow or still loading.
Unavailable = redis.RedisError

SECONDS_DOWN = 1  # a server that did not answer in time is left alone for so long: its callers wait once, not each

_down_until: dict[tuple[str, int], float] = {}


class Connection(redis.Connection):
    """redis-py's connection, which does not ask a server that was silent a moment ago."""

    def send_packed_command(self, command, check_health=True):
        if _down_until.get((self.host, self.port), 0) > time.monotonic():
            self.disconnect()
            raise redis.TimeoutError(f"{self.host}:{self.port} did not answer a moment ago")
        return super().send_packed_command(command, check_health)

    def read_response(self, *args, **options):
        try:
            return super().read_response(*args, **options)
        except redis.TimeoutError:
            _down_until[self.host, self.port] = time.monotonic() + SECONDS_DOWN
            raise


@cache
def redis_client(url: str) -> redis.Redis:
    """A thread-safe client that gives up after a second: who asks has something better to do than wait."""
    pool = redis.ConnectionPool.from_url(
        url,
        connection_class=Connection,
        socket_connect_timeout=0.5,
        socket_timeout=1,
        # One more try, at once: a pooled connection may be the corpse of a server that has restarted since.
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    )
    return redis.Redis(connection_pool=pool)
