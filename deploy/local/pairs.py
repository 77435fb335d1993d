"""A Postgres of the local stack, and its pgbouncer, as deploy/failover.py wants them."""

import subprocess
from xmlrpc.client import MultiCall, ServerProxy

from deploy.failover import Pgbouncer, Refused, Server, Shell
from deploy.local.data import as_user
from deploy.local.layout import POSTGRES_USER, Stack
from deploy.local.machine import postgres_bin
from deploy.local.ports import HOST
from deploy.local.supervision import Supervisor

SECONDS = 600  # for one command: the longest copies a whole server


def shell(user: str | None = None) -> Shell:
    def run(command: str) -> str:
        options = {"capture_output": True, "text": True, "timeout": SECONDS, "cwd": "/", **as_user(user)}
        try:
            done = subprocess.run(["sh", "-c", command], **options)
        except subprocess.TimeoutExpired as error:
            raise Refused(str(error)) from None
        if done.returncode:
            raise Refused(f"{command}\n{done.stdout}{done.stderr}".strip())
        return done.stdout

    return run


def server(stack: Stack, name: str) -> Server:
    """`postgres_b`, or `postgres_b_replica`."""
    supervisor = Supervisor(stack)
    return Server(
        name=name,
        host=HOST,
        port=stack.ports[name],
        data=str(stack.data(name)),
        config=str(stack.conf / f"{name}.conf"),
        bin=str(postgres_bin()),
        passfile=str(stack.conf / "pgpass"),
        shell=shell(POSTGRES_USER),
        start=lambda: supervisor.rpc.startProcessGroup(name, False),
        stop=lambda: supervisor.stop_programs([name]),
    )


def pgbouncer(stack: Stack) -> Pgbouncer:
    ini, passfile = stack.conf / "pgbouncer.ini", stack.conf / "pgpass"
    return Pgbouncer("this machine", HOST, stack.ports["pgbouncer"], str(ini), str(passfile), shell())


def kill(stack: Stack, name: str) -> None:
    """SIGKILL, and the supervisor does not start it again: told both in one breath, before it has noticed."""
    supervisor = Supervisor(stack)
    breath = MultiCall(ServerProxy(supervisor.url))
    breath.supervisor.signalProcess(name, "KILL")
    breath.supervisor.stopProcess(name, False)
    breath()
    supervisor.stop_programs([name])
