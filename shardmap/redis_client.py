"""Connections to Redis that give up in time; a Redis Cluster, or the master of the moment, is used like one server."""

import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any
from urllib.parse import unquote

import hiredis
import redis
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.backoff import NoBackoff
from redis.cluster import PRIMARY, ClusterNode
from redis.exceptions import AskError, ClusterDownError, RedisClusterException, SlotNotCoveredError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

# What any call to Redis may raise when the server is away, slow or still loading.
Unavailable = (redis.RedisError, RedisClusterException)

SECONDS_DOWN = 1  # a server that did not answer in time is left alone for so long: its callers wait once, not each
LONGEST_TRY = 3  # then one thread tries it, for at most so long; the others go on without it
TIMEOUTS = {"socket_connect_timeout": 0.5, "socket_timeout": 1}
TIMEVAL = struct.pack("ll", TIMEOUTS["socket_timeout"], 0)
# At once: a pooled connection may be the corpse of a server that has restarted since.
ONCE_MORE = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
CLUSTER = "redis+cluster://"
SENTINEL = "redis+sentinel://"
# After these, other nodes may have a cluster's slots.
TOPOLOGY_CHANGED = (redis.ConnectionError, redis.TimeoutError, ClusterDownError, SlotNotCoveredError)
# A server that is still loading its data answers seldom, and for a large map that lasts minutes.
SILENT = (redis.TimeoutError, redis.BusyLoadingError)

Client = redis.Redis | redis.RedisCluster
Command = tuple[bytes | str | int, ...]


class Server:
    """Whether a server was silent a moment ago, as this process knows."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._silent = False
        self.connections = 0  # that this process has opened to it by now
        self._next_try = 0.0
        self._tried_by: int | None = None

    def enter(self) -> None:
        """Raises TimeoutError while the server is silent, but for one thread that finds out whether it still is."""
        if not self._silent:
            return
        with self._lock:
            now = time.monotonic()
            if now < self._next_try and self._tried_by != threading.get_ident():
                raise redis.TimeoutError(f"{self._name} did not answer a moment ago")
            self._next_try, self._tried_by = now + LONGEST_TRY, threading.get_ident()

    def fell_silent(self) -> None:
        with self._lock:
            self._silent = True
            self._next_try, self._tried_by = time.monotonic() + SECONDS_DOWN, None

    def answered(self) -> None:
        self._silent = False


_servers: dict[str, Server] = {}
_local = threading.local()


class Connection(redis.Connection):
    """redis-py's connection, which does not ask a server that was silent a moment ago."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        name = f"{self.host}:{self.port}"
        self._server = _servers.setdefault(name, Server(name))
        self._owed = False  # replies

    def connect_check_health(self, *args, **options):  # also by what is sent once more; `connect` is not
        self._server.enter()
        before = self._sock
        try:
            super().connect_check_health(*args, **options)
        except SILENT:
            self._server.fell_silent()
            raise
        if self._sock is not before:
            self._server.connections += 1
            # The kernel's own time-outs: with Python's, each call is two, and gives other threads the turn twice.
            self._sock.settimeout(None)
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                self._sock.setsockopt(socket.SOL_SOCKET, option, TIMEVAL)

    def read_response(self, *args, **options):
        try:
            reply = super().read_response(*args, **options)
        except redis.RedisError as error:
            raise self._noted(error) from None
        self._server.answered()
        return reply

    def send(self, commands: Sequence[Command]) -> None:
        """Sends many commands at once.

        With `receive`, what a pipeline of redis-py does, with less work: `manage.py bench shardmap` has both.
        """
        if self._owed:  # whoever asked last was interrupted, and has not read what comes next
            self.disconnect()
        self._server.enter()
        if not self._sock:
            self.connect()
        self._owed = True
        try:
            self.send_packed_command([b"".join([hiredis.pack_command(command) for command in commands])])
        except redis.RedisError as error:
            raise self._noted(error) from None

    def receive(self, count: int) -> list:
        """The replies to as many commands; an error is among them as a value."""
        try:
            replies = [self._parser.read_response()]
            gets = self._parser._reader.gets
            while len(replies) < count:
                reply = gets()
                replies.append(self._parser.read_response() if reply is NOT_ENOUGH_DATA else reply)
        except BaseException as error:
            self.disconnect()  # the other replies are still to come, and nobody will read them
            if isinstance(error, OSError):  # such as a reset by a server that was killed
                raise redis.ConnectionError(f"{self.host}:{self.port}: {error}") from error
            raise self._noted(error) from None
        self._server.answered()
        self._owed = False
        return replies

    def _noted(self, error: BaseException) -> BaseException:
        """Notes an error if it says that the server is silent; returns what to raise."""
        if isinstance(error.__context__, BlockingIOError):  # the kernel's time-out
            error = redis.TimeoutError(f"timeout waiting for {self.host}:{self.port}")
        if isinstance(error, SILENT):
            self._server.fell_silent()
        return error


class Master:
    """Where the sentinels say that a master is: one of this for all connections of a process."""

    def __init__(self, sentinel: Sentinel, name: str) -> None:
        self._sentinel, self._name = sentinel, name
        self.address: tuple[str, int] | None = None

    def find(self) -> tuple[str, int]:
        """Raises TimeoutError while there is none: so one thread a second asks the sentinels, and not each."""
        try:
            self.address = self._sentinel.discover_master(self._name)
        except MasterNotFoundError as error:
            raise redis.TimeoutError(str(error)) from None
        return self.address


class MasterConnection(Connection):
    """A connection to the master of the moment; whether that is silent, is known of the master, whoever it is.

    One that has lost its part is told so by Sentinel, and then drops its clients. But a sentinel may be late to hear of
    it: so each server is asked whether it is the master.
    """

    def __init__(self, *args, master: Master, **options):
        super().__init__(*args, **options)
        self._master = master

    def connect_check_health(self, *args, **options):
        self._leave_former_master()
        super().connect_check_health(*args, **options)

    def send(self, commands: Sequence[Command]) -> None:
        self._leave_former_master()
        super().send(commands)

    def _leave_former_master(self) -> None:
        """It may be silent, and another thread has found the new one: nobody else need wait for it."""
        if self._sock and (self.host, self.port) != self._master.address:
            self.disconnect()

    def _connect(self):
        self.host, self.port = self._master.find()
        return super()._connect()

    def on_connect_check_health(self, *args, **options):
        super().on_connect_check_health(*args, **options)
        self.send_command("ROLE", check_health=False)
        if self.read_response()[0] != b"master":
            raise redis.TimeoutError(f"{self.host}:{self.port} is no master any more, or not yet")


class Cluster(redis.RedisCluster):
    """A Redis Cluster that goes on without a node that is lost, for the keys of the others."""

    refreshed = float("-inf")

    def refresh(self, lost: str | None) -> None:
        """Asks the nodes, the lost one last, who has which slots now; once in a while, however many keys are read."""
        if time.monotonic() > self.refreshed + SECONDS_DOWN:
            self.refreshed = time.monotonic()
            with suppress(*Unavailable):
                self.nodes_manager.initialize(last_failed_node_name=lost)


@cache
def redis_client(url: str) -> Client:
    """A thread-safe client that gives up after a second: who asks has something better to do than wait.

    The URL is that of a server; or of some nodes of a cluster: redis+cluster://:password@host:port,host:port
    or of the sentinels that watch a master of that name: redis+sentinel://:password@host:port,host:port/name
    Raises one of `Unavailable` when no node of a cluster answers.
    """
    if url.startswith(CLUSTER):
        return _cluster(url.removeprefix(CLUSTER))
    if url.startswith(SENTINEL):
        return redis.Redis(connection_pool=_watched(url.removeprefix(SENTINEL)))
    pool = redis.ConnectionPool.from_url(url, connection_class=Connection, retry=ONCE_MORE, **TIMEOUTS)
    return redis.Redis(connection_pool=pool)


def ask(client: Client, commands: Sequence[Command]) -> list:
    """The replies to many commands on keys, or EVALs of scripts, in one round trip a node.

    What went wrong with a command is its reply, as an exception: a lost node does not take the others' replies with it.
    The commands must be harmless when they are done twice.
    """
    if not commands:
        return []
    if isinstance(client, redis.Redis):
        return _replies(client, commands, _send(client, commands))
    replies: list[Any] = [None] * len(commands)
    places_of: dict[ClusterNode, list[int]] = {}
    for place, command in enumerate(commands):
        try:
            places_of.setdefault(client.get_node_from_key(_key_of(command)), []).append(place)
        except SlotNotCoveredError as error:
            replies[place] = error
    servers = {node: client.get_redis_connection(node) for node in places_of}
    asked = {node: [commands[place] for place in places] for node, places in places_of.items()}
    # All are asked before one is waited for: they work at the same time.
    sent = {node: _send(server, asked[node]) for node, server in servers.items()}
    lost = None
    for node, places in places_of.items():
        answers = _replies(servers[node], asked[node], sent[node])
        if isinstance(answers[0], (redis.ConnectionError, redis.TimeoutError)):
            lost = node.name
        for place, command, answer in zip(places, asked[node], answers, strict=True):
            replies[place] = _redirected(client, command, answer) if isinstance(answer, AskError) else answer
    if any(isinstance(reply, TOPOLOGY_CHANGED) for reply in replies):
        client.refresh(lost)
    return replies


def ask_all(client: Client, commands: Sequence[Command]) -> list:
    """`ask` for whom one error is as bad as many: raises the first."""
    return unless_error(ask(client, commands))


def unless_error(replies: list) -> list:
    """Raises the first that is an error."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


def connections(client: Client) -> int:
    """How many connections this process has opened to it by now: while that is the same, so are the servers."""
    return sum(_servers[name].connections for name in nodes(client) if name in _servers)


def disconnect() -> None:
    """Closes this thread's connections."""
    for connection in _local.__dict__.pop("connections", {}).values():
        connection.disconnect()


def nodes(client: Client) -> dict[str, redis.Redis]:
    """The server, or each of a cluster's that has keys of its own: "host:port" → its client."""
    if isinstance(client, redis.Redis):
        where = client.connection_pool.connection_kwargs
        return {f"{where['host']}:{where['port']}": client}
    return {node.name: node.redis_connection for node in client.get_primaries()}


def _cluster(address: str) -> Cluster:
    credentials, at, servers = address.rpartition("@")
    first, *others = servers.rstrip("/").split(",")
    return Cluster(
        url=f"redis://{credentials}{at}{first}",
        startup_nodes=[ClusterNode(host, int(port)) for host, _, port in (other.rpartition(":") for other in others)],
        connection_class=Connection,
        require_full_coverage=False,
        retry=ONCE_MORE,
        **TIMEOUTS,
    )


def _watched(address: str) -> redis.ConnectionPool:
    """Connections to a master that sentinels watch."""
    login, _, address = address.rpartition("@")
    sentinels, _, name = address.rpartition("/")
    password = unquote(login.removeprefix(":")) or None
    pairs = [(host, int(port)) for host, _, port in (one.rpartition(":") for one in sentinels.split(","))]
    master = Master(Sentinel(pairs, sentinel_kwargs={"password": password, "retry": ONCE_MORE, **TIMEOUTS}), name)
    called = {"host": name, "port": pairs[0][1]}  # wherever that is
    return redis.ConnectionPool(
        connection_class=MasterConnection, master=master, password=password, retry=ONCE_MORE, **called, **TIMEOUTS
    )


class SessionPool:
    """What Django's cache backend takes for a class of pools: its sessions go where all else goes."""

    @staticmethod
    def from_url(url: str, **options) -> redis.ConnectionPool:
        return redis_client(url).connection_pool


def _key_of(command: Command) -> bytes | str | int:
    """The key that says which node a command is for: all of a script's keys are in one slot."""
    return command[3] if command[0] == "EVAL" else command[1]


def _send(server: redis.Redis, commands: Sequence[Command]) -> Connection | redis.RedisError:
    """The connection on which the replies will come, or why none will."""
    connection = _connection_to(server)
    try:
        connection.send(commands)
    except redis.RedisError as error:
        return error
    return connection


def _replies(
    server: redis.Redis, commands: Sequence[Command], sent: Connection | redis.RedisError, once_more: bool = True
) -> list:
    error = sent
    if isinstance(sent, Connection):
        try:
            return sent.receive(len(commands))
        except redis.RedisError as failed:
            error = failed
    if once_more and isinstance(error, redis.ConnectionError):
        return _replies(server, commands, _send(server, commands), once_more=False)
    return [error] * len(commands)


def _connection_to(server: redis.Redis) -> Connection:
    """This thread's connection: the pool's way to one, and to see that it is alive, costs more than a question."""
    mine, pool = _local.__dict__.setdefault("connections", {}), server.connection_pool
    if pool not in mine:
        mine[pool] = pool.connection_class(**pool.connection_kwargs)
    return mine[pool]


def _redirected(client: Cluster, command: Command, error: AskError) -> Any:
    """The reply to a command whose slot has moved, or is moving; redis-py notes the new place."""
    if client.get_node(error.host, error.port) is None:
        # A node whose first slot is still on its way: redis-py follows only to those that it knows.
        node = ClusterNode(error.host, error.port, PRIMARY)
        client.nodes_manager.nodes_cache[node.name] = node
    try:
        return client.execute_command(*command)
    except Unavailable as failed:
        return failed
