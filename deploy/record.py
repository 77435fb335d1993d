"""Who deploys now, and what was deployed: the lock, the hosts' releases.log, and what a webhook is told."""

import datetime
import getpass
import os
import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import requests
from invoke import Exit

from deploy.hosts import CommandFailed, Host, Inventory, each

ANNOUNCE_SECONDS = 3


@contextmanager
def locked(inventory: Inventory, does: str) -> Iterator[None]:
    """Nobody else deploys meanwhile. Raises Exit, with who does, when somebody does."""
    mine = shlex.quote(f"{whoami()} {does} since {now()}")
    try:
        # With noclobber, the shell makes the file only where there is none.
        inventory.lock.run(f"(set -C; echo {mine} > lock) 2>/dev/null || {{ cat lock >&2; false; }}")
    except CommandFailed as error:
        raise Exit(f"{error}\nOnly one at a time. If that has ended without giving back the lock: fab unlock") from None
    try:
        yield
    finally:
        try:
            inventory.lock.run(f"! grep -qxF {mine} lock || rm lock")  # not the lock of somebody who broke ours
        except CommandFailed as error:
            print(f"The lock is still there: {error}")


def log(hosts: list[Host], action: str, release: str) -> None:
    """Notes on each host that a `deploy` of a release has begun, that it is `done`, or that a `rollback` to it is."""
    line = shlex.quote(f"{now()} {action} {release} {whoami()}")
    each(hosts, lambda host: host.run(f"echo {line} >> releases.log"))


def live_releases(host: Host, also_begun: bool = True) -> list[str]:
    """The releases that went live, oldest first; the last may be one whose deploy has begun and is not done.

    Those from which a rollback led back are not among them, nor those whose deploy was stopped, if another came after.
    """
    live: list[str] = []
    begun = ""
    for line in host.run("cat releases.log || true").splitlines():
        _, action, release, _ = line.split(maxsplit=3)
        if action == "deploy":
            live, begun = [*(one for one in live if one != begun), release], release
        else:
            live, begun = [*(live[: live.index(release)] if release in live else live), release], ""
    return live if also_begun else [one for one in live if one != begun]


def was_rolled_back(host: Host) -> bool:
    """Whether that was the last that happened."""
    return host.run("tail -n 1 releases.log || true").split()[1:2] == ["rollback"]


@contextmanager
def announced(action: str, release: str) -> Iterator[None]:
    """Tells the webhook ANNOUNCE_URL how it ended, as Slack takes it. A webhook that is away stops nobody."""
    outcome = "failed"
    try:
        yield
        outcome = "done"
    finally:
        if url := os.environ.get("ANNOUNCE_URL"):
            text = f"{whoami()}: {action} of {release}: {outcome}"
            told = {"text": text, "user": whoami(), "action": action, "release": release, "outcome": outcome}
            try:
                requests.post(url, json=told, timeout=ANNOUNCE_SECONDS).raise_for_status()
            except requests.RequestException as error:
                print(f"not announced: {type(error).__name__}")


def whoami() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"


def now() -> str:
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
