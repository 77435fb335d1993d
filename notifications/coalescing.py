"""A thousand likes on one photo are a handful of pushes.

Redis counts what happens to one person about one photo, or by one other person, for a day: the first few are pushed,
then the 10th, the 100th, the 1000th … with the number of the others. What was pushed is kept, few as it is, so that a
job that runs again gets the same answer, and a like that is taken back and given again is not pushed again. Should
Redis lose it, some pushes more are sent.
"""

from functools import cache
from pathlib import Path

from django.conf import settings

from shardmap.redis_client import redis_client

AT_ONCE = {"like": 3}  # of a kind about one thing
OTHERS_AT_ONCE = 10
SECONDS = 24 * 3600


def others(user_id: int, group: dict) -> int | None:
    """How many did the same before, as far as the push is to say so; None if there shall be none.

    `group` is one of the activity of a user. Raises redis_client.Unavailable.
    """
    kind, actor_id = group["kind"], group["actors"][0]["id"]
    photo_id = group["photo"]["id"] if group["photo"] else 0
    comment_id = group["comment"]["id"] if group["comment"] else 0
    event = f"{actor_id}:{photo_id}:{comment_id}"
    at_once = AT_ONCE.get(kind, OTHERS_AT_ONCE)
    number = _number(f"push:{user_id}:{kind}:about:{photo_id}", event, group["id"], at_once)
    if not number:
        return None
    # Somebody who goes through all the photos, or writes on each of them.
    if photo_id and not _number(f"push:{user_id}:{kind}:by:{actor_id}", event, group["id"], OTHERS_AT_ONCE):
        return None
    # A push about likes takes the place of the one before on the phone, so it tells of those, too.
    return number - 1 if kind == "like" or number > at_once else 0


def _number(key: str, event: str, activity_id: int, at_once: int) -> int:
    """Which one about its key an event is; 0 if it is not to be pushed."""
    return redis_client(settings.REDIS_FEEDS_URL).eval(_script(), 1, key, event, activity_id, at_once, SECONDS)


@cache
def _script() -> str:
    return (Path(__file__).parent / "lua/slot.lua").read_text()
