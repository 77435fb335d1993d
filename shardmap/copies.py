"""What a process keeps of the cache in its own memory, and how it learns of each change in time.

Whoever changes something writes the keys under which it is cached to a log in Redis, after they are gone from Memcached
and before the change is answered (`tell`). A request reads what is new in the log along with the first question that it
has for Redis anyway (`listen`), and drops those copies before it uses one. So a copy is as fresh as Memcached's answer
would be, and costs no round trip. While Redis is away, there are no copies.

The log is a stream. The process remembers the last entry that it has read; if that is no longer there, entries may have
been missed (the log was cut, Redis restarted empty, another server has taken over), and all copies are dropped.

Beside the log are the fences: a Memcached server that did not delete a key when it was asked to is not read from by
anybody until it has been emptied (shardmap/cache.py).
"""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from django.conf import settings

from shardmap import redis_client
from shardmap.redis_client import Command, Unavailable, ask, ask_all

LOG, FENCES = "{cache}:changes", "{cache}:fences"  # of one hash tag, so that both are read at one moment
LOG_LENGTH = 50_000  # entries: some 5 MB
MOST_NEWS = 1_000  # entries; a process that is further behind starts anew
MOST_BYTES = 32 << 20  # of text, as Memcached has it; parsed, it takes some four times as much
MOST_CHANGES = 100_000  # that a process remembers
MOST_SECONDS = 300  # after which all copies are dropped: a bound on any mistake of ours

LIFT = """
    if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
    return redis.call('HDEL', KEYS[1], ARGV[1])
"""


@dataclass(frozen=True)
class View:
    """What a request knows of the cache's changes: those up to a moment (None: nothing), and who is fenced off."""

    moment: int | None
    fences: dict[str, bytes]


class Held(dict):
    """The copies of one kind, by ID; and how many have been dropped by now: while that is the same, none is gone."""

    dropped = 0


class Copies:
    """The copies of one process. Each is as of some moment: a number that grows with each news of the log."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[Hashable, Held] = {}
        self._order: OrderedDict[str, tuple[Held, Any, int]] = OrderedDict()  # by key, the oldest copy first
        self._bytes = 0
        self._last: bytes | None = None  # of the log's entries, that this process has read
        self._connections = 0
        self._until = 0.0  # time.monotonic()
        self._moment = self._began = 1  # now; and when it began to remember changes
        self._changed: dict[str, int] = {}  # key → moment

    def of(self, kind: Hashable) -> Held:
        """The copies of one kind; only to be read."""
        return self._held.get(kind) or self._held.setdefault(kind, Held())

    def listen(self, *commands: Command) -> tuple[View, list]:
        """What is new in the log is heard along with some other commands' replies (as of `redis_client.ask`)."""
        last = self._last
        news = ("XRANGE", LOG, last, "+", "COUNT", MOST_NEWS) if last else ("XREVRANGE", LOG, "+", "-", "COUNT", 1)
        try:
            *replies, entries, fences = ask(_redis(), [*commands, news, ("HGETALL", FENCES)])
            connections = redis_client.connections(_redis())
        except Unavailable as error:  # no node of a cluster has answered yet
            replies, entries, fences = [error] * len(commands), error, error
        if isinstance(entries, Exception) or isinstance(fences, Exception):
            self._start_anew(None)
            return View(None, {}), replies
        # Behind a new connection may be another server, which lacks what the first one's log had.
        gap = not last or not entries or entries[0][0] != last or len(entries) == MOST_NEWS
        if gap or connections != self._connections or time.monotonic() > self._until:
            self._connections = connections
            self._start_anew(entries[-1][0] if entries else None)
            if not entries:
                with suppress(*Unavailable):
                    tell([])  # so that the log has an end to go on from
        elif len(entries) > 1:
            self._apply(entries[1:])
        return View(self._moment, _decoded(fences)), replies

    def keep(self, kind: Hashable, item_id: Any, key: str, value: Any, size: int, view: View) -> None:
        """Keeps a copy of what a request has read from Memcached, unless it has changed since."""
        with self._lock:
            if view.moment is None or max(self._began, self._changed.get(key, 0)) > view.moment:
                return
            self._drop(key)
            held = self.of(kind)
            held[item_id] = value
            self._order[key] = held, item_id, size
            self._bytes += size
            while self._bytes > MOST_BYTES:
                self._drop(next(iter(self._order)))

    def forget(self, keys: Iterable[str]) -> None:
        """Drops copies of what this process has changed: its requests under way shall see that, too."""
        with self._lock:
            self._note(keys)

    def _apply(self, entries: list) -> None:
        with self._lock:
            for entry_id, fields in entries:
                # redis-py makes a dict of what a cluster's node has sent us elsewhere for.
                keys = fields[b"keys"] if isinstance(fields, dict) else fields[1]
                self._note(keys.decode().split())
                if self._last is None or _time(entry_id) > _time(self._last):
                    self._last = entry_id

    def _note(self, keys: Iterable[str]) -> None:
        self._moment += 1
        if len(self._changed) > MOST_CHANGES:
            self._changed.clear()
            self._began = self._moment
        for key in keys:
            self._changed[key] = self._moment
            self._drop(key)

    def _start_anew(self, last: bytes | None) -> None:
        with self._lock:
            self._last, self._until = last, time.monotonic() + MOST_SECONDS
            self._moment += 1
            self._began = self._moment
            self._changed.clear()
            for held in list(self._held.values()):
                held.clear()
                held.dropped += 1
            self._order.clear()
            self._bytes = 0

    def _drop(self, key: str) -> None:
        if key in self._order:
            held, item_id, size = self._order[key]
            held.pop(item_id, None)
            held.dropped += 1
            del self._order[key]
            self._bytes -= size


def tell(keys: Iterable[str]) -> None:
    """Writes to the log what has changed. Raises redis_client.Unavailable."""
    ask_all(_redis(), [("XADD", LOG, "MAXLEN", "~", LOG_LENGTH, "*", "keys", " ".join(keys))])


def fence(server: str) -> None:
    """Keeps everybody from reading what a Memcached server has. Raises redis_client.Unavailable."""
    ask_all(_redis(), [("HSET", FENCES, server, secrets.token_hex(8))])


def fences() -> dict[str, bytes]:
    """The servers that are fenced off, each with the name of its latest fence. Raises redis_client.Unavailable."""
    (found,) = ask_all(_redis(), [("HGETALL", FENCES)])
    return _decoded(found)


def lift(server: str, name: bytes) -> None:
    """Lets a server be read from again, unless it was fenced off anew meanwhile. Raises redis_client.Unavailable."""
    ask_all(_redis(), [("EVAL", LIFT, 1, FENCES, server, name)])


def _decoded(fences: dict[bytes, bytes]) -> dict[str, bytes]:
    return {server.decode(): name for server, name in fences.items()}


def _time(entry_id: bytes) -> tuple[int, int]:
    milliseconds, sequence = entry_id.split(b"-")
    return int(milliseconds), int(sequence)


def _redis() -> redis_client.Client:
    return redis_client.redis_client(settings.REDIS_FEEDS_URL)
