"""Reads from the physical servers' streaming replicas, which may be some seconds old. See docs/sharding.md.

Only first pages of lists are read here: they fill no cache, in which old rows would outlive their invalidation, and
they decide nothing about who may see what. The pages after the first come from the primary, since time must not run
backwards between two pages: a row could be on neither of them, or on both.

A replica is asked when two things are known:

- It lacks at most what was committed in the last MOST_BEHIND seconds. About once a second, a process notes where the
  primary's WAL ends, and asks the replica how far it has come: all that was committed before a note that it has passed
  is there. That does not depend on clocks, on an idle primary's silence, or on what the replica itself believes: if it
  has lost its primary and does not know yet, it passes no new note.
- The viewer has written nothing for QUIET_SECONDS, which is longer. Since when, is in Memcached (QUIET); each write
  deletes that, and the next read puts it there anew. So whatever Memcached loses only makes reads go to the primary.
  (A mark that says "has written" would, if lost, show people their past.) A server that hangs is passed over by the
  write, and may come back with an old mark. So there are two, on two servers: the later counts, and one deleted is
  enough. Left is what two servers do that hang in the same moment, or the only one: whoever wrote just then may, until
  the write's job has deleted the marks for sure, be shown a list that lacks up to MOST_BEHIND seconds.
"""

import logging
import threading
import time
from collections import deque
from functools import cache as once_a_process

from django.conf import settings
from django.db import Error, connections
from django.db.models import QuerySet

from shardmap import cache
from shardmap.backend.base import answering_within
from shardmap.shards import ShardMoved, current_database

logger = logging.getLogger(__name__)

MOST_BEHIND = 3.0
# The rest is for a query under way, and for the clocks of app servers, which may differ by a second.
QUIET_SECONDS = 5.0
LOOK_SECONDS = 1.0
SECONDS_DOWN = 5.0  # a replica that failed is left alone for so long
ANSWER_SECONDS = 0.5  # who waits for longer asks the primary: that answers within milliseconds

# Since when a user has written nothing, as far as is known: the first read after the last write. See _marks_of.
QUIET = cache.Kind("quiet", lambda marks: dict.fromkeys(marks, time.time()), "since")
MARKS = 2

# Flushed, as all is that was acknowledged. A timeline begins when a replica is promoted; positions on two do not
# compare: another replica of the lost server may have more than the promoted one, and what was lost with it.
WRITTEN = """
    SELECT ('x' || left(pg_walfile_name(at), 8))::bit(32)::int, pg_wal_lsn_diff(at, '0/0')
    FROM pg_current_wal_flush_lsn() AS at
"""
# The timeline is that of the last restart point: after a failover it is known some minutes late, which is harmless.
# No timeline at all where nothing is replayed: that server was promoted, or has been started as a primary.
REPLAYED = """
    SELECT CASE WHEN pg_is_in_recovery() THEN timeline_id END, pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')
    FROM pg_control_checkpoint()
"""


class NotAReplica(Error):
    """What should be a replica of a server is a server by itself, or follows another one."""


def read(page: QuerySet, viewer_id: int | None, *, first: bool) -> list:
    """The rows of a list's page, on the current shard, as its viewer (None: nobody) may get to see them."""
    primary = current_database()
    if not first or primary not in settings.SHARD_REPLICAS or connections[primary].in_atomic_block:
        return list(page)
    replica = _replica_of(primary)
    if replica.is_fresh() and not _has_just_written(viewer_id):
        try:
            with answering_within(ANSWER_SECONDS):
                return list(page.using(replica.alias))
        except ShardMoved:
            pass  # or it has not moved yet, there; the primary knows
        except Error as error:
            replica.leave_alone(error)
    return list(page)


def note_write_of(user_id: int) -> None:
    """To be called between a user's write and the answer that tells of it."""
    cache.forget(*keys_of_writers(user_id))


def keys_of_writers(*user_ids: int) -> list[str]:
    """The cached keys that a job has to forget when it has carried writes of these users on to another shard."""
    if not settings.SHARD_REPLICAS:
        return []
    return [QUIET.key(mark) for user_id in user_ids for mark in _marks_of(user_id)]


def _marks_of(user_id: int) -> list[str]:
    """The IDs of a user's marks, on different servers of Memcached, if there are several."""
    marks = {QUIET.key(mark): mark for mark in (f"{user_id}.{number}" for number in range(16))}
    return [marks[keys[0]] for keys in cache._by_server(marks).values()][:MARKS]


def _has_just_written(viewer_id: int | None) -> bool:
    if viewer_id is None:
        return False
    (since,) = cache.fetch((QUIET, _marks_of(viewer_id)))
    return time.time() - max(since.values()) < QUIET_SECONDS


class Replica:
    """What this process knows of a replica."""

    def __init__(self, primary: str) -> None:
        self.primary, self.alias = primary, settings.SHARD_REPLICAS[primary]
        self._complete_until = float("-inf")  # it has all that was committed before this time.monotonic()
        # Where the primary's WAL ended when, as far as the replica has not come there.
        self._notes: deque[tuple[float, int]] = deque(maxlen=10)
        self._next_look = 0.0
        self._looking = threading.Lock()

    def is_fresh(self) -> bool:
        # One thread looks; the others go by what is known meanwhile.
        if time.monotonic() >= self._next_look and self._looking.acquire(blocking=False):
            try:
                self._look()
            except Error as error:
                self.leave_alone(error)
                connections[self.primary].close()  # or it was the primary that failed, which is asked next
            finally:
                self._looking.release()
        return time.monotonic() - self._complete_until < MOST_BEHIND

    def leave_alone(self, error: Error) -> None:
        logger.warning("the replica %s is left alone for %s s: %s", self.alias, SECONDS_DOWN, error)
        self._next_look = time.monotonic() + SECONDS_DOWN
        self._complete_until = float("-inf")
        connections[self.alias].close()

    def _look(self) -> None:
        now = time.monotonic()
        self._next_look = now + LOOK_SECONDS
        timeline, written = _position(self.primary, WRITTEN)
        self._notes.append((now, written))
        with answering_within(ANSWER_SECONDS):
            replays, replayed = _position(self.alias, REPLAYED)
        if replays != timeline:
            raise NotAReplica(f"it replays timeline {replays}, and {self.primary} is on {timeline}")
        while self._notes and self._notes[0][1] <= replayed:
            self._complete_until, _ = self._notes.popleft()


@once_a_process
def _replica_of(primary: str) -> Replica:
    return Replica(primary)


def _position(alias: str, query: str) -> tuple[int | None, int | None]:
    """A timeline of the WAL, and a position in it, in bytes from its beginning."""
    with connections[alias].cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()
