"""Reads through Memcached that are never wrong, only sometimes slow.

The danger of a read-through cache is the late fill: a process reads a row, another changes the row and deletes the
cached copy, and then the first one stores what it had read. Leases close it (Nishtala et al., "Scaling Memcache at
Facebook", NSDI 2013, section 3.2.1), made here of plain Memcached commands:

    miss → add(key, lease)          a placeholder of our own; fails when somebody else was first
         → gets(key)                our lease, with its version
         → read the row
         → cas(key, row, version)   stored only if nothing touched the key since

Whoever changes a row deletes the key after the commit. That takes the lease away too, so a fill that began before
finds its version gone and stores nothing.

A key lives on `servers[crc32(key) % n]` and nowhere else. Libraries that send a dead server's keys to its neighbours
come back to stale copies once it returns; here, a server that is away is a miss.

How a change reaches the cache for sure: the service calls `forget` after its commit, and the job that it wrote to
the outbox with the change calls `forget_surely`, which fails, and so is tried again, until it has succeeded.
"""

import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any
from zlib import crc32

import orjson
from django.conf import settings
from pymemcache.client.base import Client
from pymemcache.exceptions import MemcacheError, MemcacheServerError, MemcacheUnexpectedCloseError

logger = logging.getLogger(__name__)

SECONDS_TO_LIVE = 24 * 3600  # a bound on any mistake of ours, not the way rows stay fresh
LEASE_SECONDS = 10  # longer than any read of a row may take
SECONDS_DOWN = 1  # a server that failed is left alone for so long; then one caller tries, and waits
LEASE = b"?"  # no value begins so
PARSED = 20_000  # values that a process keeps parsed, of at most MOST_PARSED bytes: some 70 MB
MOST_PARSED = 4_000

GET = re.compile(rb"get( [!-~]{1,250})+\r\n")
END = b"END\r\n"
ERRORS = (b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR")
RECEIVED = 1 << 16

Unavailable = (MemcacheError, OSError)
_Hangup = (MemcacheUnexpectedCloseError, ConnectionResetError, BrokenPipeError)

_local = threading.local()
_down_until: dict[str, float] = {}


@dataclass(frozen=True)
class Kind:
    """One kind of cached thing: how its keys are named, and how those that are missing are read from the truth.

    `load` gets the IDs that the cache lacks and returns {id: what `json` can hold}; what does not exist it leaves
    out, and that is asked for anew each time. `shape` names the value's fields: what code of another shape has cached,
    before a deploy or during one, is a miss. (The key stays the same, so that either code's invalidations count.)
    """

    prefix: str
    load: Callable[[list], dict[Any, Any]]
    shape: str

    def key(self, item_id: Any) -> str:
        return f"{self.prefix}:{item_id}"

    @property
    def stamp(self) -> bytes:
        """What cached values of this shape begin with."""
        return b"%08x " % crc32(self.shape.encode())


def fetch(*wanted: tuple[Kind, Iterable]) -> list[dict[Any, Any]]:
    """Things of several kinds, one round trip a server: `users, media = fetch((USERS, user_ids), (MEDIA, media_ids))`.

    Returns a dict {id: value} for each pair. Misses cost one more round trip for the leases and their kind's `load`.
    A value is shared with all who fetch it: it must not be changed.
    """
    keys = [{item_id: kind.key(item_id) for item_id in item_ids} for kind, item_ids in wanted]
    cached = _get_many([key for of_kind in keys for key in of_kind.values()])
    return [_with_misses_filled(kind, of_kind, cached) for (kind, _), of_kind in zip(wanted, keys, strict=True)]


def _with_misses_filled(kind: Kind, keys: dict[Any, str], cached: dict[str, bytes]) -> dict[Any, Any]:
    stamp = kind.stamp
    found = {
        item_id: _value(text) for item_id, key in keys.items() if (text := cached.get(key)) and text.startswith(stamp)
    }
    if len(found) == len(keys):
        return found
    missing = {item_id: key for item_id, key in keys.items() if item_id not in found}
    # The leases first, the rows after: a row must not be older than its lease.
    versions = _lease(list(missing.values()), stamp)
    loaded = kind.load(list(missing))
    fills = {
        missing[item_id]: (stamp + orjson.dumps(value), versions[missing[item_id]])
        for item_id, value in loaded.items()
        if missing[item_id] in versions
    }
    _fill(fills)
    return found | loaded


def _value(text: bytes) -> Any:
    """What a cached text holds. What many read is parsed once; what was changed is another text."""
    return _parsed_once(text) if len(text) <= MOST_PARSED else _parsed(text)


def _parsed(text: bytes) -> Any:
    return orjson.loads(text.partition(b" ")[2])  # behind the stamp


_parsed_once = lru_cache(PARSED)(_parsed)


def forget(*keys: str) -> None:
    """Deletes keys after a change was committed; a server that is away is passed over (see `forget_surely`)."""
    _delete(keys, surely=False)


def forget_surely(*keys: str) -> None:
    """Deletes keys; raises one of `Unavailable` when a server may still hold one. For jobs, which are tried again."""
    _delete(keys, surely=True)


def _get_many(keys: list[str]) -> dict[str, bytes]:
    """What the servers have of these keys: all are asked before the first answer is waited for.

    Not by pymemcache's own `get_many`, which spends 12 µs a key (measured) on reading an answer line by line.
    """
    questions = {server: _get(its_keys) for server, its_keys in _by_server(keys).items()}
    found: dict[str, bytes] = {}
    unread: list[str] = []
    try:
        for server, question in questions.items():
            if _ask(server, partial(_send, question)):
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


def _lease(keys: list[str], stamp: bytes) -> dict[str, bytes]:
    """Takes leases; returns {key: version} of those that are now ours.

    A value of another shape is as good as a lease: it may be replaced, unless something touches the key meanwhile.
    """
    ours: dict[str, bytes] = {}
    nonce = LEASE + secrets.token_bytes(12).hex().encode()

    def take(client: Client, its_keys: list[str]) -> dict[str, tuple[bytes, bytes]]:
        for key in its_keys:
            client.add(key, nonce, expire=LEASE_SECONDS, noreply=True)
        return client.gets_many(its_keys)

    for server, its_keys in _by_server(keys).items():
        answers = _ask(server, lambda client, k=its_keys: take(client, k)) or {}
        ours |= {
            key: version
            for key, (value, version) in answers.items()
            if value == nonce or not value.startswith((LEASE, stamp))
        }
    return ours


def _fill(fills: dict[str, tuple[bytes, bytes]]) -> None:
    def store(client: Client, its_keys: list[str]) -> None:
        for key in its_keys:
            value, version = fills[key]
            client.cas(key, value, version, expire=SECONDS_TO_LIVE, noreply=True)

    for server, its_keys in _by_server(fills).items():
        _ask(server, lambda client, k=its_keys: store(client, k))


def _delete(keys: Iterable[str], surely: bool) -> None:
    for server, its_keys in _by_server(keys).items():
        try:
            _call(server, lambda client, k=its_keys: client.delete_many(k, noreply=False))
        except ConnectionRefusedError:
            # Nobody listens there, so nobody remembers: Memcached keeps nothing over its death.
            continue
        except Unavailable as error:
            _give_up(server, error)
            if surely:
                raise


def _ask(server: str, question: Callable[[Client], Any]) -> Any:
    """The answer of one server, or None when it is away."""
    until = _down_until.get(server)
    if until is not None:
        if until > time.monotonic():
            return None
        _down_until[server] = time.monotonic() + SECONDS_DOWN  # one tries; the others go on without it meanwhile
    return _try(server, question)


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
