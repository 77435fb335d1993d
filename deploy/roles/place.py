"""What a role needs on a host, as `fab provision` brings it there: packages, files, systemd units."""

import shlex
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from deploy.hosts import Host, Inventory
from deploy.local.layout import DEPLOY, render

ETC = "/etc/instagram"
STATE = "/var/lib/instagram"
UNITS = "/etc/systemd/system"

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


def timer(name: str) -> Service:
    return Service(name, [unit_as_it_is(name)], "restart")


def env_text(settings: dict[str, str]) -> str:
    return "".join(f"{name}={value}\n" for name, value in sorted(settings.items()))


def one_line(flags: str) -> str:
    """A file of one flag a line, with comments, as systemd wants it."""
    return " ".join(shlex.split(flags, comments=True))
