"""What each role of the inventory means for a host that has it: packages, configuration, services.

Nothing here talks to a host: `fab provision` (deploy/provision.py) brings there what these functions return.
"""

import os
import re
import shlex
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from deploy.failover import CREATE_SLOT, DROP_LOST_SLOT
from deploy.failover import NAME as REPLICA
from deploy.firewall import ruleset
from deploy.hosts import Host, Inventory
from deploy.local.layout import DEPLOY, Failed, render
from deploy.local.programs import DEBIANS_PLUGINS, HOST_PLUGINS, ROLE_SETTINGS, ROLES, munin_master_lines
from deploy.rotation import app_servers

ETC = "/etc/instagram"
STATE = "/var/lib/instagram"
UNITS = "/etc/systemd/system"
APNS_KEY = f"{ETC}/apns.p8"
METRICS = "/run/instagram-metrics"  # as RuntimeDirectory= of the units

# What all hosts get. Tokens and signatures are good for minutes: chrony keeps the clock right. Without dbus, `deploy`
# could not ask systemd how a service is.
BASE_PACKAGES = ["ca-certificates", "chrony", "dbus", "logrotate", "nftables", "sudo"]
APP_PACKAGES = ["python3", "python3-venv"]

# The operator's secrets (deploy/secrets.example.env): those that open a server of ours, and settings of the app.
SERVER_SECRETS = (
    *("INSTAGRAM_PASSWORD", "POSTGRES_PASSWORD", "REPLICATOR_PASSWORD", "PGBOUNCER_PASSWORD", "REDIS_PASSWORD"),
    *("BACKUPS_ACCESS_KEY", "BACKUPS_SECRET_KEY", "BACKUPS_PASSPHRASE"),
    *("SNAPSHOTS_ACCESS_KEY", "SNAPSHOTS_SECRET_KEY"),
)
APP_SECRETS = ("SECRET_KEY", "S3_ACCESS_KEY", "S3_SECRET_KEY", "CREDENTIALS_KEYS")
OPTIONAL_SECRETS = (
    *("TWITTER_KEY", "TWITTER_SECRET", "FACEBOOK_ID", "FACEBOOK_SECRET", "SENTRY_DSN"),
    *("APNS_KEY_ID", "APNS_TEAM_ID"),
)
PAGERDUTY_URL = "https://events.pagerduty.com/v2/enqueue"

TIMERS = ("instagram-backup@full.timer", "instagram-backup@diff.timer")

# Of a Postgres' 100 (postgresql.conf); the rest is for people, migrations, and the pools' reserves.
CONNECTIONS_OF_ALL_POOLS = 72


@dataclass
class File:
    path: str
    text: str
    owner: str = "root"
    mode: int = 0o644
    only_if_missing: bool = False  # others change it, and know better
    merge: Callable[[str], str] | None = None  # what is to become of what is there, which others change


@dataclass
class Service:
    """A systemd unit with the files that it reads, and what their change asks for: to "reload", to "restart", or to
    "tell" an operator, who chooses the time, since a restart would lose something or cut everybody off."""

    unit: str
    files: list[File]
    on_change: str
    port: int | None = None  # it is up when it listens there
    needs_release: bool = False


@dataclass
class Part:
    """What a host needs for one role."""

    packages: list[str]
    services: list[Service]
    files: list[File] = field(default_factory=list)  # that no service reads
    prepare: list[tuple[str, str, str]] = field(default_factory=list)  # name, shell: is it done? shell: do it


@dataclass
class Place:
    """A host among all others, with what its configuration depends on."""

    host: Host
    inventory: Inventory
    secrets: dict[str, str]
    memory_mb: int
    cores: int

    @property
    def ip(self) -> str:
        return ip(self.host)

    def port(self, role: str) -> int:
        data = self.inventory.roles[role]
        return data["listen"] if "listen" in data else data["port"]

    def addresses(self, role: str) -> list[str]:
        """`ip:port` of each host that has the role."""
        return [f"{ip(host)}:{self.port(role)}" for host in self.inventory.of(role)]

    def memory_share(self) -> int:
        """MB for each of the servers here that keep data in memory."""
        greedy = [role for role in self.host.roles if role.startswith(("postgres", "redis", "memcached"))]
        return self.memory_mb // len(greedy)

    def pair(self, server: str) -> list[Host]:
        """The hosts of a physical server: its primary, as far as this host has to know, and then its replica."""
        return self.named(self.inventory.postgres[server])

    def named(self, names: list[str]) -> list[Host]:
        hosts = {host.name: host for host in self.inventory.hosts}
        return [hosts[name] for name in names]


def ip(host: Host) -> str:
    """Servers listen on addresses, and wait for no name server to come up."""
    return socket.gethostbyname(host.address)


# The app's settings


def environment(place: Place) -> dict[str, str]:
    """/etc/instagram/env: the inventory's settings, where all servers are, and the app's secrets."""
    secrets = place.secrets

    pgbouncer = f"{place.ip}:{place.port('pgbouncer')}"
    if "pgbouncer" not in place.host.roles:
        pgbouncer = place.addresses("pgbouncer")[0]

    def pooled(database: str) -> str:
        return postgres_url(place, "INSTAGRAM", pgbouncer, database)

    servers = place.inventory.postgres

    settings = {
        **place.inventory.settings,
        "DIRECTORY_URL": pooled("directory"),
        "SHARD_SERVERS": " ".join(f"{alias}={pooled(f'shards_{alias}')}" for alias in servers),
        "SHARD_REPLICAS": " ".join(
            f"{alias}={pooled(f'shards_{alias}_replica')}" for alias in servers if len(place.pair(alias)) > 1
        ),
        "REDIS_SHARDMAP_URL": redis_url(place, "shardmap"),
        "REDIS_FEEDS_URL": redis_url(place, "feeds"),
        "MEMCACHED": ",".join(place.addresses("memcached")),
        "GEARMAN": ",".join(place.addresses("gearman")),
        # On loopback alone, beside the workers: who reaches it, may notify all phones.
        "PYAPNS_URL": f"http://127.0.0.1:{place.port('push')}/",
        "METRICS_DIR": METRICS,
        # Whom gunicorn believes that a request came by https.
        "FORWARDED_ALLOW_IPS": ",".join(["127.0.0.1", *(ip(edge) for edge in place.inventory.of("edge"))]),
    }
    if "push" in place.host.roles and "APNS_KEY_FILE" in secrets:
        settings["APNS_KEY_FILE"] = APNS_KEY
    wanted = {*APP_SECRETS, *OPTIONAL_SECRETS}
    return settings | {name: value for name, value in secrets.items() if name in wanted}


def migration_environment(place: Place) -> dict[str, str]:
    """/etc/instagram/migrations.env: to Postgres itself, since pgbouncer cuts a statement off after 10 s."""
    servers = list(place.inventory.postgres)

    def direct(alias: str, database: str, role: str = "INSTAGRAM") -> str:
        # Whichever of them is the primary, since the last failover.
        pair = ",".join(f"{ip(host)}:{place.port('postgres')}" for host in place.pair(alias))
        return postgres_url(place, role, pair, database) + "?target_session_attrs=primary"

    return {
        "DIRECTORY_URL": direct(servers[0], "directory"),
        "SHARD_SERVERS": " ".join(f"{alias}={direct(alias, f'shards_{alias}')}" for alias in servers),
        "SHARD_ADMINS": " ".join(f"{alias}={direct(alias, f'shards_{alias}', 'POSTGRES')}" for alias in servers),
        "DATABASE_ANSWER_SECONDS": "3600",
    }


def postgres_url(place: Place, role: str, address: str, database: str) -> str:
    password = quote(place.secrets[f"{role}_PASSWORD"], safe="")
    return f"postgresql://{role.lower()}:{password}@{address}/{database}"


def redis_url(place: Place, name: str) -> str:
    """Of the master of the moment, whom Sentinels know; without these, of the one that there is."""
    password = quote(place.secrets["REDIS_PASSWORD"], safe="")
    if sentinels := place.addresses("sentinel"):
        return f"redis+sentinel://:{password}@{','.join(sentinels)}/{name}"
    return f"redis://:{password}@{first_redis(place, name)}/0"


def first_redis(place: Place, name: str) -> str:
    """`ip:port` of the first master."""
    return f"{ip(place.named(place.inventory.redis[name])[0])}:{place.port(f'redis_{name}')}"


# What every host has


def base(place: Place) -> Part:
    limit = File(
        "/etc/systemd/journald.conf.d/instagram.conf",
        "# All logs but nginx' access log are in the journal: as many as this, the oldest go first.\n"
        "[Journal]\nSystemMaxUse=2G\n",
    )
    commands = [
        f"/usr/bin/{value.removeprefix('sudo ').format(port=port)}"
        for role in place.host.roles.values()
        for value in role.values()
        if str(value).startswith("sudo system")
        for port in role.get("slots", [""])
    ]
    rights = f"deploy ALL=(root) NOPASSWD: {', '.join(sorted(commands))}\n" if commands else ""
    if {"postgres", "pgbouncer"} & place.host.roles.keys():
        rights += "deploy ALL=(postgres) NOPASSWD: ALL\n"
    files = [
        File(
            "/etc/sudoers.d/instagram",
            f"# What `fab deploy`, `fab failover` and their sisters may do as others, and no more.\n{rights}",
            mode=0o440,
        ),
        File(f"{ETC}/firewall.nft", ruleset(place.host, place.inventory, ip)),
    ]
    return Part(BASE_PACKAGES, [Service("systemd-journald", [limit], "restart")], files)


# The roles


def app(place: Place) -> Part:
    slots = place.host.roles["app"]["slots"]
    return ours(place, *(running(f"instagram-gunicorn@{port}") for port in slots), address=place.ip)


def worker(place: Place) -> Part:
    # A job mostly waits; photos.process, which does not, is spread over the cores by the kernel.
    return ours(place, *(running(name) for name in ("instagram-worker", "instagram-relay")), processes=4 * place.cores)


def push(place: Place) -> Part:
    part = ours(place, running("instagram-pyapns"))
    if key := place.secrets.get("APNS_KEY_FILE"):
        part.services[0].files.append(File(APNS_KEY, Path(key).expanduser().read_text(), "instagram", 0o600))
    return part


def running(unit: str) -> Service:
    return Service(unit, [], "restart", needs_release=True)


def ours(place: Place, *services: Service, **values: object) -> Part:
    """Those that run a release, with the app's settings."""
    env = File(f"{ETC}/env", env_text(environment(place)), owner="deploy", mode=0o600)
    for service in services:
        unit = service.unit.partition("@")[0] + "@" * ("@" in service.unit)
        service.files = [*unit_files(unit, directory=place.host.directory, **values), env]
    files = []
    if place.host is place.inventory.migrations:
        text = env_text(migration_environment(place))
        files = [File(f"{ETC}/migrations.env", text, owner="deploy", mode=0o600)]
    return Part(APP_PACKAGES, list(services), files)


def edge(place: Place) -> Part:
    data = place.host.roles["edge"]
    secured = tls(place)
    conf = template(
        "nginx/edge.conf",
        listen=place.ip,
        port=place.port("edge"),
        worker_processes=place.cores,
        data=f"{STATE}/nginx_edge",
        access_log="/var/log/instagram/nginx_edge.access.log",
        app_servers=data["app_servers"],
        maintenance=data["maintenance"],
        balancer=data["balancer"],
        munin=f"{STATE}/munin/html",
        tls=f'include "{secured[0].path}";' if secured else "",  # else it ends at the load balancer
        # Of one address, which may be a carrier's with a city behind it.
        requests_a_second=500,
        requests_of_a_burst=2_000,
        requests_at_once=500,
    )
    files = [
        *unit_files("instagram-nginx"),
        File(f"{ETC}/nginx_edge.conf", conf),
        *secured,
        # After the first time, `fab deploy` knows better where the app is.
        File(data["app_servers"], first_slots(place.inventory), owner="deploy", only_if_missing=True),
    ]
    rotation = File(
        "/etc/logrotate.d/instagram",
        "/var/log/instagram/*.log {\n"
        "    su www-data www-data\n    daily\n    rotate 14\n    compress\n    delaycompress\n"
        "    missingok\n    notifempty\n    sharedscripts\n"
        "    postrotate\n        systemctl kill --kill-who=main --signal=USR1 instagram-nginx\n    endscript\n}\n",
    )
    service = Service("instagram-nginx", files, "reload", place.port("edge"))
    return Part(["nginx"], [service], [rotation])


def first_slots(inventory: Inventory) -> str:
    return app_servers({host: host.roles["app"]["slots"][0] for host in inventory.of("app")})


def tls(place: Place) -> list[File]:
    """What nginx listens on the port of TLS with; nothing, where the operator has no certificate for it."""
    named = [place.secrets.get(name, "") for name in ("TLS_CERTIFICATE_FILE", "TLS_KEY_FILE")]
    if not any(named):
        return []
    certificate, key = (Path(name).expanduser() for name in named)
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
    except OSError as error:
        raise Failed(f"TLS_CERTIFICATE_FILE and TLS_KEY_FILE are not a certificate and its key: {error}") from None
    copies = [f"{ETC}/tls.pem", f"{ETC}/tls.key"]
    values = {"listen": place.ip, "port": place.host.roles["edge"]["tls"], "certificate": copies[0], "key": copies[1]}
    return [
        File(f"{ETC}/nginx_tls.conf", template("nginx/tls.conf", **values)),
        *(File(copy, one.read_text(), "www-data", 0o600) for copy, one in zip(copies, (certificate, key), strict=True)),
    ]


def pgbouncer(place: Place) -> Part:
    data = place.host.roles["pgbouncer"]
    leads = File(data["ini"], databases(place), "postgres", 0o600, merge=partial(databases, place))
    # One Postgres has two databases.
    size = max(2, min(20, CONNECTIONS_OF_ALL_POOLS // (2 * len(place.inventory.of("pgbouncer")))))
    users = ("instagram", "pgbouncer")
    userlist = "".join(f'"{user}" "{place.secrets[f"{user.upper()}_PASSWORD"]}"\n' for user in users)
    conf = template(
        "pgbouncer/pgbouncer.ini",
        listen=place.ip,
        port=data["port"],
        userlist=f"{ETC}/pgbouncer.users",
        databases=f"%include {leads.path}",
        pool_size=size,
        reserve_pool_size=size // 4,
    )
    files = [
        *unit_files("instagram-pgbouncer"),
        leads,
        File(f"{ETC}/pgbouncer.ini", conf, "postgres", 0o600),
        File(f"{ETC}/pgbouncer.users", userlist, "postgres", 0o600),
    ]
    logins = File(data["passfile"], pgpass(place, "instagram", "pgbouncer"), "postgres", 0o600)
    service = Service("instagram-pgbouncer", files, "reload", data["port"])
    return Part(["pgbouncer", "postgresql-client-15"], [service], [logins])


def databases(place: Place, there: str = "") -> str:
    """pgbouncer's databases. Those that are there lead where they led: `fab failover` changes that, in this file."""
    known = dict(line.split(" = ", 1) for line in there.splitlines() if " = " in line)
    wanted = {}
    for number, server in enumerate(place.inventory.postgres):
        names = [f"shards_{server}"] if number else ["directory", f"shards_{server}"]
        pair = [f"host={host.address} port={place.port('postgres')} " for host in place.pair(server)]
        primary, *replicas = sorted(pair, key=known.get(f"shards_{server}", "").startswith, reverse=True)
        wanted |= {name: f"{primary}dbname={name}" for name in names}
        wanted |= {f"shards_{server}_replica": f"{replica}dbname=shards_{server}" for replica in replicas}
    kept = {name: where for name, where in known.items() if not (name in wanted and name.endswith("_replica"))}
    return "[databases]\n" + "".join(f"{name} = {where}\n" for name, where in (wanted | kept).items())


def postgres(place: Place) -> Part:
    data = place.host.roles["postgres"]
    (server,) = [name for name, pair in place.inventory.postgres.items() if place.host.name in pair]
    primary, *replicas = place.pair(server)
    conf = template(
        "postgres/postgresql.conf",
        listen=place.ip,
        port=data["port"],
        cluster_name=place.host.name,
        # A quarter of the memory, as Postgres' manual says; the kernel's cache has most of the rest.
        shared_buffers=f"{place.memory_share() // 4}MB",
        effective_cache_size=f"{place.memory_share() * 3 // 4}MB",
        max_wal_size="8GB",
        fsync="on",
        # A COMMIT waits until the replica has it, too: nothing that was acknowledged dies with a host.
        synchronous_standby_names=REPLICA if replicas else "",
        archive_command=f'/usr/bin/pgbackrest --config={ETC}/pgbackrest.conf --stanza={server} archive-push "%p"',
    )
    s3 = urlsplit(place.inventory.settings["S3_ENDPOINT"])
    backups = template(
        "pgbackrest/pgbackrest.conf",
        s3_endpoint=s3.hostname,
        s3_port=s3.port or 443,
        s3_ca_file="/etc/ssl/certs/ca-certificates.crt",
        s3_region=place.inventory.settings.get("S3_REGION", "us-east-1"),
        bucket=place.inventory.settings.get("BACKUPS_BUCKET", "backups"),
        access_key=place.secrets["BACKUPS_ACCESS_KEY"],
        secret_key=place.secrets["BACKUPS_SECRET_KEY"],
        passphrase=place.secrets["BACKUPS_PASSPHRASE"],
        # The WAL of some hours; postgresql.conf keeps as much for a replica that is away.
        queue_max="64GiB",
        lock_path="/run/instagram-pgbackrest",
        stanza=server,
        data=data["data"],
        port=data["port"],
    )
    to_back_up = template(
        "pgbackrest/env",
        listen=place.ip,
        port=data["port"],
        stanza=server,
        pgbackrest_conf=f"{ETC}/pgbackrest.conf",
        pgpass=data["passfile"],
        postgres_bin=data["bin"],
        postgres_conf=data["config"],
        postgres_hba=f"{ETC}/pg_hba.conf",
        copy=f"{os.path.dirname(data['data'])}/copy",
        copy_port=data["port"] + 1,
    )
    hba = template("postgres/pg_hba.conf", network=place.inventory.network)
    unit = unit_files(
        "instagram-postgres", bin=data["bin"], config=data["config"], hba=f"{ETC}/pg_hba.conf", data=data["data"]
    )
    files = [
        *unit,
        File(data["config"], conf, "postgres", 0o600),
        File(f"{ETC}/pg_hba.conf", hba, "postgres", 0o600),
    ]
    others = [
        File(f"{ETC}/pgbackrest.conf", backups, "postgres", 0o600),
        File(data["backups"], to_back_up, "postgres", 0o600),
        unit_as_it_is("instagram-backup@.service"),
        File(data["passfile"], pgpass(place, "postgres", "replicator"), "postgres", 0o600),
        File(f"{ETC}/postgres.password", place.secrets["POSTGRES_PASSWORD"] + "\n", "postgres", 0o600),
        File(f"{ETC}/postgres.sql", first_statements(place, server), "postgres", 0o600),
    ]
    # Most settings need a reload; of those that need a restart, Postgres' log says so.
    service = Service("instagram-postgres", files, "reload", data["port"])
    make = new_primary(data) if place.host is primary else new_replica(data, primary)
    step = (f"data of {place.host.name}", f"test -e {data['data']}", make)
    return Part(["postgresql-15", "pgbackrest"], [service, *map(timer, TIMERS)], others, [step])


def map_snapshots(place: Place) -> Part:
    keys = {name: place.secrets[name] for name in ("SNAPSHOTS_ACCESS_KEY", "SNAPSHOTS_SECRET_KEY")}
    files = [
        File(f"{ETC}/snapshots.env", env_text(keys), "deploy", 0o600),
        unit_as_it_is("instagram-map-snapshot.service"),
    ]
    return Part(["redis-tools"], [timer("instagram-map-snapshot.timer")], files)


def timer(name: str) -> Service:
    return Service(name, [unit_as_it_is(name)], "restart")


def new_primary(data: dict[str, Any]) -> str:
    """A shell command that makes the data of a server, with our roles and databases."""
    draft = f"{data['data']}.new"
    return as_postgres(
        data,
        f"{data['bin']}/initdb -D {draft} --username=postgres --pwfile={ETC}/postgres.password --auth=scram-sha-256"
        " --data-checksums --encoding=UTF8 --locale=C.UTF-8"
        f" && {data['bin']}/postgres --single -D {draft} postgres < {ETC}/postgres.sql",
    )


def new_replica(data: dict[str, Any], primary: Host) -> str:
    """A shell command that copies the primary, and follows it from there on by a slot."""
    way = f"host={primary.address} port={data['port']} user=replicator passfile={data['passfile']}"
    # The replica before it may have left its slot, and so does an attempt that failed.
    slot = " ".join(f"-c {shlex.quote(statement)}" for statement in (DROP_LOST_SLOT, CREATE_SLOT))
    return as_postgres(
        data,
        f"{data['bin']}/psql -XAtq -v ON_ERROR_STOP=1 -d '{way} dbname=postgres' {slot}"
        # Under another name while it copies: a COMMIT must not take that for the replica that it waits for.
        f" && {data['bin']}/pg_basebackup -d '{way} application_name=copy' -D {data['data']}.new"
        f" --write-recovery-conf --slot={REPLICA} --checkpoint=fast"
        f" && sed -i s/application_name=copy/application_name={REPLICA}/ {data['data']}.new/postgresql.auto.conf",
    )


def as_postgres(data: dict[str, Any], make: str) -> str:
    """Makes `data.new` become `data`: what is half made is not taken for a server's data."""
    directory, draft = os.path.dirname(data["data"]), f"{data['data']}.new"
    make = f"umask 077 && cd / && rm -rf {draft} && {make} && mv {draft} {data['data']}"
    return f"install -d -o postgres -m 700 {directory} && runuser -u postgres -- sh -c {shlex.quote(make)}"


def pgpass(place: Place, *roles: str) -> str:
    """libpq's file, for who operates the servers."""
    return "".join(f"*:*:*:{role}:{place.secrets[f'{role.upper()}_PASSWORD']}\n" for role in roles)


def first_statements(place: Place, server: str) -> str:
    """A new server's roles and databases, a statement a line, as Postgres' single-user mode takes them."""
    statements = []
    for role, rights in ROLES.items():
        password = place.secrets[f"{role.upper()}_PASSWORD"].replace("'", "''")
        statements.append(f"CREATE ROLE {role} {rights} PASSWORD '{password}'")
    statements += [f"ALTER ROLE instagram SET {setting} = '{value}'" for setting, value in ROLE_SETTINGS.items()]
    statements.append("GRANT pg_monitor TO instagram")  # as in deploy/local/prepare.py
    databases = (
        [f"shards_{server}"] if server != next(iter(place.inventory.postgres)) else ["directory", f"shards_{server}"]
    )
    statements += [f"CREATE DATABASE {name} OWNER instagram" for name in databases]
    return "\n".join(statements) + "\n"


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


def munin(place: Place) -> Part:
    """Munin's master: a round each 5 minutes, its pages, and PagerDuty."""
    data, port = f"{STATE}/munin", place.inventory.roles["munin"]["node"]
    settings = {
        "PAGERDUTY_URL": place.secrets.get("PAGERDUTY_URL", PAGERDUTY_URL),
        "PAGERDUTY_ROUTING_KEY": place.secrets.get("PAGERDUTY_ROUTING_KEY", ""),
        "PAGERDUTY_SPOOL": f"{data}/pagerduty",
    }
    pagerduty = f"{ETC}/pagerduty {ETC}/pagerduty.settings"
    nodes = "".join(munin_master_lines(host.name, ip(host), port) for host in place.inventory.hosts)
    pages = template("nginx/munin.conf", port=place.port("munin"), data=f"{STATE}/nginx_munin", munin=f"{data}/html")
    files = [
        # Debian's rounds would be beside ours.
        File("/etc/cron.d/munin", "# Munin's rounds are instagram-munin.timer's.\n"),
        File(f"{ETC}/munin.conf", template("munin/munin.conf", data=data, pagerduty=pagerduty, nodes=nodes)),
        File(
            f"{ETC}/munin-round",
            template("munin/round.sh", data=data, conf=f"{ETC}/munin.conf", pagerduty=pagerduty),
        ),
        File(f"{ETC}/pagerduty", template("alerts/pagerduty"), mode=0o755),
        File(f"{ETC}/pagerduty.settings", env_text(settings), "munin", 0o600),
        File(
            "/etc/logrotate.d/instagram-munin",
            f"{data}/log/*.log {{\n    su munin munin\n    daily\n    rotate 7\n    missingok\n    notifempty\n}}\n",
        ),
        unit_as_it_is("instagram-munin.service"),
    ]
    shown = [*unit_files("instagram-munin-pages"), File(f"{ETC}/nginx_munin.conf", pages)]
    services = [timer("instagram-munin.timer"), Service("instagram-munin-pages", shown, "restart")]
    return Part(["munin", "nginx", "python3"], services, files)


def munin_node(place: Place) -> Part:
    """What tells Munin's master of this host: Debian's munin-node, with the plugins that `plugins` names."""
    port = place.inventory.roles["munin"]["node"]
    masters = "|".join(re.escape(ip(host)) for host in place.inventory.of("munin"))
    conf = template(
        "munin/munin-node.conf",
        listen=place.ip,
        port=port,
        allow=f"^({masters})$",
        host_name=place.host.name,
        user="root",  # some of Debian's plugins need it; the others run as the app's user
        group="root",
        plugin_user="instagram",
        plugin_group="instagram",
    )
    settings = template(
        "munin/plugins.conf",
        python=f"{place.host.directory}/current/.venv/bin/python",
        env_file=f"{ETC}/munin.env",
        app_url=f"http://{place.ip}",
        current=f"env.CURRENT {place.host.directory}/current",
        threads=32,
    )
    files = [
        File(f"{ETC}/munin-node.conf", conf),
        File("/etc/default/munin-node", f"DAEMON_ARGS=--config={ETC}/munin-node.conf\n"),
        File("/etc/munin/plugin-conf.d/instagram", settings),
    ]
    # /etc/instagram/env is not for the user whom the plugins run as.
    env = [File(f"{ETC}/munin.env", env_text(environment(place)), "instagram", 0o600)] if has_release(place) else []
    service = Service("munin-node", files, "restart", port)
    return Part(["iproute2", "munin-node"], [service], env, [plugin_links(place)])


def plugin_links(place: Place) -> tuple[str, str, str]:
    """A step after which /etc/munin/plugins has the host's plugins, its network interface's, and no others."""
    links = "".join(f"{name} {file}\n" for name, file in sorted(plugins(place).items()))
    interface = f'ip -o address show to {place.ip} | awk \'{{print "if_" $2, "{DEBIANS_PLUGINS}/if_"}}\''
    wanted = f"cd /etc/munin/plugins && wanted() {{ printf %s {shlex.quote(links)}; {interface}; }}"
    done = f'{wanted} && [ "$(wanted | sort)" = "$(find . -type l -printf \'%P %l\\n\' | sort)" ]'
    link = "wanted | while read name file; do ln -s $file $name; done"
    # A node that runs has looked for them when it started.
    return "Munin's plugins", done, f"{wanted} && rm -f ./* && {link} && systemctl try-restart munin-node"


def plugins(place: Place) -> dict[str, Path]:
    """Name → file of the plugins here: Debian's of the host, and those of ours that have something to see.

    Ours are in a release. What sees all servers is on one host, or each of its alerts would be many.
    """
    ours, roles = [], place.host.roles.keys()
    if has_release(place):
        ours.append("instagram_app")
        ours += [f"instagram_{name}" for role, name in (("app", "ready"), ("pgbouncer", "pgbouncer")) if role in roles]
    if [place.host] == place.inventory.of("app", "worker")[:1]:
        ours += ["instagram_jobs", "instagram_postgres", "instagram_redis"]
    release = Path(place.host.directory, "current/deploy/munin/plugins")
    return {name: DEBIANS_PLUGINS / name for name in HOST_PLUGINS} | {name: release / name for name in ours}


def has_release(place: Place) -> bool:
    return bool({"app", "worker", "push"} & place.host.roles.keys())


PARTS: dict[str, Callable[[Place], Part]] = {
    "edge": edge,
    "app": app,
    "worker": worker,
    "push": push,
    "pgbouncer": pgbouncer,
    "postgres": postgres,
    "map_snapshots": map_snapshots,
    "redis_shardmap": lambda place: redis(place, "redis_shardmap", maxmemory_policy="noeviction", appendonly="yes"),
    "redis_feeds": lambda place: redis(place, "redis_feeds", maxmemory_policy="allkeys-lru", appendonly="no"),
    "sentinel": sentinel,
    "memcached": memcached,
    "gearman": gearman,
    "munin": munin,
}


def parts(place: Place) -> list[Part]:
    """All that the host needs: what every host has, and its roles' in the inventory's order."""
    return [
        base(place),
        *(PARTS[role](place) for role in place.host.roles),
        *([munin_node(place)] if place.inventory.of("munin") else []),
    ]


def template(name: str, **values: object) -> str:
    return render(DEPLOY / name, values)


def unit_files(unit: str, **values: object) -> list[File]:
    """A unit of a service that runs all the time, with what holds for all of these."""
    return [
        File(f"{UNITS}/{unit}.service", template(f"systemd/{unit}.service", **values)),
        File(f"{UNITS}/{unit}.service.d/common.conf", template("systemd/common.conf")),
    ]


def unit_as_it_is(name: str) -> File:
    return File(f"{UNITS}/{name}", template(f"systemd/{name}"))


def env_text(settings: dict[str, str]) -> str:
    return "".join(f"{name}={value}\n" for name, value in sorted(settings.items()))


def one_line(flags: str) -> str:
    """A file of one flag a line, with comments, as systemd wants it."""
    return " ".join(shlex.split(flags, comments=True))
