"""`fab provision`: makes bare Debian hosts, reached by SSH as root, members of their roles (docs/provisioning.md).

Each step looks before it acts, and says whether it changed something: a second run changes nothing. It goes from host
to host, and stops at the first failure, so that a mistake reaches one of many.
"""

import os
import shlex
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from fabric import task
from invoke import Context, Exit

from deploy import hosts
from deploy.hosts import CommandFailed, Host, Inventory, try_each
from deploy.local.layout import Failed
from deploy.local.machine import INSTALL
from deploy.primaries import primaries_first
from deploy.record import live_releases, locked, log
from deploy.roles import parts
from deploy.roles.place import APP_SECRETS, SERVER_SECRETS, STATE, File, Part, Place, Service, ip
from deploy.rotation import lead
from deploy.shipping import build, install, ship
from deploy.switching import linked, state

SECRETS = Path.home() / ".config/instagram/secrets.env"
INSTALL_SECONDS = 900
START_SECONDS = 120
COPY_SECONDS = 4 * 3600  # of a Postgres, to a new replica

APT_INSTALL = """export DEBIAN_FRONTEND=noninteractive; apt-get update -q
apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=120"""

# Users that nobody logs in as with a password: `instagram` runs our code; `deploy` owns it, brings it, reads its log.
USERS = """
id instagram || useradd --system --user-group --no-create-home --shell /usr/sbin/nologin instagram
id deploy || useradd --create-home --shell /bin/bash deploy
usermod --append --groups systemd-journal deploy
"""


class Steps:
    """Says of each step on a host whether it changed something, and counts those that did."""

    def __init__(self, host: Host) -> None:
        self.host, self.changed = host, 0

    def did(self, what: str, changed: bool) -> bool:
        self.host.say(f"{'changed' if changed else 'unchanged':11}{what}")
        self.changed += changed
        return changed

    def unless(self, done: str, command: str, what: str, seconds: float = hosts.COMMAND_SECONDS) -> bool:
        """Runs the command where the other one, which asks whether that is done already, fails."""
        missing = self.host.run(f"if {{ {done}; }} >/dev/null 2>&1; then echo no; else echo yes; fi").strip() == "yes"
        if missing:
            self.host.run(command, seconds)
        return self.did(what, missing)


@task(help={"name": "this host alone", "role": "only hosts with this role", "secrets": f"instead of {SECRETS}"})
def provision(context: Context, name: str = "", role: str = "", secrets: str = "", inventory: str = "") -> None:
    """Makes bare Debian hosts members of their roles, one after the other; changes nothing where all is in place."""
    known = hosts.load(context, inventory)
    chosen = [host for host in known.hosts if name in ("", host.name) and role in ("", *host.roles)]
    if not chosen:
        raise Exit("The inventory has no such host.")
    given = read_secrets(Path(secrets or os.environ.get("SECRETS") or SECRETS))
    for host in chosen:
        began = time.monotonic()
        concerns_deploys = {"app", "worker", "push", "edge"} & host.roles.keys() and is_there(known.lock)
        with locked(known, "provisions") if concerns_deploys else nullcontext():
            try:
                changed = provision_host(host, known, given)
            except (CommandFailed, Failed) as error:
                raise Exit(str(error)) from None
            if "edge" in host.roles:
                lead_to_what_serves(host, known)
        host.say(f"{changed} changed ({time.monotonic() - began:.1f} s)")


def lead_to_what_serves(edge: Host, inventory: Inventory) -> None:
    """A new edge knows the app hosts' first slots alone, and one that was away, what served then."""
    states, _ = try_each(inventory.of("app"), state)
    if serving := {host: now.port for host, now in states.items() if now.port}:
        lead([edge], serving)


def is_there(host: Host) -> bool:
    """Whether somebody could deploy to it: until it is provisioned itself, nobody can."""
    try:
        host.run("true")
    except CommandFailed:
        return False
    return True


def read_secrets(file: Path) -> dict[str, str]:
    """NAME=value lines. Raises Exit when one is missing, or others than the file's owner may read it."""
    if not file.exists():
        raise Exit(f"{file} is missing. deploy/secrets.example.env says what belongs in it.")
    if file.stat().st_mode & 0o077:
        raise Exit(f"Others may read {file}: chmod 600 {file}")
    lines = [line for line in file.read_text().splitlines() if "=" in line and not line.startswith("#")]
    found = dict(line.split("=", 1) for line in lines)
    if missing := [name for name in (*SERVER_SECRETS, *APP_SECRETS) if not found.get(name)]:
        raise Exit(f"{file} lacks {', '.join(missing)}.")
    return found


def provision_host(host: Host, inventory: Inventory, secrets: dict[str, str]) -> int:
    """Returns how many steps changed something. Raises CommandFailed, or Failed for a template that lacks a value."""
    root = replace(host, user="root", directory="/")  # ours is still to be made
    root.connect()
    memory, cores = root.run("awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo; nproc").split()
    needed = parts(Place(host, primaries_first(host, inventory), secrets, int(memory), int(cores)))
    steps = Steps(root)
    packages(steps, needed)
    users_and_directories(steps, host)
    services = [service for part in needed for service in part.services]
    files = [*(file for part in needed for file in part.files), *(file for one in services for file in one.files)]
    for file in {file.path: file for file in files}.values():
        put(steps, file)
    root.run("systemctl daemon-reload")
    for part in needed:
        for what, done, command in part.prepare:
            steps.unless(done, command, what, COPY_SECONDS)
    if any(service.needs_release for service in services):
        first_release(steps, host, inventory)
    # Of two slots, first the one that serves nobody.
    serves = root.run(f"readlink {host.directory}/current || true").strip().rpartition("/")[2]
    for service in sorted(services, key=lambda one: one.unit.endswith(f"@{serves}")):
        start(steps, service)
    return steps.changed


def packages(steps: Steps, needed: list[Part]) -> None:
    """The base's as Debian means them to be; servers without Debian's own units, which would run beside ours."""
    base, *roles = [part.packages for part in needed]
    servers = sorted({package for packages in roles for package in packages})
    for names, command in ((base, APT_INSTALL), (servers, f"sh -c {shlex.quote(INSTALL)} install")):
        if names:
            text = " ".join(names)
            installed = f"dpkg-query -W -f '${{db:Status-Status}}\\n' {text} | grep -cx installed"
            steps.unless(
                f'[ "$({installed})" = {len(names)} ]', f"{command} {text}", f"packages: {text}", INSTALL_SECONDS
            )


def users_and_directories(steps: Steps, host: Host) -> None:
    steps.unless("id instagram && id -nG deploy | grep -w systemd-journal", USERS, "users: instagram, deploy")
    # Debian's installer leads a host's own name to 127.0.1.1, where no server of ours listens: a deploy's check and
    # a failover, which use the name there, would not find them.
    steps.unless(
        "! grep -q '^127[.]0[.]1[.]1[[:space:]]' /etc/hosts",
        f"sed -Ei 's/^127[.]0[.]1[.]1([[:space:]])/{ip(host)}\\1/' /etc/hosts",
        "its name leads to its address",
    )
    keys, home = "/root/.ssh/authorized_keys", "/home/deploy/.ssh"
    steps.unless(
        f"cmp {keys} {home}/authorized_keys",
        f"install -d -o deploy -g deploy -m 700 {home}; install -o deploy -g deploy -m 600 {keys} {home}",
        "who may log in as root may deploy",
    )
    theirs = (host.directory, f"{host.directory}/releases")
    for owner, directory in [("root", "/etc/instagram"), ("root", STATE), *(("deploy", one) for one in theirs)]:
        steps.unless(
            f'[ "$(stat -c "%F %U %a" {directory})" = "directory {owner} 755" ]',
            f"install -d -o {owner} -m 755 {directory}",
            directory,
        )


def put(steps: Steps, file: File) -> None:
    """Writes a file that differs, by way of a draft that only root may read."""
    host, path, draft = steps.host, shlex.quote(file.path), shlex.quote(f"{file.path}.new")
    there = host.run(f"stat -c '%U %a' {path} 2>/dev/null && cat {path} || true")
    text = file.merge(there.partition("\n")[2]) if file.merge else file.text
    changed = there != f"{file.owner} {file.mode:o}\n{text}" and not (there and file.only_if_missing)
    if changed:
        host.run(f"mkdir -p $(dirname {path}) && install -m 600 /dev/null {draft}")
        host.write(text, f"{file.path}.new")
        host.run(f"chown {file.owner}: {draft} && chmod {file.mode:o} {draft} && mv {draft} {path}")
    steps.did(file.path, changed)


def first_release(steps: Steps, host: Host, inventory: Inventory) -> None:
    """What the other hosts run, and what `fab rollback` would go back to; or, where nothing runs yet, HEAD."""
    if not steps.unless(f"test -e {host.directory}/current", "true", "a release"):
        return
    live = what_runs(host, inventory)
    for name in live[-2:] or [""]:
        with tempfile.TemporaryDirectory() as directory:
            built = build(name.rpartition("-")[2] or "HEAD", Path(directory), name)
            if host.run(f"test -e releases/{built.name} || echo missing"):
                ship(host, built)
            install([host], built)
        for action in ("deploy", "done"):
            log([host], action, built.name)
    commands, current = [], f"releases/{built.name}"
    if "app" in host.roles:
        serving, standby = host.roles["app"]["slots"]
        commands = ["mkdir -p slots", *linked(f"../{current}", f"slots/{serving}")]
        commands += linked(f"../releases/{(live[-2:] or [built.name])[0]}", f"slots/{standby}")
        current = f"slots/{serving}"
    host.run(" && ".join([*commands, *linked(current, "current")]))


def what_runs(host: Host, inventory: Inventory) -> list[str]:
    """The releases that went live, as the lock's host knows; or the others, where that is the new one."""
    if host is not inventory.lock:
        return live_releases(inventory.lock, also_begun=False)
    others = [other for other in inventory.of("app", "worker", "push") if other is not host]
    known, _ = try_each(others, live_releases)  # in a first installation, none of them answers
    return max(known.values(), key=len, default=[])


def start(steps: Steps, service: Service) -> None:
    """Enables and starts a service; one that runs since before its files were written is told so."""
    unit, host = service.unit, steps.host
    steps.unless(f"systemctl is-enabled {unit}", f"systemctl enable -q {unit}", f"{unit} at boot")
    state, since, *written = host.run(
        f"systemctl is-active {unit}; systemctl show --timestamp=unix -P StateChangeTimestamp {unit}"
        f"; stat -c %Y {' '.join(file.path for file in service.files)}"
    ).split("\n")
    if state == "activating" and service.on_change == "tell":
        action = ""  # a Redis that waits until the Sentinels have seen that it died
    elif state != "active":
        action = "start"
    else:
        action = service.on_change if max(map(int, filter(None, written))) > int(since.removeprefix("@")) else ""
    if action == "tell":
        host.say(f"To do: {unit} runs with its old configuration until somebody restarts it.")
    elif action:
        host.run(f"systemctl {action} {unit}", START_SECONDS)
        if service.port:
            until = f"until (exec 3<>/dev/tcp/{ip(host)}/{service.port}) 2>/dev/null; do sleep 0.1; done"
            host.run(f"timeout {START_SECONDS} bash -c {shlex.quote(until)}", START_SECONDS + 5)
    steps.did(f"{unit} runs", action not in ("", "tell"))
