"""The programs of a stack, and the supervisor that keeps them running.

Each program can be stopped, killed and restarted alone (`stack.py ctl`). All are started through `setpriv
--pdeathsig`: should the supervisor itself be killed, the kernel ends its children, so nothing is ever left over.
For the same reason nginx runs without its master process: its workers do not notice when a master is gone, and keep
the port. (Postgres' backends do, and gunicorn's workers die with their master, see gunicorn.conf.py.)
"""

import os
import shlex
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.local.layout import (
    AS_ROOT,
    DEPLOY,
    POSTGRES_USER,
    ROOT,
    SERVER_USER,
    VENV,
    Stack,
    make_dir,
    render,
    write,
)
from deploy.local.machine import PATH, postgres_bin, which
from deploy.local.ports import HOST


@dataclass
class Program:
    name: str
    command: list[str]
    is_up: Callable[[], bool] | None = None  # None: as soon as it runs
    user: str | None = None
    stop_signal: str = "TERM"
    copies: int = 1
    is_app: bool = False  # started after the migrations


def programs_of(stack: Stack) -> list[Program]:
    """Writes each program's configuration and returns how to run them, in the order of their start."""
    secrets, ports = stack.secrets, stack.ports

    def configured(template: str, name: str, owner: str | None, **values) -> Path:
        """The rendered template, as a file that the program can read."""
        path = stack.conf / name
        write(path, render(DEPLOY / template, values), owner)
        return path

    def flags(path: Path) -> list[str]:
        """A configuration file of one flag a line, as arguments."""
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        return shlex.split(" ".join(lines))

    make_dir(stack.conf)
    programs: list[Program] = []
    postgres = postgres_bin()

    for letter in "ab":
        name = f"postgres_{letter}"
        file = configured(
            "postgres/postgresql.conf",
            f"{name}.conf",
            POSTGRES_USER,
            port=ports[name],
            cluster_name=f"{stack.name}_{letter}",
            shared_buffers="128MB",
            effective_cache_size="1GB",
            max_wal_size="1GB",
            # Tests kill processes, never the kernel: what is in the page cache survives that.
            fsync="off" if stack.name == "test" else "on",
        )
        hba = configured("postgres/pg_hba.conf", f"{name}.hba.conf", POSTGRES_USER)
        programs.append(
            Program(
                name,
                [
                    str(postgres / "postgres"),
                    "-D",
                    str(stack.data(name)),
                    f"--config-file={file}",
                    f"--hba-file={hba}",
                ],
                is_up=pg_answers(postgres, ports[name]),
                user=POSTGRES_USER,
                stop_signal="INT",  # "fast": breaks off transactions; TERM would wait for clients to leave
            )
        )

    databases = {"directory": "postgres_a", "shards_a": "postgres_a", "shards_b": "postgres_b"}
    userlist = stack.conf / "pgbouncer.users"
    write(userlist, f'"instagram" "{secrets["instagram_password"]}"\n', POSTGRES_USER)
    file = configured(
        "pgbouncer/pgbouncer.ini",
        "pgbouncer.ini",
        POSTGRES_USER,
        port=ports["pgbouncer"],
        userlist=userlist,
        databases="\n".join(f"{name} = host={HOST} port={ports[server]}" for name, server in databases.items()),
    )
    programs.append(
        Program(
            "pgbouncer",
            [which("pgbouncer"), str(file)],
            is_up=pg_answers(postgres, ports["pgbouncer"]),
            user=POSTGRES_USER,
            stop_signal="INT",
        )
    )

    for name, policy in {"redis_shardmap": "noeviction", "redis_feeds": "allkeys-lru"}.items():
        file = configured(
            "redis/redis.conf",
            f"{name}.conf",
            SERVER_USER,
            port=ports[name],
            password=secrets["redis_password"],
            data=stack.data(name),
            maxmemory="512mb",
            maxmemory_policy=policy,
        )
        programs.append(
            Program(
                name,
                [which("redis-server"), str(file)],
                is_up=answers(ports[name], f"AUTH {secrets['redis_password']}\r\nPING\r\n", "+OK\r\n+PONG"),
                user=SERVER_USER,
            )
        )

    for name in ("memcached_1", "memcached_2"):
        file = configured("memcached/memcached.conf", f"{name}.conf", SERVER_USER, port=ports[name], megabytes=64)
        programs.append(
            Program(
                name,
                [which("memcached"), *flags(file)],
                is_up=answers(ports[name], "version\r\n", "VERSION"),
                user=SERVER_USER,
            )
        )

    file = configured("gearmand/gearmand.conf", "gearmand.conf", SERVER_USER, port=ports["gearmand"])
    programs.append(
        Program(
            "gearmand",
            [which("gearmand"), *flags(file)],
            is_up=answers(ports["gearmand"], "version\n", "OK"),
            user=SERVER_USER,
        )
    )

    file = configured(
        "seaweedfs/s3.json",
        "s3.json",
        None,
        access_key=secrets["s3_access_key"],
        secret_key=secrets["s3_secret_key"],
    )
    programs.append(
        Program(
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
                "-master.telemetry=false",
                "-master.volumeSizeLimitMB=1024",
                f"-volume.port={ports['weed_volume']}",
                f"-volume.port.grpc={ports['weed_volume_grpc']}",
                "-volume.max=100",
                "-master.peers=none",
                "-filer",
                f"-filer.port={ports['weed_filer']}",
                f"-filer.port.grpc={ports['weed_filer_grpc']}",
                "-filer.localSocket=filer.sock",
                "-s3",
                f"-s3.port={ports['s3']}",
                f"-s3.port.grpc={ports['s3_grpc']}",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                "-s3.localSocket=s3.sock",
                f"-s3.config={file}",
            ],
            is_up=answers(ports["s3"], "GET /healthz HTTP/1.0\r\n\r\n", "HTTP/1.0 200"),
            # It survives that, and its polite stop waits 15 s for connections between its own parts.
            stop_signal="KILL",
        )
    )

    for name, values in {
        "nginx_edge": {"port": ports["edge"], "gunicorn": stack.address("gunicorn")},
        "nginx_cdn": {"port": ports["cdn"], "s3": stack.address("s3")},
    }.items():
        access_log = stack.logs / f"{name}.access.log"
        access_log.touch(0o640)
        if SERVER_USER:
            shutil.chown(access_log, SERVER_USER)
        file = configured(
            f"nginx/{name.removeprefix('nginx_')}.conf",
            f"{name}.conf",
            SERVER_USER,
            worker_processes=1,
            data=stack.data(name),
            access_log=access_log,
            **values,
        )
        programs.append(
            Program(
                name,
                [which("nginx"), "-e", "stderr", "-c", str(file), "-g", "daemon off; master_process off;"],
                is_up=answers(values["port"], "GET / HTTP/1.0\r\n\r\n", "HTTP/1."),
                user=SERVER_USER,
                stop_signal="QUIT",
            )
        )

    # The app. It reads the stack's env file by itself.
    python = str(VENV / "bin/python")
    programs += [
        Program(
            "gunicorn",
            [python, str(VENV / "bin/gunicorn"), f"--config={DEPLOY / 'gunicorn/gunicorn.conf.py'}"],
            is_up=answers(ports["edge"], "GET /healthz HTTP/1.0\r\n\r\n", "HTTP/1.1 200"),
            is_app=True,
        ),
        Program("worker", [python, str(ROOT / "manage.py"), "worker"], is_app=True, copies=2),
        Program("relay", [python, str(ROOT / "manage.py"), "relay"], is_app=True),
    ]
    return programs


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


def pg_answers(postgres: Path, port: int) -> Callable[[], bool]:
    command = [postgres / "pg_isready", "-q", "-h", HOST, "-p", str(port), "-t", "2"]
    return lambda: subprocess.run(command, env={}).returncode == 0


def supervisor_conf(stack: Stack, programs: list[Program]) -> str:
    """supervisord's configuration."""
    # The caller's environment stays outside: what runs here is decided by the stack's env file alone.
    environment = {"PATH": PATH, "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8", "TZ": "UTC"}
    sections = {
        "supervisord": {
            "pidfile": stack.dir / "supervisord.pid",
            "logfile": stack.logs / "supervisord.log",
            "childlogdir": stack.logs,
            "environment": ",".join(f'{key}="{value}"' for key, value in environment.items()),
        },
        "inet_http_server": {
            "port": stack.address("supervisor"),
            "username": "stack",
            "password": stack.secrets["supervisor_password"],
        },
        "rpcinterface:supervisor": {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface",
        },
    }
    if AS_ROOT:
        sections["supervisord"]["user"] = "root"
    for program in programs:
        sections[f"program:{program.name}"] = section = {
            "command": shlex.join(["setpriv", "--pdeathsig", "KILL", *program.command]).replace("%", "%%"),
            "directory": ROOT if program.is_app else stack.data(program.name),
            "autostart": not program.is_app,
            "autorestart": True,
            # Never give up: the pause between tries grows by a second each time.
            "startretries": 1_000_000,
            "stopsignal": program.stop_signal,
            "stopwaitsecs": 20,
            "stopasgroup": False,
            "killasgroup": True,
            "redirect_stderr": True,
            "stdout_logfile": stack.logs / f"{program.name}.log",
            "stdout_logfile_maxbytes": "10MB",
            "stdout_logfile_backups": 2,
            "numprocs": program.copies,
        }
        if program.copies > 1:
            section["process_name"] = "%(program_name)s_%(process_num)d"
            section["stdout_logfile"] = stack.logs / f"{program.name}_%(process_num)d.log"
        if program.user:
            section["user"] = program.user
        if program.is_app:
            section["environment"] = f'STACK="{stack.name}",GUNICORN_BIND="{stack.address("gunicorn")}"'
    return "\n".join(
        f"[{title}]\n" + "".join(f"{key} = {value}\n" for key, value in section.items())
        for title, section in sections.items()
    )
