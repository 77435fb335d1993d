"""`fab run`: a command on all hosts of a role."""

from fabric import Executor, task
from invoke import Context, Exit

from deploy import hosts


class TheRestIsACommand(Executor):
    """Gives what follows `--` on the command line to the task, as its `command`; Fabric would ask for -H."""

    def expand_calls(self, calls, apply_hosts=True):
        command, self.core.remainder = self.core.remainder, ""
        if command:
            for call in calls:
                call.kwargs["command"] = command
        return super().expand_calls(calls, apply_hosts)


@task(help={"role": "on the hosts that have it; without it, on all", "inventory": "another file than the usual one"})
def run(context: Context, role: str = "", command: str = "", inventory: str = "") -> None:
    """Runs a command on many hosts at once: fab run --role app -- uptime"""
    if not command:
        raise Exit("Which command? fab run --role app -- uptime")
    known = hosts.load(context, inventory)
    chosen = known.of(role) if role else known.hosts
    if not chosen:
        raise Exit(f"No host has the role {role}.")

    def work(host: hosts.Host) -> None:
        for line in host.run(command).splitlines():
            print(f"{host.name:12}{line}")

    hosts.each(chosen, work)
