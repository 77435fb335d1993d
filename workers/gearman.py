"""Talking to gearmand. It is the fast way to a worker, not the memory: that is the outbox."""

import json
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable
from zlib import crc32

import gearman
from django.conf import settings
from gearman.connection import GearmanConnection
from gearman.worker_handler import GearmanWorkerCommandHandler

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 0.5
SUBMIT_SECONDS = 1.0
SILENT_SECONDS = 2.0  # for a worker that has asked for a job
# One of several gearmands that is away is not asked again by each submit, nor each second by each worker.
REST_SECONDS = 5.0
# A host that is gone without a word ends the connection: else a worker would wait for the job that it asked it for.
KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 10_000),
)

_local = threading.local()
# Address of a gearmand that took a connection but gave no answer → when it is asked again, by any thread.
_silent_until: dict[tuple[str, int], float] = {}


class Connection(GearmanConnection):
    """pygearman's connection, with time-outs for a gearmand that is silent, which it lacks."""

    rests_until = 0.0

    @property
    def address(self) -> tuple[str, int]:
        return self.gearman_host, self.gearman_port

    def _create_client_socket(self) -> None:
        if time.monotonic() < max(self.rests_until, _silent_until.get(self.address, 0.0)):
            self.throw_exception(message="did not answer a moment ago")
        try:
            connected = socket.create_connection(self.address, CONNECT_SECONDS)
        except OSError as error:
            self.rests_until = time.monotonic() + REST_SECONDS
            self.throw_exception(exception=error)
        for level, option, value in KEEPALIVE:
            connected.setsockopt(level, option, value)
        self.set_socket(connected)


class Client(gearman.GearmanClient):
    connection_class = Connection
    turn = 0  # of `submit`

    def establish_request_connection(self, current_request: gearman.job.GearmanJobRequest) -> Connection:
        """To each job its gearmand, or if that is away the next: what is submitted again waits there already."""
        if current_request not in self.request_to_rotating_connection_queue:
            servers = deque(self.connection_list)
            servers.rotate(crc32(current_request.job.unique) + self.turn)
            self.request_to_rotating_connection_queue[current_request] = servers
        return super().establish_request_connection(current_request)


class _Handler(GearmanWorkerCommandHandler):
    """One gearmand's connection to a worker, which takes from all of them but does one job at a time.

    gearmand calls a connection that sleeps (NOOP), and not again before that has asked for a job (GRAB_JOB). pygearman
    goes back to sleep without asking if another connection has a job, or has asked for one: should another worker be
    quicker then, that gearmand would never call this one again. So each call is followed, now or later.
    """

    def recv_noop(self) -> bool:
        if self._acquire_job_lock():
            self._grab_job()
        elif not self._check_job_lock():
            self.connection_manager.called_by.append(self)
        return True


class Worker(gearman.GearmanWorker):
    connection_class = Connection
    command_handler_class = _Handler

    def __init__(self, hosts: list[str]) -> None:
        super().__init__(hosts)
        self.called_by: deque[_Handler] = deque()  # while busy with another one's job
        self.asked_at = 0.0

    def set_job_lock(self, command_handler: _Handler, lock: bool) -> bool:
        is_set = super().set_job_lock(command_handler, lock)
        if lock and is_set:
            self.asked_at = time.monotonic()
        while self.called_by and not self.has_job_lock():
            handler = self.called_by.popleft()
            if handler in self.handler_to_connection_map:  # it has not died since
                handler.recv_noop()
        return is_set

    def after_poll(self, any_activity: bool) -> bool:
        """Leaves a gearmand that was asked for a job and is silent: else that would keep this process from the others.

        (No job is at work here, so whoever has the lock waits for an answer.)
        """
        if self.has_job_lock() and time.monotonic() - self.asked_at > SILENT_SECONDS:
            silent = self.handler_to_connection_map[self.command_handler_holding_job_lock]
            logger.warning("gearmand %s:%d is silent", *silent.address)
            _silent_until[silent.address] = time.monotonic() + REST_SECONDS
            self.handle_error(silent)
        return True


class Unavailable(Exception):
    """gearmand did not take a job in time."""


def submit(database: str, jobs: Iterable[tuple[int, str]], turn: int = 0) -> None:
    """Hands outbox rows, (row's ID, job's name), to gearmand. Raises Unavailable.

    The row is the job's unique key there: one that is already waiting or running is not queued twice. Of several
    gearmands each job has its own; or, should it wait there for too long, at its next `turn` the one after.
    """
    requests = [
        {"task": name.encode(), "data": pack(database, row_id), "unique": f"{database}:{row_id}".encode()}
        for row_id, name in jobs
    ]
    try:
        try:
            _submit(requests, turn)
        except (gearman.errors.GearmanError, Unavailable):
            # A kept connection may be the corpse of a gearmand that has restarted since; and one that is silent is
            # left alone from now on. So once more, with new connections.
            _drop_client()
            _submit(requests, turn)
    except gearman.errors.GearmanError as error:
        _drop_client()
        raise Unavailable(type(error).__name__) from error
    except Unavailable:
        _drop_client()
        raise


def _submit(requests: list[dict], turn: int) -> None:
    client = _client()
    client.turn = turn
    submitted = client.submit_multiple_jobs(
        requests, background=True, wait_until_complete=False, poll_timeout=SUBMIT_SECONDS
    )
    late = [request for request in submitted if request.timed_out or request.state == gearman.JOB_UNKNOWN]
    if late:
        until = time.monotonic() + REST_SECONDS
        _silent_until.update((request.job.connection.address, until) for request in late if request.job.connection)
        raise Unavailable(f"no answer within {SUBMIT_SECONDS} s")


def pack(database: str, row_id: int) -> bytes:
    return json.dumps([database, row_id]).encode()


def unpack(data: bytes) -> tuple[str, int]:
    database, row_id = json.loads(data)
    return database, row_id


def _client() -> Client:
    """This thread's connection: pygearman's client is not safe for several threads."""
    if not hasattr(_local, "client"):
        _local.client = Client(settings.GEARMAN)
    return _local.client


def _drop_client() -> None:
    """After an error: an answer that comes late must not be taken for the answer to the next submit."""
    client = _local.__dict__.pop("client", None)
    if client is not None:
        client.shutdown()
