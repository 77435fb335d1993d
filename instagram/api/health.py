"""`/healthz`: is this process alive? `/readyz`: and can it reach everything that it needs, one line each?

`/pingdom.xml` is the latter for Pingdom, which asks from outside. Everybody else may ask, too: so a process asks its
servers once a second at most, however often it is asked.
"""

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

from django.conf import settings
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.utils.html import escape

from photos import storage
from shardmap.redis_client import redis_client

STARTED = time.monotonic()
SECONDS = 3  # for all checks together
REMEMBERED_SECONDS = 1
MAP = "redis shardmap"  # without it, or one of its nodes, all is served, from the shards
SPARE = ("memcached", "gearmand")  # while one of them is left, nobody notices that others are away


@dataclass
class Round:
    """What all checks said when somebody asked."""

    results: dict[str, str]  # each thing that we need → "ok", or what is wrong with it
    milliseconds: float
    ended: float  # by time.monotonic


_last = Round({}, 0, ended=float("-inf"))
_asking = threading.Lock()


def healthz(request: HttpRequest) -> HttpResponse:
    """Says, for `fab deploy` and `fab status`, which release the process runs, and for how many seconds."""
    headers = {"X-Release": settings.RELEASE, "X-Uptime": f"{time.monotonic() - STARTED:.0f}"}
    return HttpResponse("ok\n", content_type="text/plain", headers=headers)


def readyz(request: HttpRequest) -> HttpResponse:
    """200 if users can be served, else 503; each line is `name: ok`, or `name: ` and the error.

    For people and for monitoring. No load balancer may ask it: what is away is away for all app servers.
    """
    results = _known().results
    status = 200 if _can_serve(results) else 503
    lines = "".join(f"{name}: {result}\n" for name, result in results.items())
    return HttpResponse(lines, status=status, content_type="text/plain")


def pingdom(request: HttpRequest) -> HttpResponse:
    """The answer to an "HTTP custom check" of Pingdom: a status other than OK counts as down; the time is in ms.

    It is a 200 even then: Pingdom alerts with the status that it reads, which says what is wrong; a 503 would only
    say that something is. (documentation.solarwinds.com, "HTTP Custom Check")
    """
    known = _known()
    wrong = [f"{name}: {result}" for name, result in known.results.items() if result != "ok"]
    return HttpResponse(
        f"<pingdom_http_custom_check><status>{escape(', '.join(wrong) or 'OK')}</status>"
        f"<response_time>{known.milliseconds:.3f}</response_time></pingdom_http_custom_check>\n",
        content_type="text/xml; charset=utf-8",
    )


def _can_serve(results: dict[str, str]) -> bool:
    """Whether all that cannot be done without is well, and one of each kind of which there are spares."""
    needed: dict[str, bool] = {}
    for name, result in results.items():
        kind = name.split()[0]
        need = kind if kind in SPARE else name
        needed[need] = needed.get(need, False) or result == "ok"
    needed.pop(MAP)
    return all(needed.values())


def _known() -> Round:
    """The last round of checks, or a new one when that is longer ago than a second.

    While somebody waits for a new one, and perhaps for a server that hangs, others get the last, if that is no
    older than some seconds: they hold no thread.
    """
    global _last
    if _asking.acquire(blocking=time.monotonic() > _last.ended + REMEMBERED_SECONDS + SECONDS):
        try:
            if time.monotonic() > _last.ended + REMEMBERED_SECONDS:
                _last = _ask_all()
        finally:
            _asking.release()
    return _last


def _ask_all() -> Round:
    began = time.monotonic()
    checks = _checks()
    pool = ThreadPoolExecutor(len(checks))
    running = {name: pool.submit(check) for name, check in checks.items()}
    wait(running.values(), SECONDS)
    pool.shutdown(wait=False)
    ended = time.monotonic()
    return Round({name: _result(check) for name, check in running.items()}, (ended - began) * 1000, ended)


def _result(check: Future) -> str:
    if not check.done():
        return f"no answer within {SECONDS} s"
    return type(check.exception()).__name__ if check.exception() else "ok"


def _checks() -> dict[str, Callable[[], object]]:
    checks: dict[str, Callable[[], object]] = {}
    for alias in ["default", *settings.SHARD_SERVERS]:
        checks[f"postgres {alias}"] = partial(_select_one, alias)
    checks[MAP] = lambda: redis_client(settings.REDIS_SHARDMAP_URL).ping()
    checks["redis feeds"] = lambda: redis_client(settings.REDIS_FEEDS_URL).ping()
    # Memcached and gearmand answer this line alike; so no client library with connections to keep is needed.
    for number, server in enumerate(settings.MEMCACHED, 1):
        checks[f"memcached {number}"] = partial(_ask_version, server)
    for number, server in enumerate(settings.GEARMAN, 1):
        checks[f"gearmand {number}"] = partial(_ask_version, server)
    checks["s3"] = storage.check
    return checks


def _select_one(alias: str) -> None:
    try:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")
    finally:
        connections[alias].close()  # the thread ends, and its connection with it


def _ask_version(server: str) -> None:
    host, _, port = server.rpartition(":")
    with socket.create_connection((host, int(port)), 1) as connection:
        connection.sendall(b"version\r\n")
        if not connection.recv(100):
            raise ConnectionError("closed without an answer")
