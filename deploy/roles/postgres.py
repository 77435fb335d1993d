"""postgres, and pgbouncer in front of it."""

import os
import shlex
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from deploy.failover import CREATE_SLOT, DROP_LOST_SLOT
from deploy.failover import NAME as REPLICA
from deploy.hosts import Host
from deploy.local.programs import ROLE_SETTINGS, ROLES
from deploy.roles.place import ETC, File, Part, Place, Service, template, timer, unit_as_it_is, unit_files

TIMERS = ("instagram-backup@full.timer", "instagram-backup@diff.timer")

# Of a Postgres' 100 (postgresql.conf); the rest is for people, migrations, and the pools' reserves.
CONNECTIONS_OF_ALL_POOLS = 72


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
    make, what = new_primary(data), f"data of {place.host.name}"
    if place.host is not primary:
        make, what = new_replica(data, primary), f"{what} (new after a failover, it needs `fab sync --server {server}`)"
    step = (what, f"test -e {data['data']}", make)
    return Part(["postgresql-15", "pgbackrest"], [service, *map(timer, TIMERS)], others, [step])


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
