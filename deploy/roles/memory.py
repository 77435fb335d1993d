"""The servers that live in memory: Redis, with its Sentinels, Memcached, gearmand."""

import shlex

from deploy.local.layout import Failed
from deploy.roles.place import ETC, STATE, UNITS, File, Part, Place, Service, ip, one_line, template, unit_files


def redis(place: Place, name: str, **persistence: str) -> Part:
    pair = place.named(place.inventory.redis[name.removeprefix("redis_")])
    if len(pair) > 1 and len(place.inventory.of("sentinel")) < 3:
        raise Failed(
            f"{name} has a replica, and nobody who would make it the master: three hosts need the role sentinel."
        )
    conf = File(
        f"{ETC}/{name}.conf",
        template(
            "redis/redis.conf",
            listen=place.ip,
            port=place.port(name),
            password=place.secrets["REDIS_PASSWORD"],
            data=f"{STATE}/{name}",
            # A fork that rewrites the append-only file may need as much again of what changes meanwhile.
            maxmemory=f"{place.memory_share() * 6 // 10}mb",
            cluster="no",
            **persistence,
        ),
        "redis",
        0o600,
    )
    # Else a fork is refused when the copy would not fit, although almost none of it is ever written.
    overcommit = File("/etc/sysctl.d/60-redis.conf", "vm.overcommit_memory = 1\n")
    unit = f"instagram-redis@{name}"
    # A master that were back before the Sentinels saw it die would have its replica copy that it is empty, or have all
    # wait until it has read its file.
    patience = File(f"{UNITS}/{unit}.service.d/restart.conf", f"[Service]\nRestartSec={15 if len(pair) > 1 else 1}\n")
    # A restart loses the feeds.
    service = Service(unit, [*unit_files("instagram-redis@"), patience, conf], "tell", place.port(name))
    steps = [] if place.host is pair[0] else [first_following(place, name, ip(pair[0]))]
    return Part(["redis-server"], [Service("systemd-sysctl", [overcommit], "restart"), service], prepare=steps)


def first_following(place: Place, name: str, master: str) -> tuple[str, str, str]:
    """Has a new Redis follow the master. Once: after that, it is the Sentinels who say whom it follows."""
    data, port = f"{STATE}/{name}", place.port(name)
    told = f"until redis-cli -h {place.ip} -p {port} REPLICAOF {master} {port} | grep -q ^OK; do sleep 0.1; done"
    password = f"$(sed -n 's/^requirepass //p' {ETC}/{name}.conf)"
    command = (
        f"touch {data}.new && systemctl start instagram-redis@{name}"
        f" && REDISCLI_AUTH={password} timeout 60 sh -c {shlex.quote(told)} && rm {data}.new"
    )
    return f"{name} follows {master}", f"test -e {data} && test ! -e {data}.new", command


def sentinel(place: Place) -> Part:
    # Sentinel rewrites it, and knows better who is the master.
    conf = File(
        f"{STATE}/sentinel/sentinel.conf",
        template(
            "redis/sentinel.conf",
            listen=place.ip,
            port=place.port("sentinel"),
            password=place.secrets["REDIS_PASSWORD"],
            data=f"{STATE}/sentinel",
            shardmap=first_redis(place, "shardmap").replace(":", " "),
            feeds=first_redis(place, "feeds").replace(":", " "),
            down_after_ms=5000,
        ),
        "redis",
        0o600,
        only_if_missing=True,
    )
    service = Service("instagram-sentinel", unit_files("instagram-sentinel"), "restart", place.port("sentinel"))
    return Part(["redis-server"], [service], [conf])


def memcached(place: Place) -> Part:
    flags = template(
        "memcached/memcached.conf",
        listen=place.ip,
        port=place.port("memcached"),
        megabytes=place.memory_share() * 8 // 10,
    )
    unit = unit_files("instagram-memcached", flags=one_line(flags))
    return Part(["memcached"], [Service("instagram-memcached", unit, "tell", place.port("memcached"))])


def gearman(place: Place) -> Part:
    flags = template("gearmand/gearmand.conf", listen=place.ip, port=place.port("gearman"))
    unit = unit_files("instagram-gearmand", flags=one_line(flags))
    # The outbox submits again what a restart loses.
    service = Service("instagram-gearmand", unit, "restart", place.port("gearman"))
    return Part(["gearman-job-server"], [service])


def first_redis(place: Place, name: str) -> str:
    """`ip:port` of the first master."""
    return f"{ip(place.named(place.inventory.redis[name])[0])}:{place.port(f'redis_{name}')}"
