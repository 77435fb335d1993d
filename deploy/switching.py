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
from itertools import islice
from pathlib import Path

from invoke import Exit

from deploy.hosts import CommandFailed, Host, Inventory, each, try_each
from deploy.record import live_releases
from deploy.rotation import lead

CHECK = f"-IS -c {shlex.quote((Path(__file__).parent / 'check_host.py').read_text())}"
STANDBY_SECONDS = 3  # until a gunicorn that stands by has to be well
SWITCH_SECONDS = 180  # 25 for what is at hand to end, then the role's patience, and some more


@dataclass
class State:
    target: str  # where `current` leads: a slot on app hosts, a release on the others; "" where it is still to be made
    release: str
    health: str = ""
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
    app, edges = inventory.of("app"), inventory.of("edge")
    before = each({*app, *(host for batch in batches for host in batch)}, state)
    # Not a host that was away, and came back with what it ran then.
    current = {release, *live_releases(inventory.lock)[-2:]}
    serving = {host: before[host].port for host in app if before[host].port and before[host].release in current}
    if serving:
        # An edge that was away, or a deploy that was cut off: else a slot that is in use would be taken for a free one.
        lead(edges, serving)
    for batch in filter(None, batches):
        ports, failures = try_each(batch, partial(switch, release=release, before=before))
        _, lost = try_each(failures, partial(put_back, before=before))
        if ports := {host: port for host, port in ports.items() if port}:
            serving |= ports
            lead(edges, {host: serving[host] for host in app if host in serving})
            for host, port in ports.items():
                host.say(f"serves {release} on {port}")
        if failures:
            raise Exit(_what_failed(release, failures, lost))


def switch(host: Host, release: str, before: dict[Host, State]) -> int:
    """Starts a release on a host, and returns when that is well: at which port the app is, or 0 on other hosts.

    Raises CommandFailed.
    """
    try:
        if "app" not in host.roles:
            finish(host, f"releases/{release}")
            host.say(f"runs {release}")
            return 0
        now = before[host]
        for port in (now.port, now.standby):
            if now.slots.get(port) == release:
                try:
                    finish(host, f"slots/{port}", f"{check(host, port)} {wanted(release, now)} {STANDBY_SECONDS}")
                    return port
                except CommandFailed:
                    host.say(f"has {release} on {port}, which is not well")
        # What /readyz complained about before, a Memcached that is away, is not the release's fault.
        role, port = host.roles["app"], now.standby
        begin = [
            "mkdir -p slots",
            *linked(f"../releases/{release}", f"slots/{port}"),
            role["restart"].format(port=port),
        ]
        finish(host, f"slots/{port}", *begin, f"{check(host, port)} {wanted(release, now)} {role['patience']}")
        return port
    except CommandFailed:
        host.say(f"is not well with {release}")
        raise


def finish(host: Host, target: str, *first: str) -> None:
    """After these commands, lets `current` lead there, and restarts what runs in that. Raises CommandFailed."""
    host.run(" && ".join([*first, *linked(target, "current"), *restarts(host)]), SWITCH_SECONDS)


def put_back(host: Host, before: dict[Host, State]) -> None:
    """Leaves a host as it was before it was to switch. Raises CommandFailed."""
    was = before[host]
    commands = [*linked(was.target, "current"), *restarts(host)] if was.target else ["rm -f current"]
    if "app" in host.roles:
        role, port = host.roles["app"], was.standby
        if was.slots[port]:
            commands += [*linked(f"../releases/{was.slots[port]}", f"slots/{port}"), role["restart"].format(port=port)]
        else:
            commands += [role["stop"].format(port=port), f"rm -f slots/{port}"]
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
    asked = [f"readlink {link} || echo; basename $(readlink -e {link} || echo .)" for link in links]
    asked += [f'[ "$(readlink current)" != slots/{port} ] || {check(host, port)}' for port in ports]
    checks = [role["check"] for role in host.roles.values() if "check" in role]
    asked += [f"{{ {one}; }} || echo {shlex.quote(f'{one}: failed')}" for one in checks]
    answers = iter(host.run(f"{{ {'; '.join(asked)}; }} 2>&1; true").splitlines())
    target, release, *others = islice(answers, 2 * len(links))
    slots = dict(zip(ports, ("" if name == "." else name for name in others[1::2]), strict=True))
    now = State(target, "" if release == "." else release, slots=slots)
    wrong = ["serves nothing"] if ports and not now.port else []
    for answer in answers:
        if answer.startswith("["):
            running, seconds, now.complaints = json.loads(answer)
            now.up = f"{seconds} s"
            wrong += [*now.complaints, *([f"gunicorn runs {running}"] if running != now.release else [])]
        else:
            wrong.append(answer)
    now.health = "; ".join(wrong) or "ok"
    return now


def check(host: Host, port: int) -> str:
    """The beginning of a command that asks gunicorn on the host (check_host.py)."""
    return f"slots/{port}/.venv/bin/python {CHECK} {host.address} {port}"


def wanted(release: str, now: State) -> str:
    """What the release is to be, and what it may complain about: what that was, not what was said of it."""
    return f"{release} {shlex.quote(json.dumps([complaint.split(':')[0] for complaint in now.complaints]))}"


def _what_failed(release: str, failures: dict[Host, CommandFailed], lost: dict[Host, CommandFailed]) -> str:
    lines = [str(error) for error in failures.values()]
    lines += [
        f"{host.name} {f'could not be put back: {lost[host]}' if host in lost else 'was put back'}" for host in failures
    ]
    return "\n".join([f"{release} was stopped.", *lines, "Where that leaves us: fab status"])
