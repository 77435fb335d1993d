"""`fab deploy`, `fab rollback`, `fab status`: releases, from a commit to all hosts and back (docs/deploying.md).

On a host, in its directory:

    releases/<time>-<commit>/   the code, with RELEASE, which names it, and .venv, a link to its dependencies
    venvs/<hash>/               the dependencies of each requirements.txt that has that hash
    slots/<port>                on app hosts, links to two releases: the one that serves, and the one that stands by
    current                     a link to the slot that serves; on other hosts, to the release that runs
    releases.log                which release went live when, and by whom
    lock                        on one host: who deploys at this moment
"""

import shlex
import tempfile
from functools import partial
from pathlib import Path

from fabric import task
from invoke import Context, Exit

from deploy import hosts
from deploy.hosts import Host, Inventory, each, try_each
from deploy.record import announced, live_releases, locked, log, was_rolled_back
from deploy.shipping import build, install, prune, ship
from deploy.switching import roll, state

KEPT = 5  # releases on a host
MIGRATION_SECONDS = 3600


@task(help={"commit": "which one; HEAD without it", "batch": "how many app servers switch at the same time"})
def deploy(context: Context, commit: str = "HEAD", batch: int = 5, inventory: str = "") -> None:
    """Brings a commit to all hosts, without a failed request; stops at the first host that is not well with it."""
    known = hosts.load(context, inventory)
    coded, app = known.of("app", "worker", "push"), known.of("app")
    each([*coded, *known.of("edge")], Host.connect)
    with tempfile.TemporaryDirectory() as directory, locked(known, "deploys"):
        built = build(commit, Path(directory))
        with announced("deploy", built.name):
            each(coded, partial(ship, built=built))
            install(coded, built)
            migrate(known, built.name)
            # The first app server comes alone: it is seen at once how it is. Workers come before the other app servers,
            # whose new code may queue jobs that only new workers know.
            roll(known, built.name, [app[:1]])
            log(coded, "deploy", built.name)  # from here on, `fab rollback` leads back from it
            others = [host for host in coded if host not in app]
            roll(known, built.name, [others, *(app[n : n + batch] for n in range(1, len(app), batch))])
            log(coded, "done", built.name)
            each(coded, partial(prune, kept=live_releases(known.lock)[-KEPT:]))
    print(f"{built.name} runs on {len(coded)} hosts")


@task(help={"further": "a second time, to a release that has never run with the last one's migrations"})
def rollback(context: Context, further: bool = False, inventory: str = "") -> None:
    """Takes all hosts back to the release that ran before, at once: on the app servers it still runs."""
    known = hosts.load(context, inventory)
    coded, app = known.of("app", "worker", "push"), known.of("app")
    each([*coded, *known.of("edge")], Host.connect)
    with locked(known, "rolls back"):
        live = live_releases(known.lock)
        # A deploy that was cut off has switched the first app server, perhaps, and not noted it yet.
        running = state(app[0]).release
        if running and running not in live:
            live.append(running)
        if len(live) < 2:
            raise Exit("There is no release to go back to.")
        if was_rolled_back(known.lock) and not further:
            raise Exit(f"{live[-1]} is what the last rollback led to. Yet one further: docs/deploying.md, --further")
        release = live[-2]
        print(f"from {live[-1]} to {release}")
        with announced("rollback", release):
            each(coded, lambda host: host.run(f"cd releases/{release}"))  # before anything is switched
            # What people see comes first.
            roll(known, release, [app, [host for host in coded if host not in app]])
            log(coded, "rollback", release)
    print(f"{release} runs on {len(coded)} hosts")


@task
def status(context: Context, inventory: str = "") -> None:
    """Shows which release each host runs, for how long, and whether it is well."""
    coded = hosts.load(context, inventory).of("app", "worker", "push")
    states, failures = try_each(coded, state)
    print(f"{'host':12}{'roles':14}{'release':29}{'stands by':29}{'up':>9}  health")
    for host in coded:
        if host in failures:
            print(f"{host.name:12}{','.join(host.roles):14}{failures[host]}")
        else:
            now = states[host]
            standby = now.slots[now.standby] if now.slots else ""
            print(f"{host.name:12}{','.join(host.roles):14}{now.release:29}{standby:29}{now.up:>9}  {now.health}")


@task
def unlock(context: Context, inventory: str = "") -> None:
    """Breaks the lock of a deploy that ended without giving it back. Make sure that it has ended."""
    print(hosts.load(context, inventory).lock.run("cat lock && rm lock || echo there is no lock").strip())


def migrate(inventory: Inventory, release: str) -> None:
    """Migrates before anything runs the new code. So migrations must suit the old code, too, which is checked."""
    host = inventory.migrations
    directory, files = f"releases/{release}", shlex.quote(inventory.migration_env_files)
    # An index of a large table takes longer than the 5 s of the app's role. Its lock_timeout stays: who waits for a
    # lock holds up all who come after.
    environment = f"ENV_FILES={files} PGOPTIONS='-c statement_timeout=0'"
    host.run(f"{environment} {directory}/.venv/bin/python {directory}/manage.py migrate_safely", MIGRATION_SECONDS)
    host.say("has migrated")
