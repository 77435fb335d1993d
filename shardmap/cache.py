"""Reads through Memcached that are never wrong, only sometimes slow.

The danger of a read-through cache is the late fill: a process reads a row, another changes the row and deletes the
cached copy, and then the first one stores what it had read. Leases close it (Nishtala et al., "Scaling Memcache at
Facebook", NSDI 2013, section 3.2.1), made here of plain Memcached commands:

    miss → add(key, lease)          a placeholder of our own; fails when somebody else was first
         → gets(key)                our lease, with its version; or somebody else's: wait for what that one stores
         → read the row
         → cas(key, row, version)   stored only if nothing touched the key since

Whoever changes a row deletes the key after the commit. That takes the lease away too, so a fill that began before
finds its version gone and stores nothing. What many read is not deleted but read anew, and put in the old one's place
(`refresh`), so that a like on a hot photo sends nobody to the shards.

A key lives on `servers[crc32(key) % n]` and nowhere else. Libraries that send a dead server's keys to its neighbours
come back to stale copies once it returns; here, a server that is away is a miss. One that was asked to delete a key
and did not answer may come back with that key: it is fenced off for everybody until it has been emptied.

How a change reaches the cache for sure: the service calls `forget` after its commit, and the job that it wrote to
the outbox with the change calls `forget_surely`, which fails, and so is tried again, until it has succeeded.

A request's fetches also use the copies that this process keeps (shardmap/copies.py). See docs/cache.md.
"""

import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from zlib import crc32

import orjson
from django.conf import settings
from django.db import Error
from pymemcache.client.base import Client
from pymemcache.exceptions import MemcacheError, MemcacheServerError, MemcacheUnexpectedCloseError

from shardmap import copies, redis_client
from shardmap.copies import Copies, Held, View
from shardmap.metrics import Counter, labelled
from shardmap.redis_client import Command

logger = logging.getLogger(__name__)

SECONDS_TO_LIVE = 24 * 3600  # a bound on any mistake of ours, not the way rows stay fresh
LEASE_SECONDS = 10  # longer than any read of a row may take
WAIT_SECONDS, PAUSE_SECONDS = 1.0, 0.003  # for what others fill: a fetch at most, and between two looks
REFRESHES = 10  # tries to put a changed value in the old one's place, before it is deleted
INSIST_SECONDS = 2  # on telling everybody of a change, should Redis be silent for a moment
SECONDS_DOWN = 1  # a server that failed is left alone for so long; then one caller tries, and waits
LEASE = b"?"  # no value begins so
AT_ONCE = -1  # seconds to live

GET = re.compile(rb"get( [!-~]{1,250})+\r\n")
END = b"END\r\n"
ERRORS = (b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR")
RECEIVED = 1 << 16

# "process": found among its copies; "beyond": asked of Memcached; "database": read there, since Memcached lacked it.
_lookups = labelled(Counter("lookups", "Things looked up, by where they were looked for", ["where"]))

Unavailable = (MemcacheError, OSError)
_Hangup = (MemcacheUnexpectedCloseError, ConnectionResetError, BrokenPipeError)

_local = threading.local()
_down_until: dict[str, float] = {}
_copies = Copies()
NOTHING_HELD = Held()
NOTHING_HELD.dropped = -1  # as that of no other


@dataclass(frozen=True)
class Kind:
    """One kind of cached thing: how its keys are named, and how those that are missing are read from the truth.

    `load` gets the IDs that the cache lacks and returns {id: what `json` can hold}; what does not exist it leaves
    out, and that is asked for anew each time. `shape` names the value's fields: what code of another shape has cached,
    before a deploy or during one, is a miss. (The key stays the same, so that either code's invalidations count.)
    `made_of` turns what came from JSON into what `fetch` returns, once for all who share it.
    """

    prefix: str
    load: Callable[[list], dict[Any, Any]]
    shape: str
    made_of: Callable[[Any], Any] = lambda value: value

    def key(self, item_id: Any) -> str:
        return f"{self.prefix}:{item_id}"

    @property
    def stamp(self) -> bytes:
        """What cached values of this shape begin with."""
        return b"%08x " % crc32(self.shape.encode())

    @property
    def copied_as(self) -> tuple[str, str]:
        return self.prefix, self.shape

    def value(self, text: bytes) -> Any:
        return self.made_of(orjson.loads(text.partition(b" ")[2]))  # behind the stamp


def begin_request(**_: Any) -> None:
    """From here on, what the first fetch of this thread, or `listen`, hears of changes holds for all its fetches."""
    _local.in_request, _local.view, _local.ahead = True, None, {}


def end_request(**_: Any) -> None:
    _local.in_request, _local.view, _local.ahead = False, None, {}


def listen(command: Command, ahead: Sequence[Command] = ()) -> Any:
    """The reply to a command for the feeds' Redis, or an exception; along with it, this request hears of changes.

    Commands that the request will probably need are asked `ahead`, and answered by `ask`.
    """
    _local.view, (reply, *replies) = _copies.listen(command, *ahead)
    _local.ahead = dict(zip(ahead, replies, strict=True))
    return reply


def ask(commands: Sequence[Command]) -> list:
    """`redis_client.ask_all` for the feeds' Redis; what `listen` has asked ahead is answered, once, by that."""
    known = getattr(_local, "ahead", {})
    if all(command in known for command in commands):
        return redis_client.unless_error([known.pop(command) for command in commands])
    return redis_client.ask_all(redis_client.redis_client(settings.REDIS_FEEDS_URL), commands)


def glimpse(kind: Kind, item_id: Any) -> Any:
    """What this process last knew; good for a guess that harms nobody."""
    return _copies.of(kind.copied_as).get(item_id)


def fetch(*wanted: tuple[Kind, Iterable]) -> list[dict[Any, Any]]:
    """Things of several kinds, one round trip a server: `users, media = fetch((USERS, user_ids), (MEDIA, media_ids))`.

    Returns a dict {id: value} for each pair. Misses cost one more round trip for the leases and their kind's `load`.
    Out of a `request`, it costs a round trip to Redis, too. A value is shared with all who fetch it: it must not be
    changed.
    """
    view = _view()
    found, missing = [], []
    for kind, item_ids in wanted:
        copied = _copies.of(kind.copied_as) if view.moment else {}
        item_ids = list(item_ids)
        try:
            found.append({item_id: copied[item_id] for item_id in item_ids})
            missing.append({})
        except KeyError:  # also when another thread drops one in between
            values = ((item_id, copied.get(item_id)) for item_id in item_ids)
            found.append({item_id: value for item_id, value in values if value is not None})
            missing.append({item_id: kind.key(item_id) for item_id in item_ids if item_id not in found[-1]})
    _lookups("process").inc(sum(map(len, found)))
    if any(missing):
        _lookups("beyond").inc(sum(map(len, missing)))
        cached = _get_many([key for keys in missing for key in keys.values()], view)
        until = time.monotonic() + WAIT_SECONDS
        for (kind, _), of_kind, keys in zip(wanted, found, missing, strict=True):
            of_kind |= _with_misses_filled(kind, keys, cached, view, until)
    return found


def held(kind: Kind) -> Held:
    """What this process has copies of and a `fetch` would return; asks no server. To be used at once."""
    return _copies.of(kind.copied_as) if _view().moment else NOTHING_HELD


def _view() -> View:
    """What this request has heard of; outside of one, who is fenced off, for it would hear much and use little."""
    if getattr(_local, "in_request", False):
        if _local.view is None:
            _local.view, _ = _copies.listen()
        return _local.view
    try:
        return View(None, copies.fences())
    except redis_client.Unavailable:
        return View(None, {})


def _with_misses_filled(
    kind: Kind, keys: dict[Any, str], cached: dict[str, bytes], view: View, until: float
) -> dict[Any, Any]:
    """`until` is when to wait no longer for what others fill."""
    found, missing = {}, {}
    for item_id, key in keys.items():
        text = cached.get(key)
        if text and text.startswith(kind.stamp):
            found[item_id] = _kept(kind, item_id, text, view)
        else:
            missing[item_id] = key
    return found | _filled(kind, missing, view, until) if missing else found


def _filled(kind: Kind, missing: dict[Any, str], view: View, until: float) -> dict[Any, Any]:
    """Reads what the cache lacks, each by one who has its lease; the others wait for that one."""
    found: dict[Any, Any] = {}
    nonce = LEASE + secrets.token_hex(12).encode()
    waited_for: dict[Any, bytes] = {}
    while missing:
        # The leases first, the rows after: a row must not be older than its lease.
        texts = _lease(list(missing.values()), nonce, view)
        ours, others = {}, {}
        for item_id, key in missing.items():
            text, version = texts.get(key, (b"", b""))
            if text.startswith(kind.stamp):
                found[item_id] = _kept(kind, item_id, text, view)
            elif text == nonce or not text.startswith(LEASE):
                # A value of another shape is as good as a lease: it may be replaced, unless something touches it.
                ours[item_id] = key, version
            elif waited_for.setdefault(item_id, text) == text and time.monotonic() < until:
                others[item_id] = key
            else:
                # Not ours, but whoever has it is late, or found nothing: readers of what is gone shall not queue.
                ours[item_id] = key, b""
        if ours:
            found |= _loaded(kind, ours, view)
        elif others:
            time.sleep(PAUSE_SECONDS)
        missing = others
    return found


def _loaded(kind: Kind, ours: dict[Any, tuple[str, bytes]], view: View) -> dict[Any, Any]:
    """Reads from the truth, and stores it where we have a version; what is not there, nobody shall wait for."""
    _lookups("database").inc(len(ours))
    texts: dict[Any, bytes] = {}
    try:
        loaded = kind.load(list(ours))
        texts = {item_id: kind.stamp + orjson.dumps(value) for item_id, value in loaded.items()}
    finally:
        _fill({key: (texts.get(item_id), version) for item_id, (key, version) in ours.items() if version}, view)
    return {item_id: _kept(kind, item_id, text, view) for item_id, text in texts.items()}


def _kept(kind: Kind, item_id: Any, text: bytes, view: View) -> Any:
    """The value in a text that was read since the request heard of changes; it is also this process's copy now."""
    value = kind.value(text)
    _copies.keep(kind.copied_as, item_id, kind.key(item_id), value, len(text), view)
    return value


def forget(*keys: str) -> None:
    """Deletes keys after a change was committed; what is away is passed over (see `forget_surely`)."""
    until = time.monotonic() + INSIST_SECONDS
    while True:
        try:
            return forget_surely(*keys)
        except redis_client.Unavailable as error:
            # Who can reach Redis would go on using copies; if nobody listens there, nobody can.
            if not isinstance(error, redis_client.SILENT) or time.monotonic() > until:
                return _not_told(keys, error)
            time.sleep(INSIST_SECONDS / 10)


def forget_surely(*keys: str) -> None:
    """Deletes keys; raises redis_client.Unavailable if somebody may still see one. For jobs, which are tried again."""
    if keys:
        _changed(keys, _delete(keys))


def refresh(kind: Kind, item_id: Any, *keys: str) -> None:
    """`forget`, but what many read is not deleted: where it is cached, what was committed takes its place at once."""
    try:
        refresh_surely(kind, item_id, *keys)
    except redis_client.Unavailable as error:
        _not_told((kind.key(item_id), *keys), error)


def refresh_surely(kind: Kind, item_id: Any, *keys: str) -> None:
    """`refresh` as `forget_surely` is to `forget`."""
    key = kind.key(item_id)
    silent = _delete(keys if _replaced(kind, item_id) else (key, *keys))
    _changed((key, *keys), silent)


def _changed(keys: tuple[str, ...], silent: list[str]) -> None:
    """Tells everybody, once Memcached has nothing old any more, but for the servers that are silent."""
    _copies.forget(keys)
    for server in silent:
        copies.fence(server)
    copies.tell(keys)


def _not_told(keys: Sequence[str], error: Exception) -> None:
    logger.warning("not everybody may know yet that %s changed: %s", " ".join(keys), error)


def _get_many(keys: list[str], view: View) -> dict[str, bytes]:
    """What the servers have of these keys: all are asked before the first answer is waited for.

    Not by pymemcache's own `get_many`, which spends 12 µs a key (measured) on reading an answer line by line.
    """
    questions = {server: _get(its_keys) for server, its_keys in _by_server(keys).items()}
    found: dict[str, bytes] = {}
    unread: list[str] = []
    try:
        for server, question in questions.items():
            if _ask(server, partial(_send, question), view):
                unread.append(server)
        while unread:
            # Also of a server that was given up meanwhile, by another thread.
            answer = _try(unread[0], partial(_receive, questions[unread[0]])) or END
            unread.pop(0)
            heads_and_values = answer.removesuffix(END).split(b"\r\n")
            heads, values = heads_and_values[::2], heads_and_values[1::2]
            found |= {head.split(b" ", 2)[1].decode(): value for head, value in zip(heads, values, strict=False)}
    finally:
        for server in unread:  # its answer would be taken for that of the next question
            _client(server).close()
    return found


def _get(keys: list[str]) -> bytes:
    question = f"get {' '.join(keys)}\r\n".encode()
    if not GET.fullmatch(question):
        raise ValueError(f"not all of these can be keys: {keys}")
    return question


def _send(question: bytes, client: Client) -> bool:
    if client.sock is None:
        client._connect()
    client.sock.sendall(question)
    return True


def _receive(question: bytes, client: Client) -> bytes:
    """The answer to a question that was sent; it is sent again if the connection was lost since."""
    if client.sock is None:
        _send(question, client)
    answer = bytearray()
    # No value ends as an answer does: what we store has a stamp before it, and no line break in it.
    while not answer.endswith(END):
        chunk = client.sock.recv(RECEIVED)
        if not chunk:
            raise MemcacheUnexpectedCloseError
        answer += chunk
        if answer.startswith(ERRORS):
            raise MemcacheServerError(bytes(answer[:200]).decode())
    return bytes(answer)


def _lease(keys: list[str], nonce: bytes, view: View) -> dict[str, tuple[bytes, bytes]]:
    """Takes leases where there is nothing; returns {key: (what is there now, its version)}."""

    def take(client: Client, its_keys: list[str]) -> dict[str, tuple[bytes, bytes]]:
        for key in its_keys:
            client.add(key, nonce, expire=LEASE_SECONDS, noreply=True)
        return client.gets_many(its_keys)

    texts: dict[str, tuple[bytes, bytes]] = {}
    for server, its_keys in _by_server(keys).items():
        texts |= _ask(server, lambda client, k=its_keys: take(client, k), view) or {}
    return texts


def _fill(fills: dict[str, tuple[bytes | None, bytes]], view: View) -> None:
    """Stores texts where nothing has touched the keys since they had these versions; None: takes the lease away."""

    def store(client: Client, its_keys: list[str]) -> None:
        for key in its_keys:
            text, version = fills[key]
            seconds = AT_ONCE if text is None else SECONDS_TO_LIVE
            client.cas(key, text or LEASE, version, expire=seconds, noreply=True)

    for server, its_keys in _by_server(fills).items():
        _ask(server, lambda client, k=its_keys: store(client, k), view)


def _replaced(kind: Kind, item_id: Any) -> bool:
    """Puts the committed value in the place of a cached one, or of a lease; returns whether no older one is left."""
    key = kind.key(item_id)
    (server,) = _by_server([key])
    if _is_down(server):
        return False
    try:
        for _ in range(REFRESHES):
            text, version = _call(server, lambda client: client.gets(key))
            if text is None:
                return True
            loaded = kind.load([item_id])
            if item_id not in loaded:
                return False
            value = kind.stamp + orjson.dumps(loaded[item_id])
            if _call(server, lambda client, v=value, n=version: client.cas(key, v, n, expire=SECONDS_TO_LIVE)):
                return True
    except ConnectionRefusedError:
        return True  # see _delete
    except Unavailable as error:
        _give_up(server, error)
    except Error as error:
        logger.warning("%s is deleted, since it cannot be read: %s", key, error)
    return False


def _delete(keys: Iterable[str]) -> list[str]:
    """Deletes keys; returns the servers that may still have one."""
    silent = []
    for server, its_keys in _by_server(keys).items():
        if _is_down(server):
            silent.append(server)
            continue
        try:
            _once_more(server, lambda client, k=its_keys: client.delete_many(k, noreply=False))
        except ConnectionRefusedError:
            # Nobody listens there, so nobody remembers: Memcached keeps nothing over its death.
            continue
        except Unavailable as error:
            _give_up(server, error)
            silent.append(server)
    return silent


def _once_more(server: str, question: Callable[[Client], Any]) -> Any:
    """Asks twice: it may have been us who were slow, and all that a server has is lost if we fence it off for that."""
    try:
        return _call(server, question)
    except TimeoutError:
        return _call(server, question)


def _is_down(server: str) -> bool:
    return _down_until.get(server, 0.0) > time.monotonic()


def _ask(server: str, question: Callable[[Client], Any], view: View) -> Any:
    """The answer of one server, or None when it is away, or fenced off."""
    fence = view.fences.get(server)
    if _is_down(server):
        return None
    if fence or server in _down_until:
        _down_until[server] = time.monotonic() + SECONDS_DOWN  # one tries; the others go on without it meanwhile
    if fence:
        _try(server, partial(_empty, server, fence))
        return None
    return _try(server, question)


def _empty(server: str, fence: bytes, client: Client) -> None:
    with suppress(*redis_client.Unavailable):
        if copies.fences().get(server) == fence:  # nobody else has done it meanwhile
            client.flush_all(noreply=False)
            copies.lift(server, fence)


def _try(server: str, question: Callable[[Client], Any]) -> Any:
    try:
        answer = _call(server, question)
    except Unavailable as error:
        _give_up(server, error)
        return None
    _down_until.pop(server, None)
    return answer


def _call(server: str, question: Callable[[Client], Any]) -> Any:
    """Asks a server; once more on a new connection if the old one was that of a server that has restarted since."""
    try:
        try:
            return question(_client(server))
        except _Hangup:
            _client(server).close()
            return question(_client(server))
    except BaseException:
        # Whatever interrupts us (a job's time limit, too), an answer may be under way.
        _client(server).close()
        raise


def _give_up(server: str, error: Exception) -> None:
    logger.warning("memcached %s is left alone for %s s: %s", server, SECONDS_DOWN, error)
    _down_until[server] = time.monotonic() + SECONDS_DOWN


def _client(server: str) -> Client:
    """This thread's connection to a server; pymemcache opens it anew after an error."""
    clients = _local.__dict__.setdefault("clients", {})
    if server not in clients:
        clients[server] = Client(server, connect_timeout=0.25, timeout=0.5, no_delay=True)
    return clients[server]


def _by_server(keys: Iterable[str]) -> dict[str, list[str]]:
    servers = settings.MEMCACHED
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(servers[crc32(key.encode()) % len(servers)], []).append(key)
    return groups
