"""`fab failover`, `rejoin` and `sync`: deploy/failover.py on the hosts of the inventory, or on a local stack.

fab failover --server b                 the replica of shard server b becomes the primary
fab failover --server b --stack dev     the same here, with a stack that has replicas
"""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from fabric import task
from invoke import Context, Exit

from deploy import failover as steps
from deploy import hosts
from deploy.failover import Pgbouncer, Refused, Server
from deploy.hosts import CommandFailed, Host
from deploy.local import pairs
from deploy.local.layout import Stack

SECONDS = 6 * 3600  # for one command: the longest copies a whole server

HELP = {
    "server": "a, b …: of the inventory's [postgres]",
    "stack": "a local stack, instead of the inventory's hosts",
    "inventory": "another file than the usual one",
    "without": "app3,app4: hosts of pgbouncers that are lost (see the runbook)",
}


@task(help=HELP | {"to": "who shall be primary; without it, whoever is the replica", "host_is_off": "see the runbook"})
def failover(
    context: Context,
    server: str,
    to: str = "",
    host_is_off: bool = False,
    without: str = "",
    stack: str = "",
    inventory: str = "",
) -> None:
    """Makes a server's replica the primary, whether that is dead or alive (docs/failover.md)."""
    servers, pgbouncers = _reached(context, server, stack, inventory, without)
    with _told():
        if to:
            if to not in [one.name for one in servers]:
                raise Refused(f"{to} is none of {servers[0].name}, {servers[1].name}")
            primary, replica = sorted(servers, key=lambda one: one.name == to)
        else:
            primary, replica = steps.roles(servers, pgbouncers)
        steps.failover(primary, replica, pgbouncers, host_is_off=host_is_off)
        if without:
            again = f"fab failover --server {server} --to {replica.name}{' --host-is-off' if host_is_off else ''}"
            print(f"Still lead to {primary.name}: {without}. As soon as they are back: `{again}` (docs/failover.md)")


@task(help=HELP)
def rejoin(context: Context, server: str, without: str = "", stack: str = "", inventory: str = "") -> None:
    """Makes the server that was primary before a failover the replica."""
    servers, pgbouncers = _reached(context, server, stack, inventory, without)
    with _told():
        steps.rejoin(*steps.roles(servers, pgbouncers))


@task(help=HELP | {"off": "COMMITs that wait for a replica are let go, and none waits any more"})
def sync(
    context: Context, server: str, off: bool = False, without: str = "", stack: str = "", inventory: str = ""
) -> None:
    """Whether a COMMIT waits for the replica: as the configuration says, or with --off, no longer."""
    servers, pgbouncers = _reached(context, server, stack, inventory, without)
    with _told():
        primary, _ = steps.roles(servers, pgbouncers)
        steps.synchronous(primary, not off)
        print(f"{primary.name}: {'no COMMIT waits for a replica' if off else 'as its configuration says'}")


@contextmanager
def _told() -> Iterator[None]:
    """What is refused ends the task with a sentence."""
    try:
        yield
    except Refused as error:
        raise Exit(str(error)) from None


def _reached(
    context: Context, server: str, stack: str, inventory: str, without: str
) -> tuple[list[Server], list[Pgbouncer]]:
    """The two Postgres of a server, and all pgbouncers but those that are left out."""
    if stack:
        local = Stack(stack)
        local.load_secrets()
        names = [f"postgres_{server}", f"postgres_{server}_replica"]
        return [pairs.server(local, name) for name in names], [pairs.pgbouncer(local)]
    known = hosts.load(context, inventory)
    if server not in known.postgres:
        raise Exit(f"There is no server {server}, but {', '.join(known.postgres)}.")
    pair = [host for host in known.hosts if host.name in known.postgres[server]]
    if len(pair) != 2:
        raise Exit(f"Server {server} has no replica, only {known.postgres[server]}.")
    pgbouncers, left_out = known.of("pgbouncer"), set(filter(None, without.split(",")))
    if strange := left_out - {host.name for host in pgbouncers}:
        raise Exit(f"No pgbouncer is on {', '.join(strange)}.")
    kept = [_pgbouncer(host) for host in pgbouncers if host.name not in left_out]
    if not kept:
        raise Exit("No pgbouncer is left that would lead anybody to the new primary.")
    return [_server(host) for host in pair], kept


def _server(host: Host) -> Server:
    role = host.roles["postgres"]
    return Server(
        name=host.name,
        host=host.address,
        shell=_shell(host, "postgres"),
        start=lambda: _run(host, role["start"]),
        stop=lambda: _run(host, role["stop"]),
        **{name: role[name] for name in ("port", "data", "config", "bin", "passfile")},
    )


def _pgbouncer(host: Host) -> Pgbouncer:
    role = host.roles["pgbouncer"]
    own = {name: role[name] for name in ("port", "ini", "passfile")}
    return Pgbouncer(name=host.name, host=host.address, shell=_shell(host, "postgres"), **own)


def _shell(host: Host, user: str) -> steps.Shell:
    return lambda command: _run(host, f"sudo -nu {user} sh -c {shlex.quote(command)}")


def _run(host: Host, command: str) -> str:
    try:
        return host.run(command, SECONDS, "/")
    except CommandFailed as error:
        raise Refused(str(error)) from None
