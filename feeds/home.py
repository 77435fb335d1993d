"""The home feeds in Redis. Only this module knows their keys, their form and their length.

A feed is a list of entries `"<photo, 19 digits>_<owner>"`, newest first, so that entries compare as their IDs do, and
a reader can tell whose photo it is without asking. It exists for users who have looked at it within FEED_SECONDS;
for all others nothing is stored, and their feed is rebuilt from the shards when they come back.

The oldest entry may be END: there is nothing older in the shards either. It also lets a feed without photos exist.
A feed that was trimmed has lost it, and is continued from the shards.

Everything that changes a feed is one Lua script, which Redis runs as one step. So a chunk that is delivered twice, or
late, or while the feed is being rebuilt leaves the same feed as one that is delivered in time.

A script is sent whole each time (EVAL), so a node that was restarted need not be told of it first; beside the keys of
a chunk its text is nothing. All keys of a call have one hash tag, so they are on one node of a Redis Cluster.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from django.conf import settings

from shardmap import cache
from shardmap.redis_client import Command, ask_all, redis_client

FEED_LENGTH = 500  # some 25 screens; who scrolls further is served from the shards
FEED_SECONDS = 30 * 24 * 3600  # of not looking, after which a feed is dropped
REBUILD_SECONDS = 60  # longer than any reading of the shards takes
TAGS = 64  # feeds are spread over so many hash tags, so over as many nodes of a Redis Cluster
END = f"{0:019d}_0"

Entry = tuple[int, int]  # photo, owner


class RebuildInterrupted(Exception):
    """Photos may have been pushed that the rebuild does not know of: read the shards again."""


def page(user_id: int, max_id: int | None, count: int) -> tuple[list[Entry], bool] | None:
    """The newest `count` entries older than `max_id`, and whether the feed's true end was reached.

    None when the user has no feed in Redis. Raises redis_client.Unavailable, as everything here.
    """
    entries, exists = cache.ask(page_commands(user_id, max_id, count))
    if not exists:
        return None
    if max_id is not None:
        entries = [entry for entry in entries if entry < b"%019d" % max_id]
    reached_end = END.encode() in entries[: count + 1]
    pairs = [entry.split(b"_") for entry in entries[:count]]
    return [(int(photo), int(owner)) for photo, owner in pairs if owner != b"0"], reached_end


def page_commands(user_id: int, max_id: int | None, count: int) -> list[Command]:
    """What `page` asks Redis."""
    key = _key(user_id)
    # The first page is what nearly everybody reads, and is all that is fetched for it.
    return [("LRANGE", key, 0, count if max_id is None else -1), ("EXPIRE", key, FEED_SECONDS)]


def push(user_ids: Iterable[int], entry: Entry) -> None:
    """Puts a photo into the feeds of these users, as far as they have one: a call for each hash tag, all at once."""
    keys_of: dict[int, list[str]] = {}
    for user_id in user_ids:
        keys_of.setdefault(user_id % TAGS, []).append(_key(user_id))
    ask_all(_redis(), [_call("push", keys, _text(entry), FEED_LENGTH) for keys in keys_of.values()])


def remove(user_ids: Iterable[int], *entries: Entry) -> None:
    """Takes photos out of the feeds of these users."""
    ask_all(_redis(), [("LREM", _key(user_id), 0, _text(entry)) for user_id in user_ids for entry in entries])


def remove_owner(user_id: int, owner_id: int) -> None:
    """Takes all photos of one owner out of a feed."""
    ask_all(_redis(), [_call("remove_owner", [_key(user_id)], f"_{owner_id}")])


def add(user_id: int, entries: Iterable[Entry]) -> None:
    """Puts photos into a feed at their places, if the user has one."""
    _merge(user_id, "add", map(_text, entries))


def drop(user_id: int) -> None:
    """Removes a feed."""
    _redis().unlink(_key(user_id))


def rebuild(user_id: int, read: Callable[[int], list[Entry]]) -> None:
    """Makes a feed of what `read(count)` returns: the newest photos that belong into it, at most `count`.

    What is pushed meanwhile goes onto a note, and from there into the new feed. Raises RebuildInterrupted when the
    note was lost (a rebuild that took longer than REBUILD_SECONDS, or Redis restarted).
    """
    note = f"{_key(user_id)}:rebuilding"
    ask_all(_redis(), [("RPUSH", note, ""), ("EXPIRE", note, REBUILD_SECONDS)])
    entries = read(FEED_LENGTH)
    texts = [_text(entry) for entry in entries]
    if len(entries) < FEED_LENGTH:
        texts.append(END)
    if not _merge(user_id, "rebuild", texts):
        raise RebuildInterrupted(f"the feed of user {user_id}")


def _merge(user_id: int, mode: str, texts: Iterable[str]) -> bool:
    """Whether the feed is there afterwards."""
    (is_there,) = ask_all(_redis(), [_call("merge", [_key(user_id)], mode, FEED_LENGTH, FEED_SECONDS, *texts)])
    return bool(is_there)


def _key(user_id: int) -> str:
    return f"feed:{{{user_id % TAGS}}}:{user_id}"


def _text(entry: Entry) -> str:
    photo_id, owner_id = entry
    return f"{photo_id:019d}_{owner_id}"


def _redis():
    return redis_client(settings.REDIS_FEEDS_URL)


def _call(script: str, keys: Sequence[str], *args: str | int) -> Command:
    return "EVAL", _text_of(script), len(keys), *keys, *args


@functools.cache
def _text_of(script: str) -> str:
    return (Path(__file__).parent / "lua" / f"{script}.lua").read_text()
