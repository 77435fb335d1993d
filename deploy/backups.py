"""Backups of each Postgres in S3, made by pgBackRest, and getting them back (docs/backups.md)."""

import json
import os
import shlex
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from deploy.local.data import as_user
from deploy.local.layout import POSTGRES_USER, Failed, Stack
from deploy.local.machine import postgres_bin
from deploy.local.ports import HOST

FULL_EVERY = timedelta(days=7)
KINDS = ("full", "diff", "incr")

# A full backup, or restoring one, of a server of a terabyte.
PATIENCE = 12 * 3600

# A copy is a second primary with the first one's identity. It must neither write to its archive nor take the changes of
# a shard on the move away from its subscription. Nobody may read it before it is at the time that was asked for. And it
# has no replica to wait for.
ONLY_A_COPY = {
    "archive_mode": "off",
    "max_logical_replication_workers": "0",
    "hot_standby": "off",
    "synchronous_standby_names": "",
}

# It answers as soon as recovery has ended, or else it ends. ($0: Postgres' programs, then directory, host, port.)
AS_SOON_AS_IT_ANSWERS = """
    until "$0/pg_isready" -q -h "$2" -p "$3"; do "$0/pg_ctl" status -D "$1" >/dev/null || exit 1; sleep 0.2; done
"""

# (command, seconds it may take) → what it says. Raises Failed.
Run = Callable[[list[str], float], str]


@dataclass(frozen=True)
class Server:
    """A Postgres, and how a command is run on its host as the user `postgres`."""

    stanza: str  # pgBackRest's name for the server and its replica: a, b, …
    host: str
    port: int
    configuration: str  # where these are: postgresql.conf, …
    hba: str
    pgbackrest_conf: str
    pgpass: str
    bin: str  # where Postgres' programs are
    run: Run

    def pgbackrest(self, command: str, *options: str) -> str:
        login = [f"PGHOST={self.host}", f"PGPASSFILE={self.pgpass}"]
        pgbackrest = ["pgbackrest", f"--config={self.pgbackrest_conf}", f"--stanza={self.stanza}"]
        return self.run(["env", *login, *pgbackrest, *options, command], PATIENCE)


@dataclass(frozen=True)
class Backup:
    """A base backup. From its end on, any moment can be restored, as long as the WAL since then is in the archive."""

    server: str
    label: str
    kind: str
    begun: datetime
    ended: datetime
    bytes: int  # of the database
    stored_bytes: int  # in S3, by this backup alone


def backups_of(server: Server) -> list[Backup]:
    """The server's backups in S3, oldest first."""
    (stanza,) = json.loads(server.pgbackrest("info", "--output=json"))
    return [
        Backup(
            server.stanza,
            found["label"],
            found["type"],
            datetime.fromtimestamp(found["timestamp"]["start"], UTC),
            datetime.fromtimestamp(found["timestamp"]["stop"], UTC),
            found["info"]["size"],
            found["info"]["repository"]["delta"],
        )
        for found in stanza.get("backup", [])
    ]


def back_up(server: Server, kind: str | None = None) -> Backup:
    """Makes a base backup: of the kind, or a full one once a week and otherwise what has changed since that."""
    server.pgbackrest("backup", f"--type={kind or kind_due(backups_of(server), datetime.now(UTC))}")
    return backups_of(server)[-1]


def kind_due(backups: Iterable[Backup], now: datetime) -> str:
    fulls = [backup.ended for backup in backups if backup.kind == "full"]
    return "diff" if fulls and now - max(fulls) < FULL_EVERY else "full"


def restore_copy(server: Server, to: datetime, directory: str, port: int) -> None:
    """Makes a copy of the server as it was at a time, in an empty directory, and starts it on the port.

    Raises Failed when there is no backup from before that time, or not all WAL until then.
    """
    check_time(server, to)
    server.run(["mkdir", "-p", "-m", "700", directory], 10)
    target = to.astimezone(UTC).isoformat(" ", "microseconds")
    server.pgbackrest(
        "restore", f"--pg1-path={directory}", "--type=time", f"--target={target}", "--target-action=promote"
    )
    settings = {"port": str(port), "cluster_name": f"copy_of_{server.stanza}", **ONLY_A_COPY}
    options = [f"--config-file={server.configuration}", f"--hba-file={server.hba}"]
    options += [f"--{name}={value}" for name, value in settings.items()]
    pg_ctl = f"{server.bin}/pg_ctl"
    try:
        server.run([pg_ctl, "start", "-D", directory, "-l", log_of(directory), "-o", shlex.join(options)], 600)
        server.run(["sh", "-c", AS_SOON_AS_IT_ANSWERS, server.bin, directory, server.host, str(port)], PATIENCE)
    except Failed:
        log = server.run(["tail", "-n", "8", log_of(directory)], 10)
        raise Failed(f"The copy of {server.stanza} does not come up. The end of {log_of(directory)}:\n{log}") from None


def check_time(server: Server, to: datetime) -> None:
    if to > datetime.now(UTC):
        raise Failed(f"{to} is not yet.")
    backups = backups_of(server)
    if not any(backup.ended <= to for backup in backups):
        oldest = f"the oldest one ended at {backups[0].ended}" if backups else "there is none at all"
        raise Failed(f"Of {server.stanza} there is no backup from before {to}: {oldest}.")


def remove_copy(server: Server, directory: str) -> None:
    """Stops a copy and removes its directory."""
    pid = f"{shlex.quote(directory)}/postmaster.pid"
    stop = shlex.join([f"{server.bin}/pg_ctl", "stop", "-m", "immediate", "-D", directory])
    server.run(["sh", "-c", f"if [ -e {pid} ]; then {stop}; fi"], 60)
    server.run(["rm", "-rf", directory, log_of(directory)], 600)


def log_of(directory: str) -> str:
    return f"{directory}.log"


def at_once(do: Callable[[Server], Any], servers: list[Server]) -> list:
    """Does it for all servers at the same time. Raises the first Failed when all have ended."""
    with ThreadPoolExecutor(len(servers)) as pool:
        return list(pool.map(do, servers))


# The local stack


def local_servers(stack: Stack) -> list[Server]:
    return [local_server(stack, stack.primary_of(f"postgres_{stanza}"), stanza) for stanza in ("a", "b")]


def local_server(stack: Stack, program: str, stanza: str) -> Server:
    return Server(
        stanza,
        HOST,
        stack.ports[program],
        str(stack.conf / f"{program}.conf"),
        str(stack.conf / f"{program}.hba.conf"),
        str(stack.conf / f"pgbackrest_{program}.conf"),
        str(stack.conf / "pgbackrest.pgpass"),
        str(postgres_bin()),
        run_here,
    )


def run_here(command: list[str], seconds: float) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd="/",
        env={"PATH": os.environ["PATH"]},
        **as_user(POSTGRES_USER),
    )
    if done.returncode:
        raise Failed(done.stderr.strip() or f"{shlex.join(command)} ended with {done.returncode}.")
    return done.stdout
