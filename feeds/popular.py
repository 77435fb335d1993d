"""The popular page: photos of public accounts that many like now. See docs/feeds.md.

One sorted set in Redis. A photo's score grows with the logarithm of its likes and with the time of its publishing, so
that twelve and a half hours weigh as much as ten times the likes, and nothing has to be recomputed as time passes (the
ranking that Reddit published in 2009 as "hot"). The score is made of what the photo's row says, so a job that runs
twice changes nothing. Lost with Redis, the page fills again as people go on liking.
"""

import logging
import math

from django.conf import settings

from accounts.services import users
from photos.likes import likes_of
from photos.visible import seen
from shardmap.ids import time_of_id
from shardmap.redis_client import Unavailable, redis_client
from workers.mirror import mirror

logger = logging.getLogger(__name__)

KEY = "popular"
KEPT = 1000
SECONDS_FOR_TEN_TIMES = 45_000


def rank(owner_id: int, photo_id: int) -> None:
    """Puts a photo whose likes have changed at its place, or takes it off, as a job."""
    mirror(lambda: rounded(likes_of(owner_id, photo_id)), lambda likes: put(owner_id, photo_id, likes))


def rounded(likes: int) -> int:
    """To two digits, which is all that a score needs: who mirrors it must not wait until nobody likes the photo."""
    return round(likes, 2 - len(str(likes)))


def put(owner_id: int, photo_id: int, likes: int) -> None:
    """Puts a photo where so many likes belong. Raises redis_client.Unavailable."""
    owner = users([owner_id]).get(owner_id)
    redis = redis_client(settings.REDIS_FEEDS_URL)
    entry = f"{photo_id}_{owner_id}"
    if not likes or owner is None or owner["is_private"]:
        redis.zrem(KEY, entry)
        return
    with redis.pipeline(transaction=True) as pipeline:
        pipeline.zadd(KEY, {entry: score(photo_id, likes)})
        pipeline.zremrangebyrank(KEY, 0, -KEPT - 1)
        pipeline.execute()


def score(photo_id: int, likes: int) -> float:
    """The higher, the more popular."""
    return math.log10(likes) + time_of_id(photo_id).timestamp() / SECONDS_FOR_TEN_TIMES


def popular(viewer_id: int | None, count: int) -> list[dict]:
    """What is popular now and the viewer may see, as values of kind MEDIA; nothing while Redis is away."""
    try:
        # Some may be deleted, or hidden from this viewer; twice as many leave enough, or nearly.
        entries = redis_client(settings.REDIS_FEEDS_URL).zrevrange(KEY, 0, 2 * count - 1)
    except Unavailable as error:
        logger.warning("no popular page: %s", error)
        return []
    photos = [tuple(map(int, entry.decode().split("_"))) for entry in entries]
    return seen(viewer_id, photos, public=True)[:count]
