"""When the primary of a physical server is lost, its replica takes over. For who is on call: docs/failover.md.

By hand, with one command, and not by Patroni or repmgr: to decide by itself and be right, a machine needs a majority of
something (an etcd on three hosts, witnesses). That is more to run, and to understand at night, than the minutes are
worth until somebody has looked. What must hold, in this order:

1. Clients wait at pgbouncer, the only way in.
2. The old primary takes no writes any more: it is stopped, and has a `standby.signal`. Whoever starts it again, at a
   boot or by mistake, gets a server that only reads. If its host cannot be reached, a person sees to it that it is off.
3. The replica has replayed all that it has got, and is promoted. It keeps the WAL that the old one needs to follow it.
4. pgbouncer leads the clients on, to the new primary.

Who is primary is where pgbouncer leads to. Each step is harmless when it is done again, so a failover that was
interrupted is called again.
"""

import re
import shlex
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

NAME = "replica"  # as a replica calls itself, and its slot on the primary; synchronous_standby_names asks for it
PATIENCE = 60  # seconds for a server to replay what it has, or to follow
CREATE_SLOT = f"""
    SELECT FROM pg_create_physical_replication_slot('{NAME}', true)
    WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{NAME}')
"""
# It was away for longer than the primary keeps WAL for it.
DROP_LOST_SLOT = f"""
    SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
    WHERE slot_name = '{NAME}' AND wal_status = 'lost'
"""
# pg_rewind's words for what no second attempt mends: WAL that is gone, data that is gone, broken, or another server's.
CANNOT_REWIND = re.compile(
    "could not (find previous WAL record|read WAL record|find common ancestor|open file .*global/pg_control)"
    "|from different systems|single-user mode in target cluster failed|must be shut down cleanly"
)
RETRY_SECONDS = 3  # a PAUSE may cut a login off: pgbouncer's clients get an error then, for its server_login_retry
HOLD_SECONDS = 2  # that transactions have to end by themselves, where the old primary is still alive

Shell = Callable[[str], str]  # runs a command on a host and returns what it prints; raises Refused
Say = Callable[[str], None]
T = TypeVar("T")


class Refused(Exception):
    """What was not done, and why: for the person who called."""


@dataclass(frozen=True)
class Server:
    """A Postgres, primary or replica, as those who operate it reach it."""

    name: str
    host: str
    port: int
    data: str  # its directory
    config: str  # its postgresql.conf
    bin: str  # where Postgres' programs are
    passfile: str  # on its host: libpq's, with the passwords of `postgres` and `replicator`
    shell: Shell  # as the user that it runs as
    start: Callable[[], object]  # raises Refused, and so does the next
    stop: Callable[[], object]  # politely, or if that takes too long, by force; nothing, if it does not run

    @property
    def place(self) -> str:
        return f"host={self.host} port={self.port}"

    def run(self, command: str) -> str:
        """One of Postgres' own programs."""
        # In English: what pg_rewind says decides.
        return self.shell(f"LC_ALL=C PGPASSFILE={self.passfile} PGCONNECT_TIMEOUT=5 {self.bin}/{command}").strip()

    def sql(self, *statements: str) -> str:
        """What the superuser is answered, to each statement in a transaction of its own."""
        orders = " ".join(f"-c {shlex.quote(statement)}" for statement in statements)
        return self.run(f"psql -XAtq -v ON_ERROR_STOP=1 -d '{self.place} user=postgres dbname=postgres' {orders}")

    def takes_writes(self) -> bool | None:
        """Whether it is a primary; None, if it does not answer."""
        try:
            return self.sql("SELECT NOT pg_is_in_recovery()") == "t"
        except Refused:
            return None

    def is_alive(self) -> bool:
        return self.takes_writes() is not None

    def is_followed(self) -> bool:
        following = f"application_name = '{NAME}' AND state = 'streaming'"
        return self.sql(f"SELECT count(*) FROM pg_stat_replication WHERE {following}") == "1"


@dataclass(frozen=True)
class Pgbouncer:
    """A pgbouncer. Its databases lead to primaries; those called …_replica, to where may be read as well."""

    name: str
    host: str
    port: int
    ini: str
    passfile: str  # on its host, with the passwords of `pgbouncer`, who gives orders, and of `instagram`
    shell: Shell  # as a user who may read that, and write the configuration

    def databases(self, *servers: Server) -> dict[str, bool]:
        """The databases on these servers that are written to: name → whether clients have to wait."""
        rows = [line.split("|") for line in self.order("SHOW DATABASES").splitlines()]
        places = {(server.host, str(server.port)) for server in servers}
        return {
            name: paused == "1"
            for name, host, port, *_, paused, _ in rows
            if (host, port) in places and not name.endswith("_replica")
        }

    def hold(self, databases: dict[str, bool]) -> None:
        """Clients of these databases wait from now on. Transactions that do not end are broken off."""
        for database, held in databases.items():
            if not held:
                try:
                    self.order(f"PAUSE {database}", seconds=HOLD_SECONDS)
                except Refused:
                    self.order(f"KILL {database}")

    def go_on(self, *servers: Server) -> None:
        held = [database for database, held in self.databases(*servers).items() if held]
        if held:
            self.order(*(f"RESUME {database}" for database in held))

    def lead(self, primary: Server, replica: Server, databases: Iterable[str]) -> None:
        """Lets clients of these databases go on, to the primary. It is in the configuration, so that it stays so."""
        of_replicas = "^[a-z0-9_]+_replica = "
        edits = [
            f"/{of_replicas}/! s/{replica.place}( |$)/{primary.place}\\1/",
            f"/{of_replicas}/  s/{primary.place}( |$)/{replica.place}\\1/",
        ]
        ini = shlex.quote(self.ini)
        # Not by sed's -i: that makes a new file, and the directory is root's.
        edit = f"edited=$(sed -E {' '.join(f'-e {shlex.quote(edit)}' for edit in edits)} {ini})"
        orders = ["RELOAD", *(f"RESUME {database}" for database in databases)]
        self.shell(f"{edit} && printf '%s\\n' \"$edited\" > {ini} && {self._psql('pgbouncer', 'pgbouncer', *orders)}")

    def check_write(self, database: str) -> None:
        """Raises Refused where the app cannot write."""
        deadline = time.monotonic() + RETRY_SECONDS
        while True:
            try:
                self.shell(self._psql("instagram", database, "SELECT txid_current()"))
                return
            except Refused:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def order(self, *commands: str, seconds: float = 10) -> str:
        return self.shell(self._psql("pgbouncer", "pgbouncer", *commands, seconds=seconds))

    def _psql(self, user: str, database: str, *commands: str, seconds: float = 10) -> str:
        where = f"host={self.host} port={self.port} user={user} dbname={database} passfile={self.passfile}"
        orders = " ".join(f"-c {shlex.quote(command)}" for command in commands)
        return f"timeout {seconds} psql -XAtq -v ON_ERROR_STOP=1 -d '{where}' {orders}"


def failover(
    primary: Server, replica: Server, pgbouncers: list[Pgbouncer], *, host_is_off: bool = False, say: Say = print
) -> float:
    """Makes the replica the primary; returns for how many seconds clients had to wait. Raises Refused.

    A primary that is alive is shut down in order, and loses nothing. What a dead one had not sent yet is lost: nothing
    that was acknowledged, if replication was synchronous. Where the two have changed places already, those pgbouncers
    follow that still lead to the old primary.
    """
    led = dict(everywhere(lambda pgbouncer: (pgbouncer, pgbouncer.databases(primary)), pgbouncers))
    if not any(led.values()):
        raise Refused(f"{replica.name} is the primary already")
    writes, promoted = None if host_is_off else primary.takes_writes(), replica.takes_writes()
    if writes and promoted and all(led.values()):
        raise Refused(f"both take writes, and all pgbouncers lead to {primary.name}: stop the one that should not")
    if writes and not promoted and not primary.is_followed():
        raise Refused(
            f"{primary.name} is alive, and {replica.name} does not follow it: it would lack the latest writes"
        )
    began = time.monotonic()
    try:
        everywhere(lambda pgbouncer: pgbouncer.hold(led[pgbouncer]), pgbouncers)
        if host_is_off:
            say(f"{primary.name} is off, you say")
        elif promoted and writes is False:
            say(f"{primary.name} only reads already")
        else:
            fence(primary, at_once=not writes)
            say(f"{primary.name} is stopped, and would only read if it were started")
        if not promoted:
            promote(replica, None if host_is_off else end_of_wal(primary, must_be_known=bool(writes)))
        say(f"{replica.name} is promoted")
        everywhere(lambda pgbouncer: pgbouncer.lead(replica, primary, led[pgbouncer]), pgbouncers)
    except BaseException:
        everywhere(lambda pgbouncer: pgbouncer.go_on(primary, replica), pgbouncers)
        raise
    seconds = time.monotonic() - began
    for pgbouncer, databases in led.items():
        for database in databases:
            pgbouncer.check_write(database)
    say(f"{replica.name} takes writes: clients have waited for {seconds:.1f} s")
    return seconds


def everywhere(work: Callable[[Pgbouncer], T], pgbouncers: list[Pgbouncer]) -> list[T]:
    """The work at all of them at the same time: clients wait for the last one.

    Raises Refused when all have ended, and names those that failed.
    """
    with ThreadPoolExecutor(len(pgbouncers)) as pool:
        futures = {pgbouncer.name: pool.submit(work, pgbouncer) for pgbouncer in pgbouncers}
    failed = {name: error for name, future in futures.items() if isinstance(error := future.exception(), Refused)}
    if failed:
        said = "\n".join(f"pgbouncer of {name}: {error}" for name, error in failed.items())
        hint = f"Is the host lost, too? Then --without {','.join(failed)} (docs/failover.md: what that means)"
        raise Refused(f"{said}\n{hint}")
    return [future.result() for future in futures.values()]


def roles(servers: list[Server], pgbouncers: list[Pgbouncer]) -> tuple[Server, Server]:
    """Which of two servers is primary, and which its replica. Raises Refused if not all pgbouncers agree."""
    one, other = servers
    leading = set(everywhere(lambda pgbouncer: bool(pgbouncer.databases(one)), pgbouncers))
    if len(leading) != 1:
        raise Refused(f"some pgbouncers lead to {one.name}, and some to {other.name}: say --to which, once more")
    return (one, other) if leading.pop() else (other, one)


def fence(primary: Server, at_once: bool = False) -> None:
    """Sees to it that a server takes no writes. One that hangs is not to be waited for politely."""
    signal = f"{primary.data}/standby.signal"
    primary.shell(f"touch {signal}")
    try:
        if at_once:
            primary.shell(f"{primary.bin}/pg_ctl stop -m immediate -t 3 -D {primary.data} || true")
        primary.stop()
    except Refused:
        primary.shell(f"rm {signal}")
        raise


def end_of_wal(stopped: Server, *, must_be_known: bool) -> str | None:
    """Where a server that was shut down in order wrote its last: now, or by a failover that was interrupted.

    None, or Refused, if it has died instead.
    """
    try:
        control = stopped.run(f"pg_controldata {stopped.data}")
    except Refused:  # there is not even that left
        control = ""
    if re.search(r"^Database cluster state: +shut down$", control, re.MULTILINE):
        return re.search(r"^Latest checkpoint location: +(\S+)$", control, re.MULTILINE)[1]
    if must_be_known:
        raise Refused(f"{stopped.name} has died when it was to stop: nobody knows whether its replica has all; again?")
    return None


def promote(replica: Server, end: str | None) -> None:
    """Lets a replica replay all that it has got, and take writes; from one that was shut down, up to this end."""
    if end:
        has_all = f"NOT pg_is_in_recovery() OR pg_last_wal_replay_lsn() > '{end}'"
        wait_until(lambda: replica.sql(f"SELECT {has_all}") == "t", f"{replica.name} has replayed all")
    promoted = replica.sql(
        # The old primary's, for when it follows. From the last checkpoint on: where the two part is after that.
        CREATE_SLOT,
        # Nobody follows yet: each COMMIT would wait for that. `rejoin` takes this back.
        "ALTER SYSTEM SET synchronous_standby_names = ''",
        "SELECT FROM pg_reload_conf()",
        f"SELECT NOT pg_is_in_recovery() OR pg_promote(true, {PATIENCE})",
    )
    if promoted != "t":
        raise Refused(f"{replica.name} was not promoted within {PATIENCE} s: see its log")


def rejoin(primary: Server, old: Server, *, say: Say = print) -> None:
    """Makes a server that was primary, or has lost its place, a replica; what only it has is thrown away.

    Raises Refused.
    """
    # The first fails on a replica. pg_rewind learns only from a checkpoint that there is a new timeline.
    primary.sql("SELECT txid_current()", "CHECKPOINT", DROP_LOST_SLOT)
    has_wal = primary.sql(f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{NAME}'") == "1"
    fence(old)
    why_not = rewind(primary, old) if has_wal else f"no slot on {primary.name} has kept the WAL that it lacks"
    if why_not:
        say(f"{old.name} gets everything anew: {why_not}")
        copy(primary, old)
    follow(primary, old)
    say(f"{old.name} follows {primary.name}")


def rewind(primary: Server, old: Server) -> str:
    """Returns why the server cannot be rewound, or nothing. Raises Refused for what may go well another time."""
    source = shlex.quote(f"{primary.place} user=postgres dbname=postgres")
    old.shell(f"rm -f {old.data}/standby.signal")  # with it, pg_rewind cannot recover a server that was killed
    try:
        old.run(f"pg_rewind -D {old.data} --config-file={old.config} --source-server={source}")
        return ""
    except Refused as error:
        if not CANNOT_REWIND.search(str(error)):
            raise
        return str(error)
    finally:
        old.shell(f"touch {old.data}/standby.signal")


def copy(primary: Server, replica: Server) -> None:
    """A base backup in place of what the replica has. (Without its last file, pg_control, nobody could start it.)"""
    # While it has something: a primary that it cannot reach, or not log in to, would leave it with nothing.
    way = f"{primary.place} user=replicator dbname=replication replication=true"
    replica.run(f"psql -XAtq -d '{way}' -c IDENTIFY_SYSTEM")
    replica.shell(f"find {replica.data} -mindepth 1 -delete")
    replica.run(f"pg_basebackup -d '{primary.place} user=replicator' -D {replica.data} --checkpoint=fast")
    replica.shell(f"touch {replica.data}/standby.signal")


def follow(primary: Server, replica: Server) -> None:
    """Starts a replica that has the data of its primary, and waits until it has caught up."""
    primary.sql(CREATE_SLOT)
    way = f"{primary.place} user=replicator application_name={NAME} passfile={replica.passfile}"
    settings = f"primary_conninfo = '{way}'\nprimary_slot_name = '{NAME}'\n"
    replica.shell(f"printf %s {shlex.quote(settings)} >> {replica.data}/postgresql.auto.conf")
    replica.start()
    wait_until(replica.is_alive, f"{replica.name} answers")
    # Those of its time as primary would keep WAL for nobody.
    replica.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
    wait_until(primary.is_followed, f"{replica.name} follows {primary.name}")
    synchronous(primary, True)


def synchronous(primary: Server, on: bool) -> None:
    """Whether a COMMIT waits for the replica; on: as the configuration says. Off, those that wait are let go."""
    change = "RESET synchronous_standby_names" if on else "SET synchronous_standby_names = ''"
    primary.sql(f"ALTER SYSTEM {change}", "SELECT pg_reload_conf()")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise Refused(f"not within {PATIENCE} s: {what}")
        time.sleep(0.1)
