"""The switch from one release to another: out of the edges' rotation, and no further than the first failure."""

import json
import shlex
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from invoke import Exit

from deploy.hosts import CommandFailed, Host, Inventory, each, try_each
from deploy.rotation import take_out

CHECK = f"python3 -IS -c {shlex.quote((Path(__file__).parent / 'check_host.py').read_text())}"
SWITCH_SECONDS = 180  # 25 for what is at hand to end, then the role's patience, and some more


@dataclass
class State:
    release: str  # which `current` names, or "" where there was none yet
    health: str
    up: str = ""  # how long gunicorn's process has been
    complaints: list[str] = field(default_factory=list)  # the lines of /readyz that are not ok


def roll(inventory: Inventory, release: str, batches: list[list[Host]]) -> None:
    """Switches the hosts to a release, a batch at a time; meanwhile the edges send these app servers no requests.

    A host that is not well with the release is put back to what it ran before, and Exit is raised: the later batches
    have not seen the release then. A host that is not well with the old one either gets no more requests.
    """
    app = inventory.of("app")
    before = each([host for batch in batches for host in batch], state)
    for batch in filter(None, batches):
        serving = [host for host in batch if host in app]
        take_out(inventory, serving if len(serving) < len(app) else [])  # somebody has to be there
        _, failures = try_each(batch, partial(switch, release=release, before=before))
        if failures:
            _, lost = try_each(failures, partial(put_back, before=before))
            take_out(inventory, [host for host in lost if host in app])
            raise Exit(_what_failed(release, failures, lost))
    take_out(inventory, [])


def put_back(host: Host, before: dict[Host, State]) -> None:
    """Switches a host to the release that it ran before. Raises CommandFailed."""
    if not before[host].release:
        raise CommandFailed(f"{host.name} ran nothing before")
    switch(host, before[host].release, before)


def switch(host: Host, release: str, before: dict[Host, State]) -> None:
    """Links `current` to the release, restarts what the host's roles run, and waits until that is well.

    What /readyz complained about before, a Memcached that is away, is not the release's fault. Raises CommandFailed.
    """
    commands = [f"ln -sfn releases/{release} .current", "mv -T .current current"]
    commands += [role["restart"] for role in host.roles.values() if "restart" in role]
    commands += [role["check"] for role in host.roles.values() if "check" in role]
    if "app" in host.roles:
        patience = host.roles["app"]["patience"]
        commands.append(f"{check(host)} {release} {shlex.quote(json.dumps(before[host].complaints))} {patience}")
    try:
        host.run(" && ".join(commands), SWITCH_SECONDS)
    except CommandFailed:
        host.say(f"is not well with {release}")
        raise
    host.say(f"runs {release}")


def state(host: Host) -> State:
    """What a host runs, and how that is. Raises CommandFailed when the host does not answer."""
    release = host.run("readlink current || true").strip().rpartition("/")[2]
    try:
        for role in host.roles.values():
            if "check" in role:
                host.run(role["check"])
        if "app" not in host.roles:
            return State(release, "ok")
        running, seconds, complaints = json.loads(host.run(check(host)))
    except CommandFailed as error:
        return State(release, str(error))
    wrong = [*complaints, *([f"gunicorn runs {running}"] if running != release else [])]
    return State(release, "; ".join(wrong) or "ok", f"{seconds} s", complaints)


def check(host: Host) -> str:
    """The beginning of a command that asks gunicorn on the host (check_host.py)."""
    return f"{CHECK} {host.address} {host.roles['app']['listen']}"


def _what_failed(release: str, failures: dict[Host, CommandFailed], lost: Collection[Host]) -> str:
    lines = [str(error) for error in failures.values()]
    lines += [
        f"{host.name} could not be put back, and gets no requests" if host in lost else f"{host.name} was put back"
        for host in failures
    ]
    return "\n".join([f"{release} was stopped.", *lines, "Where that leaves us: fab status"])
