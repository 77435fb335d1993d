"""The hosts of deploy/inventory.toml: what runs on each, and how to run commands there by SSH, on many at once."""

import os
import shlex
import threading
import time
import tomllib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from fabric import Config, Connection
from invoke import CommandTimedOut, Context, Exit
from paramiko import RejectPolicy

INVENTORY = Path(__file__).parent / "inventory.toml"
CONNECT_SECONDS = 5
HANDSHAKE_SECONDS = 30  # cryptography, with all hosts at once
COMMAND_SECONDS = 60  # for a command that names no other limit

T = TypeVar("T")
_printing = threading.Lock()
_began = time.monotonic()


class CommandFailed(Exit):
    """A command on a host ended with an error, or did not end in time. It reads as: the host, and what it said.

    It is an Exit, so that a task that nobody could save ends with that sentence, and not with a traceback.
    """


@dataclass(eq=False)
class Host:
    name: str
    address: str
    roles: dict[str, dict[str, Any]]  # role → what the inventory says of it
    user: str
    port: int
    directory: str  # where releases/, current and the like are; commands run in it
    venvs: str  # the releases' dependencies
    config: Config = field(repr=False)
    known_hosts: str = field(repr=False)

    @cached_property
    def connection(self) -> Connection:
        """Opened by the first command, and kept. A host that is not in known_hosts, or has another key, is refused."""
        connection = Connection(
            self.address, user=self.user, port=self.port, config=self.config, connect_timeout=CONNECT_SECONDS
        )
        connection.client.set_missing_host_key_policy(RejectPolicy())  # Fabric's default believes any key
        connection.client.load_system_host_keys(self.known_hosts)
        connection.connect_kwargs.setdefault("banner_timeout", HANDSHAKE_SECONDS)
        connection.connect_kwargs.setdefault("auth_timeout", HANDSHAKE_SECONDS)
        return connection

    def connect(self) -> None:
        """Raises CommandFailed."""
        try:
            self.connection.open()
        except Exception as error:
            raise CommandFailed(f"{self.name} ({self.address}): {type(error).__name__} {error}") from error

    def run(self, command: str, seconds: float = COMMAND_SECONDS, directory: str = "") -> str:
        """What the command printed. It runs in a shell, in the host's directory unless another is named.

        Raises CommandFailed.
        """
        full = f"cd {shlex.quote(directory or self.directory)} && {{ {command}\n}}"
        try:
            done = self.connection.run(full, hide=True, warn=True, in_stream=False, timeout=seconds)
        except CommandTimedOut as error:
            raise CommandFailed(f"{self.name}: not done within {seconds} s: {_first_line(command)}") from error
        except Exception as error:  # of the network, of SSH
            raise CommandFailed(f"{self.name}: {type(error).__name__} {error}: {_first_line(command)}") from error
        if done.failed:
            said = (done.stderr + done.stdout).strip() or f"exit code {done.exited}: {_first_line(command)}"
            raise CommandFailed(f"{self.name}: {said}")
        return done.stdout

    def put(self, local: Path, remote: str) -> None:
        """Copies a file to a path in the host's directory."""
        try:
            self.connection.sftp().get_channel().settimeout(COMMAND_SECONDS)  # of each answer, not of the whole
            self.connection.put(str(local), f"{self.directory}/{remote}")
        except Exception as error:
            raise CommandFailed(f"{self.name}: {local.name} to {remote}: {type(error).__name__} {error}") from error

    def write(self, text: str, path: str) -> None:
        """Makes it the text of a file. Raises CommandFailed."""
        try:
            self.connection.sftp().get_channel().settimeout(COMMAND_SECONDS)
            with self.connection.sftp().open(path, "w") as file:
                file.write(text)
        except Exception as error:
            raise CommandFailed(f"{self.name}: {path}: {type(error).__name__} {error}") from error

    def say(self, text: str) -> None:
        """Tells the person at the keyboard, with the seconds since `fab` began."""
        with _printing:
            print(f"{time.monotonic() - _began:6.1f} s  {self.name:12}{text}", flush=True)


@dataclass
class Inventory:
    hosts: list[Host]
    roles: dict[str, dict[str, Any]]
    lock: Host  # knows who deploys, and what was deployed: of all hosts that have releases, this one is asked
    migrations: Host  # runs migrations
    migration_env_files: str  # with these settings: see ENV_FILES in instagram/settings.py
    postgres: dict[str, list[str]]  # physical server → its two hosts
    redis: dict[str, list[str]]  # "shardmap", "feeds" → the host of its first master, and that of a replica, if any
    network: str  # where all of our hosts are
    settings: dict[str, str]  # of the app, where it is no secret

    def of(self, *roles: str) -> list[Host]:
        """The hosts that have one of these roles, in the inventory's order."""
        return [host for host in self.hosts if set(roles) & host.roles.keys()]


def load(context: Context, path: str = "") -> Inventory:
    """Reads the inventory: of this path, or of the environment's INVENTORY, or deploy/inventory.toml.

    Raises Exit with a sentence when a host has a role that there is not.
    """
    file = Path(path or os.environ.get("INVENTORY") or INVENTORY)
    inventory = tomllib.loads(file.read_text())
    known_hosts = os.path.expanduser(inventory["known_hosts"])
    hosts = {}
    for name, own in inventory["hosts"].items():
        if unknown := set(own["roles"]) - inventory["roles"].keys():
            raise Exit(f"{file}: {name} has the role {unknown}; there are: {', '.join(inventory['roles'])}")
        settings = inventory["defaults"] | own | {"roles": {role: inventory["roles"][role] for role in own["roles"]}}
        hosts[name] = Host(name=name, config=context.config, known_hosts=known_hosts, **settings)
    return Inventory(
        list(hosts.values()),
        roles=inventory["roles"],
        lock=hosts[inventory["lock"]],
        migrations=hosts[inventory["migrations"]],
        migration_env_files=inventory["migration_env_files"],
        postgres=inventory.get("postgres", {}),
        redis=inventory.get("redis", {}),
        network=inventory.get("network", ""),
        settings=inventory.get("settings", {}),
    )


def each(hosts: Iterable[Host], work: Callable[[Host], T]) -> dict[Host, T]:
    """The work on all of these hosts at once: host → what it returned.

    Returns when all have ended. Raises Exit, with what went wrong on which hosts, if anything did.
    """
    results, failures = try_each(hosts, work)
    if failures:
        raise Exit("\n".join(str(error) for error in failures.values()))
    return results


def try_each(hosts: Iterable[Host], work: Callable[[Host], T]) -> tuple[dict[Host, T], dict[Host, CommandFailed]]:
    """As `each`, for who goes on without the hosts that failed: (host → result, host → what went wrong)."""
    hosts = list(hosts)
    results, failures = {}, {}
    with ThreadPoolExecutor(max(1, len(hosts))) as pool:
        futures = {host: pool.submit(work, host) for host in hosts}
    for host, future in futures.items():
        try:
            results[host] = future.result()
        except CommandFailed as error:
            failures[host] = error
    return results, failures


def _first_line(command: str) -> str:
    return command.strip().splitlines()[0][:100]
