"""`/healthz`: is this process alive? `/readyz`: and can it reach everything that it needs, one line each?"""

import socket
from collections.abc import Callable
from functools import partial

from django.conf import settings
from django.db import connections
from django.http import HttpRequest, HttpResponse

from photos import storage
from shardmap.redis_client import redis_client

SECONDS = 1


def healthz(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok\n", content_type="text/plain")


def readyz(request: HttpRequest) -> HttpResponse:
    """200 if all is well, else 503; each line is `name: ok`, or `name: ` and the error."""
    lines, ready = [], True
    for name, check in _checks().items():
        try:
            check()
            lines.append(f"{name}: ok")
        except Exception as error:
            ready = False
            lines.append(f"{name}: {type(error).__name__}")
    return HttpResponse("\n".join(lines) + "\n", status=200 if ready else 503, content_type="text/plain")


def _checks() -> dict[str, Callable[[], object]]:
    checks: dict[str, Callable[[], object]] = {}
    for alias in ["default", *settings.SHARD_SERVERS]:
        checks[f"postgres {alias}"] = partial(_select_one, alias)
    checks["redis shardmap"] = redis_client(settings.REDIS_SHARDMAP_URL).ping
    checks["redis feeds"] = redis_client(settings.REDIS_FEEDS_URL).ping
    # Memcached and gearmand answer this line alike; so no client library with connections to keep is needed.
    for server in settings.MEMCACHED:
        checks[f"memcached {server}"] = partial(_ask_version, server)
    for server in settings.GEARMAN:
        checks[f"gearmand {server}"] = partial(_ask_version, server)
    checks["s3"] = storage.check
    return checks


def _select_one(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")


def _ask_version(server: str) -> None:
    host, _, port = server.rpartition(":")
    with socket.create_connection((host, int(port)), SECONDS) as connection:
        connection.sendall(b"version\r\n")
        if not connection.recv(100):
            raise ConnectionError("closed without an answer")
