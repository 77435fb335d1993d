"""Which server listens on which port: the one place that says so.

Everything listens on 127.0.0.1. No port is the default port of its server, so that the stack runs beside whatever
else is installed on the machine; all of them lie in one small range, so that a clash is easy to see.
"""

import errno
import os
import socket
from pathlib import Path

HOST = "127.0.0.1"

DEV_PORTS = {
    "edge": 8000,
    "cdn": 8001,
    "supervisor": 8002,
    "gunicorn_1": 8003,
    "pyapns": 8004,
    "apns": 8005,
    "apns_silence": 8006,
    "social": 8007,
    "munin_node": 8008,
    "pagerduty": 8009,
    "postgres_a": 8010,
    "postgres_b": 8011,
    "pgbouncer": 8012,
    "redis_shardmap": 8013,
    "redis_feeds": 8014,
    "memcached_1": 8015,
    "memcached_2": 8016,
    "gearmand_1": 8017,
    "postgres_a_replica": 8018,
    "postgres_b_replica": 8019,
    "s3": 8020,
    "s3_grpc": 8021,
    "weed_master": 8022,
    "weed_master_grpc": 8023,
    "weed_volume": 8024,
    "weed_volume_grpc": 8025,
    "weed_filer": 8026,
    "weed_filer_grpc": 8027,
    "s3_tls": 8028,
    # From 8030 on, the tests start a Redis Cluster, from 8040 on, Sentinels with theirs (tests/redis_sentinel.py).
    "edge_1": 8060,
    "edge_2": 8061,
    "edge_3": 8062,
    "gunicorn_2": 8063,
    "gearmand_2": 8064,
    "haproxy_status": 8065,
    "bugsink": 8066,
}

# A copy that is restored from a backup listens on a port so much higher than its original's.
COPIES_AT = 100

# A stack's ports are the dev ports plus this, so that `make test` works while `make run` is up. Benches that fill or
# empty whole servers have a stack of their own too, and so has each process of `make test`.
OFFSETS = {"dev": 0, "test": 200, "bench": 400, "test2": 600, "test3": 800, "test4": 1000}


def ports_of(stack: str) -> dict[str, int]:
    """Server's name → its port in the stack of that name."""
    return {server: port + OFFSETS[stack] for server, port in DEV_PORTS.items()}


def taken_ports(ports: dict[str, int]) -> list[str]:
    """A sentence for each port on which something listens: which port, wanted by what, held by whom."""
    return [
        f"Port {port} of {HOST} is taken by {holder_of(port)}; {server} needs it."
        for server, port in ports.items()
        if is_taken(port)
    ]


def is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return True
    return False


def holder_of(port: int) -> str:
    """The process that listens on a port, as far as /proc tells us."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            local, state, inode = (row.split()[column] for column in (1, 3, 9))
            if state == "0A" and int(local.rpartition(":")[2], 16) == port:  # 0A: listening
                inodes.add(f"socket:[{inode}]")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(fd) in inodes for fd in (process / "fd").iterdir()):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                return f"process {process.name} ({command[:120]})"
        except OSError:
            continue  # gone meanwhile, or another user's
    return "another user's process"
