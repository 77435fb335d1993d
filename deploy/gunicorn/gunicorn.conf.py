"""gunicorn, the app server: 2 processes of 16 threads each (one in the local stack, which has two app hosts)."""

import ctypes
import gc
import json
import os
import signal

import sentry_sdk
from gunicorn import util

bind = os.environ["GUNICORN_BIND"]
wsgi_app = "instagram.wsgi:application"
# The code is loaded once, before anything is listened to. Else a start would take connections that nobody answers for
# the seconds of loading; so, nginx is refused and asks another. And a process that died is replaced at once.
preload_app = True

# Threads, since a request mostly waits for Redis, Memcached and Postgres. 32 at once fit pgbouncer's pool of
# 20: few of them are in a transaction at the same moment.
worker_class = "gthread"
workers = 2
threads = 16
backlog = 1024

# Every network call in the app has a time-out below this; who exceeds it is stuck, and gets replaced.
timeout = 30
# On a deploy, requests get this long to finish.
graceful_timeout = 15
# Longer than nginx keeps an idle connection (60 s), so that nginx never writes into one that is being closed.
keepalive = 75

# As much as nginx takes (large_client_header_buffers), whose own error for more is an envelope.
limit_request_line = 8190
limit_request_fields = 32768

# Memory that leaks is given back, seldom: a new worker has no copies of the cache. The jitter keeps both from
# restarting at once.
max_requests = 500_000
max_requests_jitter = 50_000

# A heartbeat on a disk stalls when the disk does.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108

# nginx writes the access log.
accesslog = None
errorlog = "-"
# supervisor (here) and systemd (production) control it; a second way in is one too many.
control_socket_disable = True
loglevel = "info"

# Who may say that a client uses TLS is in FORWARDED_ALLOW_IPS (gunicorn's own): the nginx hosts; else this machine.
# nginx sets this one. With the others that gunicorn believes, a client could contradict it, and would be refused.
secure_scheme_headers = {"X-FORWARDED-PROTO": "https"}

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def when_ready(server) -> None:
    """Before the workers are forked: garbage collection no longer looks at what is loaded. Looking writes to it, so
    that each worker would get a copy of its own, and costs 0.2 s of CPU (measured) in each process that ends.

    (Instagram's engineers gave `gc.freeze` to Python 3.7 for this: docs.python.org/3/library/gc.html)
    """
    gc.collect()
    gc.freeze()


def post_fork(server, worker) -> None:
    """A worker dies with its master. By itself it would keep the port for as long as nginx keeps its connections,
    while the next master waits for the port and nobody accepts."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def worker_exit(server, worker) -> None:
    """What Sentry is to be told is sent before the worker ends, or given up."""
    sentry_sdk.flush(timeout=2)


def write_error(sock, status: int, reason: str, message: str) -> None:
    """What gunicorn refuses before the app sees it (a raw "é" in the URL, two Content-Types) gets an envelope, too."""
    error_type = "APIError" if status >= 500 else "APIInvalidParametersError"
    meta = {"code": status, "error_type": error_type, "error_message": message or reason}
    body = json.dumps({"meta": meta})
    head = f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/json; charset=utf-8\r\n"
    util.write_nonblock(sock, f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())


util.write_error = write_error  # there is no setting for it
