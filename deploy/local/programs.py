"""The programs of a stack: how each is configured, run, and known to be well."""

import grp
import os
import pwd
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from deploy.local.layout import (
    BUGSINK_LOGIN,
    BUGSINK_VENV,
    DEPLOY,
    POSTGRES_USER,
    ROOT,
    SERVER_USER,
    SYNCHRONOUS,
    VENV,
    WITH_REPLICAS,
    Failed,
    Stack,
    make_dir,
    render,
    write,
)
from deploy.local.machine import postgres_bin, which
from deploy.local.ports import COPIES_AT, HOST
from deploy.upstreams import server_lines

# pgbouncer's databases, and the server of each. `bench` is there while `manage.py bench shards` runs.
DATABASES = {"directory": "postgres_a", "shards_a": "postgres_a", "shards_b": "postgres_b", "bench": "postgres_a"}
# What the load balancer connects from, so that nginx knows it from whoever else is on this machine.
BALANCER = "127.0.0.2"
# Of the host, beside ours: what runs full there.
DEBIANS_PLUGINS, HOST_PLUGINS = Path("/usr/share/munin/plugins"), ("cpu", "df", "load", "memory")
REPLICAS = {"postgres_a_replica": "postgres_a", "postgres_b_replica": "postgres_b"}

ROLES = {"instagram": "LOGIN", "replicator": "LOGIN REPLICATION"}  # the app's, the replicas'

# Nothing waits without end. A migration lifts the first with SET LOCAL.
ROLE_SETTINGS = {
    "statement_timeout": "5s",
    "idle_in_transaction_session_timeout": "15s",
    "lock_timeout": "3s",
}


@dataclass
class Program:
    name: str
    command: list[str]
    is_up: Callable[[], bool] | None = None  # None: as soon as it runs
    user: str | None = None
    stop_signal: str = "TERM"
    is_app: bool = False  # started after the migrations
    watches: bool = False  # started after the app: before, it would cry wolf
    primary: str | None = None  # of a replica, which is made of it: started when that runs
    environment: dict[str, str] = field(default_factory=dict)  # of the app's programs


def programs_of(stack: Stack) -> list[Program]:
    """Writes each program's configuration and returns how to run them, in the order of their start."""
    make_dir(stack.conf)
    return [
        *(postgres(stack, stack.primary_of(server)) for server in REPLICAS.values()),
        *(postgres(stack, name, primary) for name, primary in replicas_of(stack).items() if WITH_REPLICAS),
        pgbouncer(stack),
        redis(stack, "redis_shardmap", maxmemory_policy="noeviction", appendonly="yes"),
        redis(stack, "redis_feeds", maxmemory_policy="allkeys-lru", appendonly="no"),
        memcached(stack, "memcached_1"),
        memcached(stack, "memcached_2"),
        gearmand(stack, "gearmand_1"),
        gearmand(stack, "gearmand_2"),
        seaweedfs(stack),
        *edge(stack),
        nginx(stack, "nginx_cdn", port=stack.ports["cdn"], s3=stack.address("s3")),
        apns(stack),
        social(stack),
        pagerduty(stack),
        munin_node(stack),
        # The tests have their rounds of the master when they want to see what it does.
        *([] if stack.is_for_tests else [munin(stack)]),
        bugsink(stack),
        *app(stack),
    ]


def replicas_of(stack: Stack) -> dict[str, str]:
    """Each replica, whether it is wanted or not, and its primary. After a failover they have changed places."""
    pairs = {}
    for replica, server in REPLICAS.items():
        promoted = stack.primary_of(server) == replica
        if promoted and not WITH_REPLICAS:
            raise Failed(f"{replica} is the primary since a failover: it needs `make up REPLICAS=1`.")
        pairs |= {server: replica} if promoted else {replica: server}
    return pairs


def postgres(stack: Stack, name: str, primary: str | None = None) -> Program:
    stanza = name.removeprefix("postgres_").removesuffix("_replica")
    backups = pgbackrest(stack, name, stanza)
    file = configured(
        stack,
        "postgres/postgresql.conf",
        f"{name}.conf",
        POSTGRES_USER,
        port=stack.ports[name],
        cluster_name=f"{stack.name}_{name.removeprefix('postgres_')}",
        shared_buffers="128MB",
        effective_cache_size="1GB",
        max_wal_size="1GB",
        synchronous_standby_names="replica" if SYNCHRONOUS else "",
        # Tests kill processes, never the kernel: what is in the page cache survives that.
        fsync="off" if stack.is_for_tests else "on",
        archive_command=f'{which("pgbackrest")} --config="{backups}" --stanza={stanza} archive-push "%p"',
    )
    hba = configured(stack, "postgres/pg_hba.conf", f"{name}.hba.conf", POSTGRES_USER)
    return Program(
        name,
        [f"{postgres_bin()}/postgres", f"--config-file={file}", f"--hba-file={hba}", "-D", str(stack.data(name))],
        is_up=pg_answers(stack.ports[name]),
        user=POSTGRES_USER,
        stop_signal="INT",  # "fast": breaks off transactions; TERM would wait for clients to leave
        primary=primary,
    )


def pgbackrest(stack: Stack, server: str, stanza: str) -> Path:
    """How a Postgres is backed up. It and its replica have one stanza, which whoever is the primary feeds."""
    run, pgpass = stack.data("pgbackrest"), stack.conf / "pgbackrest.pgpass"
    make_dir(run, POSTGRES_USER, 0o700)
    write(pgpass, f"*:*:*:postgres:{stack.secrets['postgres_password']}\n", POSTGRES_USER)
    certificate(stack, "s3", POSTGRES_USER)
    file = configured(
        stack,
        "pgbackrest/pgbackrest.conf",
        f"pgbackrest_{server}.conf",
        POSTGRES_USER,
        s3_endpoint=HOST,
        s3_port=stack.ports["s3_tls"],
        s3_ca_file=stack.conf / "s3.pem",
        s3_region="us-east-1",
        bucket="backups",
        access_key=stack.secrets["backups_access_key"],
        secret_key=stack.secrets["backups_secret_key"],
        passphrase=stack.secrets["backups_passphrase"],
        queue_max="2GiB",
        lock_path=run,
        stanza=stanza,
        data=stack.data(server),
        port=stack.ports[server],
    )
    configured(
        stack,
        "pgbackrest/env",
        f"{server}.env",
        POSTGRES_USER,
        pgbackrest_conf=file,
        stanza=stanza,
        port=stack.ports[server],
        pgpass=pgpass,
        postgres_bin=postgres_bin(),
        postgres_conf=stack.conf / f"{server}.conf",
        postgres_hba=stack.conf / f"{server}.hba.conf",
        copy=run / f"copy_of_{server}",
        copy_port=stack.ports[server] + COPIES_AT,
    )
    return file


def certificate(stack: Stack, server: str, owner: str | None) -> None:
    """Makes `<server>.pem` and `<server>.key`, once."""
    if not (stack.conf / f"{server}.key").exists():
        keys = [str(VENV / "bin/python"), str(DEPLOY / "local/keys.py"), str(stack.conf), server, HOST]
        subprocess.run(keys, check=True, timeout=30)
    for file in (f"{server}.pem", f"{server}.key"):
        if owner:
            shutil.chown(stack.conf / file, owner)


def pgbouncer(stack: Stack) -> Program:
    userlist = stack.conf / "pgbouncer.users"
    users = [f'"{user}" "{stack.secrets[f"{user}_password"]}"\n' for user in ("instagram", "pgbouncer")]
    write(userlist, "".join(users), POSTGRES_USER)
    roles = ("postgres", "replicator", "instagram", "pgbouncer")  # libpq's file, for who operates it
    logins = [f"*:*:*:{role}:{stack.secrets[f'{role}_password']}\n" for role in roles]
    write(stack.conf / "pgpass", "".join(logins), POSTGRES_USER)
    servers = {name: stack.primary_of(server) for name, server in DATABASES.items()}
    databases = [f"{name} = host={HOST} port={stack.ports[server]}" for name, server in servers.items()]
    if WITH_REPLICAS:
        of = {primary: replica for replica, primary in replicas_of(stack).items()}
        shards = {name: of[server] for name, server in servers.items() if name.startswith("shards_")}
        databases += [
            f"{name}_replica = host={HOST} port={stack.ports[it]} dbname={name}" for name, it in shards.items()
        ]
    file = configured(
        stack,
        "pgbouncer/pgbouncer.ini",
        "pgbouncer.ini",
        POSTGRES_USER,
        port=stack.ports["pgbouncer"],
        userlist=userlist,
        databases="\n".join(databases),
        pool_size=20,
        reserve_pool_size=5,
    )
    return Program(
        "pgbouncer",
        [which("pgbouncer"), str(file)],
        is_up=pg_answers(stack.ports["pgbouncer"]),
        user=POSTGRES_USER,
        stop_signal="INT",
    )


def redis(stack: Stack, name: str, **persistence: str) -> Program:
    password = stack.secrets["redis_password"]
    file = configured(
        stack,
        "redis/redis.conf",
        f"{name}.conf",
        SERVER_USER,
        port=stack.ports[name],
        password=password,
        data=stack.data(name),
        maxmemory="512mb",
        cluster="no",
        **persistence,
    )
    return Program(
        name,
        [which("redis-server"), str(file)],
        is_up=answers(stack.ports[name], f"AUTH {password}\r\nPING\r\n", "+OK\r\n+PONG"),
        user=SERVER_USER,
    )


def memcached(stack: Stack, name: str) -> Program:
    port = stack.ports[name]
    file = configured(stack, "memcached/memcached.conf", f"{name}.conf", SERVER_USER, port=port, megabytes=64)
    is_up = answers(port, "version\r\n", "VERSION")
    # It has nothing to save, and looks for a polite signal but once a second.
    return Program(name, [which("memcached"), *flags(file)], is_up, SERVER_USER, stop_signal="KILL")


def gearmand(stack: Stack, name: str) -> Program:
    port = stack.ports[name]
    file = configured(stack, "gearmand/gearmand.conf", f"{name}.conf", SERVER_USER, port=port)
    return Program(name, [which("gearmand"), *flags(file)], answers(port, "version\n", "OK"), SERVER_USER)


def seaweedfs(stack: Stack) -> Program:
    ports = stack.ports
    keys = {
        "access_key": stack.secrets["s3_access_key"],
        "secret_key": stack.secrets["s3_secret_key"],
        "backups_access_key": stack.secrets["backups_access_key"],
        "backups_secret_key": stack.secrets["backups_secret_key"],
        "snapshots_access_key": stack.secrets["snapshots_access_key"],
        "snapshots_secret_key": stack.secrets["snapshots_secret_key"],
    }
    file = configured(stack, "seaweedfs/s3.json", "s3.json", None, **keys)
    return Program(
        "seaweedfs",
        [
            str(VENV / "bin/weed"),
            "-logtostderr=true",
            "server",
            f"-dir={stack.data('seaweedfs')}",
            f"-ip={HOST}",
            f"-ip.bind={HOST}",
            f"-master.port={ports['weed_master']}",
            f"-master.port.grpc={ports['weed_master_grpc']}",
            "-master.peers=none",  # the only one: no election, which would take 20 s at each start
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=1024",
            f"-volume.port={ports['weed_volume']}",
            f"-volume.port.grpc={ports['weed_volume_grpc']}",
            "-volume.max=100",
            "-filer",
            f"-filer.port={ports['weed_filer']}",
            f"-filer.port.grpc={ports['weed_filer_grpc']}",
            "-filer.localSocket=filer.sock",
            "-s3",
            f"-s3.port={ports['s3']}",
            f"-s3.port.grpc={ports['s3_grpc']}",
            f"-s3.port.https={ports['s3_tls']}",  # pgBackRest insists on it
            f"-s3.cert.file={stack.conf / 's3.pem'}",
            f"-s3.key.file={stack.conf / 's3.key'}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.localSocket=s3.sock",
            f"-s3.config={file}",
        ],
        is_up=answers(ports["s3"], "GET /healthz HTTP/1.0\r\n\r\n", "HTTP/1.0 200"),
        # It survives that, and its polite stop waits 15 s for connections between its own parts.
        stop_signal="KILL",
    )


def edge(stack: Stack) -> list[Program]:
    """The load balancer, and the three nginx behind it."""
    values = edge_values(stack, "app_servers.conf", stack.addresses("gunicorn"))
    names = ["nginx_edge_1", "nginx_edge_2", "nginx_edge_3"]
    nginxes = [nginx(stack, name, port=stack.ports[name.removeprefix("nginx_")], **values) for name in names]
    servers = {name: f"    server {name} {it}" for name, it in zip(names, stack.addresses("edge"), strict=True)}
    file = configured(
        stack,
        "haproxy/haproxy.cfg",
        "haproxy.cfg",
        SERVER_USER,
        port=stack.ports["edge"],
        status_port=stack.ports["haproxy_status"],
        source=BALANCER,
        away=configured(stack, "haproxy/503.http", "503.http", SERVER_USER),
        servers="\n".join(servers.values()),
        tracked_servers="\n".join(f"{server} track reads/{name}" for name, server in servers.items()),
    )
    is_up = answers(stack.ports["edge"], "GET /edge-health HTTP/1.0\r\n\r\n", "HTTP/1.1 200")
    return [*nginxes, Program("haproxy", [which("haproxy"), "-db", "-f", str(file)], is_up, SERVER_USER)]


def edge_values(stack: Stack, file: str, app_servers: list[str]) -> dict:
    """What edge.conf wants to know, but for what differs between the three; writes the file of the app servers."""
    path = stack.conf / file
    write(path, server_lines(app_servers), SERVER_USER)
    return {
        "app_servers": path,
        "tls": "",
        "balancer": BALANCER,
        "maintenance": stack.dir / "maintenance",
        "munin": stack.data("munin") / "html",
        # All users of a local stack, and the benches' load, come from one address.
        "requests_a_second": 50_000,
        "requests_of_a_burst": 50_000,
        "requests_at_once": 2_000,
    }


def nginx(stack: Stack, name: str, port: int, **values) -> Program:
    access_log = stack.logs / f"{name}.access.log"
    access_log.touch(0o640)
    if SERVER_USER:
        shutil.chown(access_log, SERVER_USER)
    file = configured(
        stack,
        f"nginx/{re.sub(r'^nginx_|_[0-9]$', '', name)}.conf",
        f"{name}.conf",
        SERVER_USER,
        port=port,
        worker_processes=1,
        data=stack.data(name),
        access_log=access_log,
        **values,
    )
    return Program(
        name,
        # Without the master process: if that were killed, its workers would not notice, and keep the port.
        [which("nginx"), "-e", "stderr", "-c", str(file), "-g", "daemon off; master_process off;"],
        is_up=answers(port, "GET / HTTP/1.0\r\n\r\n", "HTTP/1."),
        user=SERVER_USER,
        stop_signal="QUIT",
    )


def apns(stack: Stack) -> Program:
    """The double of Apple's push service, with a certificate and a signing key of this stack's own."""
    certificate(stack, "apns", SERVER_USER)
    return nginx(
        stack,
        "nginx_apns",
        port=stack.ports["apns"],
        port_of_silence=stack.ports["apns_silence"],
        certificate=stack.conf / "apns.pem",
        key=stack.conf / "apns.key",
    )


def social(stack: Stack) -> Program:
    """The double of Twitter and Facebook."""
    port = stack.ports["social"]
    command = [str(VENV / "bin/python"), str(DEPLOY / "doubles/social.py"), str(port), str(stack.dir / "env")]
    return Program("social", command, is_up=answers(port, "GET / HTTP/1.0\r\n\r\n", "HTTP/1."))


def pagerduty(stack: Stack) -> Program:
    """The double of PagerDuty; and the script that tells it, with its settings, for Munin's master."""
    configured(stack, "alerts/pagerduty", "pagerduty", SERVER_USER)
    settings = {
        "PAGERDUTY_URL": f"http://{stack.address('pagerduty')}/v2/enqueue",
        "PAGERDUTY_ROUTING_KEY": stack.secrets["pagerduty_key"][:32],
        "PAGERDUTY_SPOOL": stack.data("munin") / "pagerduty",
    }
    file = stack.conf / "pagerduty.settings"
    write(file, "".join(f"{name}={value}\n" for name, value in settings.items()), SERVER_USER)
    port = stack.ports["pagerduty"]
    command = [str(VENV / "bin/python"), str(DEPLOY / "doubles/pagerduty.py"), str(port), str(file)]
    return Program("pagerduty", command, is_up=answers(port, "GET / HTTP/1.0\r\n\r\n", "HTTP/1."))


def munin_node(stack: Stack) -> Program:
    """Runs our plugins, as who runs the app: they read the app's settings."""
    home, port = stack.conf / "munin", stack.ports["munin_node"]
    make_dir(home / "plugin-conf.d")
    make_dir(home / "plugins")
    for plugin in [*(DEPLOY / "munin/plugins").iterdir(), *(DEBIANS_PLUGINS / name for name in HOST_PLUGINS)]:
        link = home / "plugins" / plugin.name
        if not link.exists():
            link.unlink(missing_ok=True)  # it leads to where the clone was
            link.symlink_to(plugin)
    configured(
        stack,
        "munin/plugins.conf",
        "munin/plugin-conf.d/instagram",
        None,
        python=VENV / "bin/python",
        env_file=stack.dir / "env",
        app_url=f"http://{stack.address('gunicorn_1')}",
        current="",
        threads=32,
    )
    file = configured(
        stack,
        "munin/munin-node.conf",
        "munin-node.conf",
        None,
        port=port,
        allow=f"^{re.escape(HOST)}$",
        host_name=stack.name,
        user=pwd.getpwuid(os.getuid()).pw_name,
        group=grp.getgrgid(os.getgid()).gr_name,
        plugin_user=pwd.getpwuid(os.getuid()).pw_name,
        plugin_group=grp.getgrgid(os.getgid()).gr_name,
    )
    state = stack.data("munin_node")
    return Program(
        "munin_node",
        ["perl", "-T", str(DEPLOY / "munin/node.pl"), str(home), str(state), "--config", str(file), "--foreground"],
        is_up=answers(port, "", "# munin node at"),
    )


def munin(stack: Stack) -> Program:
    """Munin's master: a round each 5 minutes. Its pages are what nginx_edge has at /munin/."""
    # Not the virtual environment's Python, or that of who calls: they may be out of the reach of SERVER_USER.
    python, data = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable, stack.data("munin")
    pagerduty = shlex.join([python, str(stack.conf / "pagerduty"), str(stack.conf / "pagerduty.settings")])
    node = munin_master_lines(stack.name, HOST, stack.ports["munin_node"])
    conf = configured(stack, "munin/munin.conf", "munin.conf", SERVER_USER, data=data, pagerduty=pagerduty, nodes=node)
    a_round = configured(stack, "munin/round.sh", "munin-round", SERVER_USER, data=data, conf=conf, pagerduty=pagerduty)
    each_5_minutes = 'while :; do sh "$0"; sleep $((300 - $(date +%s) % 300)); done'
    # SIGKILL reaches the whole group: else its round would go on without the shell, and write what `clean` removes.
    command = ["nice", "sh", "-c", each_5_minutes, str(a_round)]
    return Program("munin", command, user=SERVER_USER, stop_signal="KILL", watches=True)


def munin_master_lines(host: str, address: str, port: int) -> str:
    """A node, as munin.conf has it."""
    return f"[instagram;{host}]\n    address {address}\n    port {port}\n    use_node_name yes\n"


def bugsink(stack: Stack) -> Program:
    """What the Sentry SDK's DSN points to."""
    values = {
        "address": stack.address("bugsink"),
        "data": stack.data("bugsink"),
        "conf": stack.conf,
        "secret_key": stack.secrets["bugsink_secret_key"],
        "login": BUGSINK_LOGIN,
        "password": stack.secrets["bugsink_password"],
        "key": stack.sentry_key,
    }
    configured(stack, "bugsink/bugsink_conf.py", "bugsink_conf.py", None, **values)
    file = configured(stack, "bugsink/gunicorn.conf.py", "bugsink.gunicorn.py", None, **values)
    return Program(
        "bugsink",
        # -B: no __pycache__ beside its configuration, which would be newer than what runs.
        [str(BUGSINK_VENV / "bin/python"), "-B", str(BUGSINK_VENV / "bin/gunicorn"), f"--config={file}"],
        is_up=answers(stack.ports["bugsink"], "GET /health/ready HTTP/1.0\r\n\r\n", "HTTP/1.0 200"),
    )


def app(stack: Stack) -> list[Program]:
    """The programs that are ours. They read the stack's env file by themselves."""
    make_dir(stack.dir / "metrics")
    python, manage = str(VENV / "bin/python"), str(ROOT / "manage.py")
    return [
        gunicorn(stack, "gunicorn_1"),
        gunicorn(stack, "gunicorn_2"),
        Program("pyapns", [python, manage, "pyapns"], answers(stack.ports["pyapns"], "", ""), is_app=True),
        Program("worker", [python, manage, "worker", "--processes=4"], is_app=True),
        Program("relay", [python, manage, "relay"], is_app=True),
    ]


def gunicorn(stack: Stack, name: str) -> Program:
    """An app host."""
    return Program(
        name,
        [
            str(VENV / "bin/python"),
            str(VENV / "bin/gunicorn"),
            f"--config={DEPLOY / 'gunicorn/gunicorn.conf.py'}",
            "--workers=1",  # for there are two of them, on one machine
        ],
        is_up=answers(stack.ports[name], "GET /healthz HTTP/1.0\r\n\r\n", "HTTP/1.0 200"),
        is_app=True,
        environment={"GUNICORN_BIND": stack.address(name)},
    )


def configured(stack: Stack, template: str, name: str, owner: str | None, **values) -> Path:
    """The rendered template, as a file that the program's user can read."""
    path = stack.conf / name
    write(path, render(DEPLOY / template, {"listen": HOST, "network": f"{HOST}/32"} | values), owner)
    return path


def flags(path: Path) -> list[str]:
    """A configuration file of one flag a line, as arguments."""
    return shlex.split(path.read_text(), comments=True)


def answers(port: int, question: str, answer: str) -> Callable[[], bool]:
    """Whether a server greets back as it should."""

    def ask() -> bool:
        try:
            with socket.create_connection((HOST, port), timeout=2) as connection:
                connection.sendall(question.encode())
                received = b""
                while len(received) < len(answer) and (chunk := connection.recv(1024)):
                    received += chunk
                return received.startswith(answer.encode())
        except OSError:
            return False

    return ask


def pg_answers(port: int) -> Callable[[], bool]:
    command = [f"{postgres_bin()}/pg_isready", "-q", "-h", HOST, "-p", str(port), "-t", "2"]
    return lambda: subprocess.run(command, env={}).returncode == 0


def port_of(stack: Stack, name: str) -> int | None:
    return stack.ports.get({"seaweedfs": "s3", "haproxy": "edge"}.get(name, name.removeprefix("nginx_")))


def accepts_connections(stack: Stack, name: str) -> Callable[[], bool] | None:
    """`is_up` of a program of which no more is known than its name."""
    port = port_of(stack, name)
    if port is None:
        return None
    return pg_answers(port) if name.startswith(("postgres", "pgbouncer")) else answers(port, "", "")
