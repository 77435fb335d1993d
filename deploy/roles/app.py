"""app, worker, push and map_snapshots: the hosts that run a release, and the settings that it is told."""

from pathlib import Path
from urllib.parse import quote

from deploy.roles.memory import first_redis
from deploy.roles.place import (
    APP_SECRETS,
    ETC,
    OPTIONAL_SECRETS,
    File,
    Part,
    Place,
    Service,
    env_text,
    ip,
    timer,
    unit_as_it_is,
    unit_files,
)

APP_PACKAGES = ["python3", "python3-venv"]

APNS_KEY = f"{ETC}/apns.p8"

METRICS = "/run/instagram-metrics"  # as RuntimeDirectory= of the units


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


def map_snapshots(place: Place) -> Part:
    keys = {name: place.secrets[name] for name in ("SNAPSHOTS_ACCESS_KEY", "SNAPSHOTS_SECRET_KEY")}
    files = [
        File(f"{ETC}/snapshots.env", env_text(keys), "deploy", 0o600),
        unit_as_it_is("instagram-map-snapshot.service"),
    ]
    return Part(["redis-tools"], [timer("instagram-map-snapshot.timer")], files)


def has_release(place: Place) -> bool:
    return bool({"app", "worker", "push"} & place.host.roles.keys())


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
    """Of the master of the moment, whom Sentinels know; where it has no replica, of the one that there is."""
    password = quote(place.secrets["REDIS_PASSWORD"], safe="")
    if len(place.inventory.redis[name]) > 1:
        sentinels = place.addresses("sentinel")
        return f"redis+sentinel://:{password}@{','.join(sentinels)}/{name}"
    return f"redis://:{password}@{first_redis(place, name)}/0"
