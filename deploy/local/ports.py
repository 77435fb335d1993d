"""Which server listens on which port: the one place that says so.

Everything listens on 127.0.0.1. No port is the default port of its server, so that the stack runs beside whatever
else is installed on the machine; all of them lie in one small range, so that a clash is easy to see.
"""

HOST = "127.0.0.1"

DEV_PORTS = {
    "edge": 8000,
    "cdn": 8001,
    "supervisor": 8002,
    "gunicorn": 8003,
    "postgres_a": 8010,
    "postgres_b": 8011,
    "pgbouncer": 8012,
    "redis_shardmap": 8013,
    "redis_feeds": 8014,
    "memcached_1": 8015,
    "memcached_2": 8016,
    "gearmand": 8017,
    "s3": 8020,
    "s3_grpc": 8021,
    "weed_master": 8022,
    "weed_master_grpc": 8023,
    "weed_volume": 8024,
    "weed_volume_grpc": 8025,
    "weed_filer": 8026,
    "weed_filer_grpc": 8027,
}

# A stack's ports are the dev ports plus this, so that `make test` works while `make run` is up.
OFFSETS = {"dev": 0, "test": 200}


def ports_of(stack: str) -> dict[str, int]:
    """Server's name → its port in the stack of that name."""
    return {server: port + OFFSETS[stack] for server, port in DEV_PORTS.items()}
