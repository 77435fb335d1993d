"""The switch from one release to another: beside the one that serves, and no further than the first failure.

An app host has two slots, each with a port: slots/8000 and slots/8001 lead to releases, and the gunicorns of both run.
One of them serves, and `current` leads to it; the other one stands by with the release before. A deploy starts the new
release in the slot that stands by, and when that is well, the edges are led there: no request meets a gunicorn that
starts or stops, and a rollback is nothing but the way back.
"""

import json
import shlex
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from invoke import Exit

from deploy.hosts import CommandFailed, Host, Inventory, each, try_each
from deploy.rotation import lead

CHECK = f"-IS -c {shlex.quote((Path(__file__).parent / 'check_host.py').read_text())}"
SWITCH_SECONDS = 180  # 25 for what is at hand to end, then the role's patience, and some more


@dataclass
class State:
    target: str  # where `current` leads: a slot on app hosts, a release on the others; "" where it is still to be made
    release: str
    health: str
    up: str = ""  # how long gunicorn's process has been
    complaints: list[str] = field(default_factory=list)  # the lines of /readyz that are not ok
    slots: dict[int, str] = field(default_factory=dict)  # port → its release, or ""

    @property
    def port(self) -> int:
        """Where the app is served, or 0."""
        return next((port for port in self.slots if self.target == f"slots/{port}"), 0)

    @property
    def standby(self) -> int:
        """The other port."""
        return next(port for port in self.slots if port != self.port)


def roll(inventory: Inventory, release: str, batches: list[list[Host]]) -> None:
    """Switches the hosts to a release, a batch at a time.

    A host that is not well with the release is put back to what it was before, and Exit is raised: the later batches
    have not seen the release then.
    """
    app = inventory.of("app")
    before = each({*app, *(host for batch in batches for host in batch)}, state)
    serving = {host: before[host].port for host in app if before[host].port}
    for batch in filter(None, batches):
        ports, failures = try_each(batch, partial(switch, release=release, before=before))
        if ports := {host: port for host, port in ports.items() if port}:
            serving |= ports
            lead(inventory, {host: serving[host] for host in app if host in serving})
            for host, port in ports.items():
                host.say(f"serves {release} on {port}")
        if failures:
            _, lost = try_each(failures, partial(put_back, before=before))
            raise Exit(_what_failed(release, failures, lost))


def switch(host: Host, release: str, before: dict[Host, State]) -> int:
    """Starts a release on a host, and returns when that is well: at which port the app is, or 0 on other hosts.

    Raises CommandFailed.
    """
    now, port, target = before[host], 0, f"releases/{release}"
    try:
        if "app" in host.roles:
            port = find(host, release, now) or start(host, release, now)
            target = f"slots/{port}"
        host.run(" && ".join([*linked(target, "current"), *restarts(host)]), SWITCH_SECONDS)
    except CommandFailed:
        host.say(f"is not well with {release}")
        raise
    if not port:
        host.say(f"runs {release}")
    return port


def find(host: Host, release: str, now: State) -> int:
    """The port where the release runs already, and is well; or 0."""
    for port in (now.port, now.standby):
        if now.slots.get(port) == release:
            try:
                host.run(f"{check(host, port)} {wanted(release, now)} 0")
                return port
            except CommandFailed:
                host.say(f"has {release} on {port}, which is not well")
    return 0


def start(host: Host, release: str, now: State) -> int:
    """Starts the release in the slot that stands by, waits until it is well, and returns its port.

    What /readyz complained about before, a Memcached that is away, is not the release's fault.
    """
    role, port = host.roles["app"], now.standby
    commands = ["mkdir -p slots", *linked(f"../releases/{release}", f"slots/{port}"), role["restart"].format(port=port)]
    commands.append(f"{check(host, port)} {wanted(release, now)} {role['patience']}")
    host.run(" && ".join(commands), SWITCH_SECONDS)
    return port


def put_back(host: Host, before: dict[Host, State]) -> None:
    """Leaves a host as it was before it was to switch. Raises CommandFailed."""
    was = before[host]
    commands = []
    if "app" in host.roles:
        role, port = host.roles["app"], was.standby
        if was.slots[port]:
            commands += [*linked(f"../releases/{was.slots[port]}", f"slots/{port}"), role["restart"].format(port=port)]
        else:
            commands += [role["stop"].format(port=port), f"rm -f slots/{port}"]
    if was.target:
        commands += [*linked(was.target, "current"), *restarts(host)]
    else:
        commands.append("rm -f current")
    host.run(" && ".join(commands), SWITCH_SECONDS)


def linked(target: str, link: str) -> list[str]:
    """Commands that let a link lead there, in one moment."""
    return [f"ln -sfn {target} {link}.new", f"mv -T {link}.new {link}"]


def restarts(host: Host) -> list[str]:
    """Commands that restart what runs in `current`, and see whether it does."""
    roles = [role for name, role in host.roles.items() if name != "app"]
    return [role[what] for what in ("restart", "check") for role in roles if what in role]


def state(host: Host) -> State:
    """What a host runs, and how that is. Raises CommandFailed when the host does not answer."""
    ports = host.roles["app"]["slots"] if "app" in host.roles else []
    links = ["current", *(f"slots/{port}" for port in ports)]
    read = "; ".join(f"readlink {link} || echo; basename $(readlink -e {link} || echo .)" for link in links)
    target, release, *others = host.run(read).splitlines()
    slots = dict(zip(ports, ("" if name == "." else name for name in others[1::2]), strict=True))
    now = State(target, "" if release == "." else release, "ok", slots=slots)
    try:
        for role in host.roles.values():
            if "check" in role:
                host.run(role["check"])
        if now.port:
            running, seconds, now.complaints = json.loads(host.run(check(host, now.port)))
            wrong = [*now.complaints, *([f"gunicorn runs {running}"] if running != now.release else [])]
            now.health, now.up = "; ".join(wrong) or "ok", f"{seconds} s"
        elif ports:
            now.health = "serves nothing"
    except CommandFailed as error:
        now.health = str(error)
    return now


def check(host: Host, port: int) -> str:
    """The beginning of a command that asks gunicorn on the host (check_host.py)."""
    return f"slots/{port}/.venv/bin/python {CHECK} {host.address} {port}"


def wanted(release: str, now: State) -> str:
    return f"{release} {shlex.quote(json.dumps(now.complaints))}"


def _what_failed(release: str, failures: dict[Host, CommandFailed], lost: dict[Host, CommandFailed]) -> str:
    lines = [str(error) for error in failures.values()]
    lines += [
        f"{host.name} {f'could not be put back: {lost[host]}' if host in lost else 'was put back'}" for host in failures
    ]
    return "\n".join([f"{release} was stopped.", *lines, "Where that leaves us: fab status"])
