"""`fab backup`, `fab backups`, `fab restore`: Postgres in S3 by pgBackRest, and getting it back (docs/backups.md).

The work is done on each Postgres' own host, by what is there. This says what and where, and shows how it went.
"""

import json
import shlex
import subprocess
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fabric import task
from invoke import Context, Exit

from deploy import hosts, redis_snapshots
from deploy.hosts import CommandFailed, Host
from deploy.local.data import as_user
from deploy.local.layout import POSTGRES_USER, Failed, Stack
from deploy.local.machine import PATH

FULL_EVERY = timedelta(days=7)
PATIENCE = 12 * 3600  # seconds, for a terabyte
RESTORE_COPY = Path(__file__).parent / "pgbackrest/restore_copy.sh"

IS_PRIMARY = '"$POSTGRES_BIN/psql" -XAtc "SELECT NOT pg_is_in_recovery()"'
REMOVE_COPY = """
    if [ -e "$COPY/postmaster.pid" ]; then "$POSTGRES_BIN/pg_ctl" stop -m immediate -D "$COPY" >/dev/null; fi
    rm -rf "$COPY" "$COPY.log"
"""
WHERE_COPY = 'echo "psql -h $PGHOST -p $COPY_PORT -U $PGUSER, in $COPY"'

# (command, seconds that it may take) → what it says. Raises Failed.
Run = Callable[[list[str], float], str]
T = TypeVar("T")


@dataclass(frozen=True)
class Server:
    """A Postgres, and how a command is run on its host as the user postgres."""

    name: str
    environment: str  # a file there: deploy/pgbackrest/env
    run: Run

    def sh(self, script: str, *arguments: str, seconds: float = PATIENCE) -> str:
        """What a shell script there says. Raises Failed."""
        try:
            return self.run(["sh", "-c", f'set -eau\n. "$0"\n{script}', self.environment, *arguments], seconds)
        except Failed as failure:
            raise Failed(f"{self.name}: {failure}") from None

    def pgbackrest(self, command: str, *options: str) -> str:
        return self.sh('pgbackrest "$@"', *options, command)

    def is_primary(self) -> bool:
        return self.sh(IS_PRIMARY, seconds=10).strip() == "t"


@dataclass(frozen=True)
class Backup:
    """A base backup. From its end on, any moment can be restored, as long as the WAL since then is in the archive."""

    label: str
    kind: str  # full, diff or incr
    begun: datetime
    ended: datetime
    bytes: int  # of the database
    stored_bytes: int  # in S3, of this backup alone


def backups_of(server: Server) -> list[Backup]:
    """The server's backups in S3, oldest first."""
    (stanza,) = json.loads(server.pgbackrest("info", "--output=json"))
    return [
        Backup(
            found["label"],
            found["type"],
            datetime.fromtimestamp(found["timestamp"]["start"], UTC),
            datetime.fromtimestamp(found["timestamp"]["stop"], UTC),
            found["info"]["size"],
            found["info"]["repository"]["delta"],
        )
        for found in stanza.get("backup", [])
    ]


def back_up(server: Server, kind: str = "") -> Backup:
    """Makes a base backup: of the kind, or a full one each week and otherwise what has changed since that.

    A server's first one begins its part of the repository, and so its WAL's archive.
    """
    server.pgbackrest("stanza-create")
    server.pgbackrest("backup", f"--type={kind or kind_due(backups_of(server), datetime.now(UTC))}")
    return backups_of(server)[-1]


def kind_due(backups: Iterable[Backup], now: datetime) -> str:
    fulls = [backup.ended for backup in backups if backup.kind == "full"]
    return "diff" if fulls and now - max(fulls) < FULL_EVERY else "full"


def restore_copy(server: Server, to: datetime | None) -> None:
    """Starts a copy of the server beside it, on its host: as it was at a time, or else with all that its archive has.

    Raises Failed when there is no backup from before that time, or not all WAL until then.
    """
    backups, now = backups_of(server), datetime.now(UTC)
    if to and to > now:
        raise Failed(f"{to} is not yet: it is {now}.")
    if not any(backup.ended <= (to or now) for backup in backups):
        oldest = f"the oldest one ended at {backups[0].ended}" if backups else "there is none at all"
        raise Failed(f"{server.name} has no backup from before {to or now}: {oldest}.")
    until = to.astimezone(UTC).isoformat(" ", "microseconds") if to else ""
    options = ["--type=time", f"--target={until}", "--target-action=promote"] if to else []
    server.sh(RESTORE_COPY.read_text(), *options)


def remove_copy(server: Server) -> None:
    """Stops a copy, and removes all of it."""
    server.sh(REMOVE_COPY)


def at_once(do: Callable[[Server], Any], servers: list[Server]) -> list:
    """What it returns for each of the servers, done for all at the same time. Raises Failed when all have ended."""
    done, failures = try_each(do, servers)
    if failures:
        raise Failed("\n".join(failures))
    return [result for _, result in done]


def try_each(do: Callable[[Server], T], servers: list[Server]) -> tuple[list[tuple[Server, T]], list[str]]:
    """As `at_once`, for who goes on without those that failed: (server, what it returned), and what went wrong."""
    with ThreadPoolExecutor(len(servers)) as pool:
        futures = [(server, pool.submit(do, server)) for server in servers]
    failures = [str(error) for _, future in futures if isinstance(error := future.exception(), Failed)]
    done = [(server, future.result()) for server, future in futures if not isinstance(future.exception(), Failed)]
    return done, failures


# The tasks. STACK is the name of a local stack: everything is on this machine then, and without SSH.

STACK = {"stack": "the local stack of that name, instead of the inventory's hosts"}
SERVER = {"server": "this one alone; all that are primaries without it"}


@task(help=STACK | SERVER | {"kind": "full, diff or incr; without it a full one each week, and diff otherwise"})
def backup(context: Context, kind: str = "", server: str = "", stack: str = "", inventory: str = "") -> None:
    """Makes a base backup of each Postgres, and a snapshot of the photo map."""
    with exits() as failures:
        for one, made in at_all(partial(back_up, kind=kind), context, server, stack, inventory, failures):
            print(row(one.name, made))
        print(snapshots(context, stack, inventory, "take"))


@task(help=STACK | SERVER)
def backups(context: Context, server: str = "", stack: str = "", inventory: str = "") -> None:
    """Lists what there is to restore: base backups of each Postgres, snapshots of the map."""
    with exits() as failures:
        for one, found in at_all(backups_of, context, server, stack, inventory, failures):
            for made in found:
                print(row(one.name, made))
        print(snapshots(context, stack, inventory, "list"))


@task(help=STACK | SERVER | {"to": "the time, in UTC: 2026-11-22 02:40:00; without it, all that there is"})
def restore(context: Context, to: str = "", server: str = "", stack: str = "", inventory: str = "") -> None:
    """Starts a copy of each Postgres as it was at a time, beside the one that runs, which is not touched."""
    with exits() as failures:
        restored = partial(restore_copy, to=moment(to) if to else None)
        for one, _ in at_all(restored, context, server, stack, inventory, failures):
            print(f"{one.name}, on its host: {one.sh(WHERE_COPY).strip()}")


@task(help=STACK | SERVER)
def remove_copies(context: Context, server: str = "", stack: str = "", inventory: str = "") -> None:
    """Stops and removes what `fab restore` has made."""
    with exits() as failures:
        at_all(remove_copy, context, server, stack, inventory, failures)


def moment(text: str) -> datetime:
    """Raises Failed."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Failed(f"{text} is no time. Write it as 2026-11-22 02:40:00, in UTC.") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def row(server: str, made: Backup) -> str:
    took = (made.ended - made.begun).total_seconds()
    size = f"{made.bytes / 1e6:9.1f} MB {made.stored_bytes / 1e6:9.1f} MB in S3"
    return f"{server:14}{made.kind:6}{made.ended:%Y-%m-%d %H:%M:%S} UTC {took:7.0f} s {size}  {made.label}"


def at_all(
    do: Callable[[Server], T], context: Context, server: str, stack: str, inventory: str, failures: list[str]
) -> list[tuple[Server, T]]:
    """What it returns for the server of that name; without a name, for all that take writes.

    What went wrong, or who did not say whether it takes writes, is added to the failures: the others are done.
    """
    known = local_servers(stack_of(stack)) if stack else remote_servers(context, inventory)
    chosen = [one for one in known if one.name == server]
    if not server:
        asked, away = try_each(Server.is_primary, known)
        chosen = [one for one, is_primary in asked if is_primary]
        failures += away
    if not chosen:
        raise Failed(f"No Postgres is {server or 'a primary'}. There are: {', '.join(one.name for one in known)}")
    done, failed = try_each(do, chosen)
    failures += failed
    return done


def snapshots(context: Context, stack: str, inventory: str, action: str) -> str:
    """What deploy/redis_snapshots.py says to that, where it can reach Redis and S3."""
    if stack:
        local = stack_of(stack)
        return redis_snapshots.say(action, local.environment() | local.snapshots_environment())
    takers = hosts.load(context, inventory).of("map_snapshots")  # one, or none
    return "\n".join(host.run(f"{host.roles['map_snapshots']['command']} {action}", PATIENCE) for host in takers)


@contextmanager
def exits() -> Iterator[list[str]]:
    """Ends the task with all that went wrong, if anything did, rather than with a traceback."""
    failures: list[str] = []
    try:
        yield failures
    except (Failed, CommandFailed) as failure:
        failures.append(str(failure))
    if failures:
        raise Exit("\n".join(failures))


def remote_servers(context: Context, inventory: str) -> list[Server]:
    """The inventory's hosts with the role postgres."""

    def server(host: Host) -> Server:
        role = host.roles["postgres"]

        def run(command: list[str], seconds: float) -> str:
            try:
                return host.run(f"sudo -nu postgres {shlex.join(command)}", seconds, directory="/")
            except CommandFailed as error:
                raise Failed(str(error)) from None

        return Server(host.name, role["backups"], run)

    return [server(host) for host in hosts.load(context, inventory).of("postgres")]


def stack_of(name: str) -> Stack:
    stack = Stack(name)
    stack.load_secrets()
    return stack


def local_servers(stack: Stack) -> list[Server]:
    """The Postgres servers of a local stack."""
    names = [stack.primary_of(f"postgres_{stanza}") for stanza in ("a", "b")]
    return [Server(name, str(stack.conf / f"{name}.env"), run_here) for name in names]


def run_here(command: list[str], seconds: float) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=seconds, cwd="/", env={"PATH": PATH},
            **as_user(POSTGRES_USER),
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise Failed(str(error)) from None
    if done.returncode:
        raise Failed(done.stderr.strip() or f"{shlex.join(command)} ended with {done.returncode}.")
    return done.stdout
