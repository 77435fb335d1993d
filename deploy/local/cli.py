"""The commands of the local stack."""

import argparse
import os
import subprocess
import sys
import time
import xmlrpc.client
from pathlib import Path

from deploy.local import machine
from deploy.local.layout import (
    AS_ROOT, LOCAL, POSTGRES_USER, ROOT, VENV, Failed, Stack, make_dir, prepare_local_dir, write,
)  # fmt: skip
from deploy.local.machine import last_lines, step
from deploy.local.programs import Program, programs_of, supervisor_conf
from deploy.local.ports import HOST, OFFSETS

PYTHON = VENV / "bin/python"
PATIENCE = 60  # seconds for a server to come up; a crashed Postgres with a full WAL may take that


def supervisor_of(stack: Stack):
    """supervisord's remote interface."""
    login = f"stack:{stack.secrets['supervisor_password']}"
    return xmlrpc.client.ServerProxy(f"http://{login}@{stack.address('supervisor')}/RPC2").supervisor


def is_running(stack: Stack) -> bool:
    try:
        supervisor_of(stack).getPID()
    except ConnectionError:
        return False
    return True


def up(stack: Stack, servers_only: bool = False) -> None:
    start = time.monotonic()
    prepare_local_dir()
    machine.install_packages()
    machine.prepare_venv()
    make_dir(stack.dir)
    make_dir(stack.logs)
    stack.load_secrets()
    programs = programs_of(stack)
    write(stack.dir / "env", "".join(f"{key}={value}\n" for key, value in stack.environment().items()))
    write(stack.conf / "supervisord.conf", supervisor_conf(stack, programs))
    for program in programs:
        prepare_data(stack, program)
    if not is_running(stack):
        subprocess.run([VENV / "bin/supervisord", "-c", stack.conf / "supervisord.conf"], check=True, cwd=stack.dir)
    wait_for(stack, [program for program in programs if not program.is_app])
    with step("roles, databases, buckets"):
        run_python(stack, "deploy/local/prepare.py", stack.name)
    print(f"up in {time.monotonic() - start:.1f} s")


def prepare_data(stack: Stack, program: Program) -> None:
    """The directory of what a program keeps; for Postgres, a new cluster."""
    data = stack.data(program.name)
    make_dir(data.parent)
    if program.name.startswith("postgres") and not (data / "PG_VERSION").exists():
        make_dir(data, program.user, 0o700)
        with step(f"creating {program.name}"):
            password = stack.conf / "initdb.password"
            write(password, stack.secrets["postgres_password"], program.user)
            machine.logged(
                [machine.postgres_bin() / "initdb", "-D", data, "--username=postgres", f"--pwfile={password}",
                 "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"],
                stack.logs / f"{program.name}.initdb.log", "initdb failed.",
                user=program.user, group=program.user, extra_groups=[] if program.user else None, cwd=stack.dir,
            )  # fmt: skip
            password.unlink()
    else:
        make_dir(data, program.user, 0o700)


def run_python(stack: Stack, *arguments: str, env=None) -> None:
    subprocess.run([PYTHON, *arguments], cwd=ROOT, env={**os.environ, "STACK": stack.name, **(env or {})}, check=True)


def wait_for(stack: Stack, programs: list[Program]) -> None:
    deadline = time.monotonic() + PATIENCE
    for program in programs:
        with step(program.name):
            while not program.is_up():
                if time.monotonic() > deadline:
                    raise Failed(f"{program.name} does not come up. {last_lines(stack.logs / f'{program.name}.log')}")
                time.sleep(0.05)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="stack.py")
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("up")
    sub.add_argument("stack", nargs="?", default="dev", choices=OFFSETS)
    sub.add_argument("--servers", action="store_true")
    options = parser.parse_args(arguments)
    try:
        up(Stack(options.stack), options.servers)
    except Failed as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    return 0
