"""The commands of the local stack."""

import argparse
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.local import machine
from deploy.local.data import prepare_data, prepare_replicas
from deploy.local.layout import (
    BUGSINK_VENV,
    DEPLOY,
    LINK,
    LOCAL,
    ROOT,
    VENV,
    WITH_REPLICAS,
    Failed,
    Stack,
    make_dir,
    prepare_local_dir,
    write,
)
from deploy.local.machine import last_lines, step
from deploy.local.ports import OFFSETS
from deploy.local.programs import Program, accepts_connections, port_of, programs_of
from deploy.local.supervision import Supervisor, supervisor_conf

PYTHON = str(VENV / "bin/python")
APP_ROOMS = ("instagram", "feeds", "photos", "accounts", "workers", "shardmap", "notifications")
DEMO = ROOT / "deploy/local/demo.py"

# Processes that run tests, each on a stack of its own: most of their time they wait for something. A stack is 1.3 GB.
TEST_STACKS = [name for name in OFFSETS if name.startswith("test")]
BYTES_OF_A_STACK = 2_000_000_000
# A deploy to ten hosts, a host made from nothing, a drill: they take minutes, and are called by their mark.
NOT_SLOW = ("-m", "not slow")

# Seconds for a program to come up. A Postgres that was killed replays its WAL first.
PATIENCE = 60
# A program that still dies right after its start so many seconds later will not come up by waiting longer.
CRASH_PATIENCE = 12


@contextmanager
def alone(stack: str) -> Iterator[None]:
    """Only one `up` or `down` of a stack at a time; a second one waits."""
    with open(LOCAL / f"{stack}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def up(name: str) -> None:
    """Makes everything that the stack needs and lacks, and returns when all of it answers."""
    start = time.monotonic()
    prepare_local_dir()
    with alone(name):
        machine.install_packages()
        machine.prepare_venv(VENV, ROOT / "requirements.txt", ROOT / "requirements-dev.txt")
        machine.prepare_venv(BUGSINK_VENV, DEPLOY / "bugsink/requirements.txt")
        stack = Stack(name)
        make_dir(stack.dir)
        make_dir(stack.logs)
        stack.load_secrets()
        programs = programs_of(stack)
        write(stack.dir / "env", "".join(f"{key}={value}\n" for key, value in stack.environment().items()))
        write(stack.conf / "supervisord.conf", supervisor_conf(stack, programs))
        for program in programs:
            if not program.primary:
                prepare_data(stack, program)
        supervisor = Supervisor(stack)
        if supervisor.pid() and (not supervisor.answers() or supervisor.started_at() < newest(configuration(stack))):
            with step("stopping: the configuration is newer than what runs"):
                supervisor.stop()
        if not supervisor.pid():
            supervisor.start()
        servers = [one for one in programs if not (one.is_app or one.primary or one.watches)]
        start_and_wait(supervisor, servers)
        prepare_servers(stack)
        replicas = [program for program in programs if program.primary]
        prepare_replicas(stack, supervisor, replicas)
        start_and_wait(supervisor, replicas)
        migrate(stack)
        app = [program for program in programs if program.is_app]
        stop_if_outdated(supervisor, app)
        start_and_wait(supervisor, app)
        start_and_wait(supervisor, [program for program in programs if program.watches])
    print(f"The stack {name} is up after {time.monotonic() - start:.1f} s.", flush=True)
    if name == "dev":
        demo(stack)


def configuration(stack: Stack) -> list[Path]:
    # Below munin/ are directories, which are as new as what is in them.
    return [*stack.conf.iterdir(), *(stack.conf / "munin").iterdir(), VENV / "installed", BUGSINK_VENV / "installed"]


def newest(files: list[Path]) -> float:
    return max(file.stat().st_mtime for file in files)


def start_and_wait(supervisor: Supervisor, programs: list[Program]) -> None:
    """Starts what does not run. Raises Failed, with the log's end, for the first that does not come up."""
    states = supervisor.processes()
    for program in programs:
        if any(process["statename"] not in ("RUNNING", "STARTING", "BACKOFF") for process in states[program.name]):
            supervisor.rpc.startProcessGroup(program.name, False)
    start = time.monotonic()
    for program in programs:
        with step(program.name):
            while not (program.is_up() if program.is_up else supervisor.runs(program.name)):
                waited = time.monotonic() - start
                processes = supervisor.processes()[program.name]
                crashing = any(process["statename"] == "BACKOFF" for process in processes)
                if waited > PATIENCE or (crashing and waited > CRASH_PATIENCE):
                    log = Path(processes[0]["stdout_logfile"])
                    raise Failed(f"{program.name} does not come up ({processes[0]['statename']}). {last_lines(log)}")
                time.sleep(0.05)


def prepare_servers(stack: Stack) -> None:
    with step("roles, databases, buckets"):
        machine.logged(
            [PYTHON, str(ROOT / "deploy/local/prepare.py"), stack.name],
            stack.logs / "prepare.log",
            "The servers could not be prepared.",
            cwd=ROOT,
        )


def migrate(stack: Stack) -> None:
    for command in ("migrate", "migrate_shards"):
        with step(f"manage.py {command}"):
            machine.logged(
                [PYTHON, "manage.py", command],
                stack.logs / f"{command}.log",
                f"manage.py {command} failed.",
                cwd=ROOT,
                env=app_environment(stack) | stack.migration_environment(),
            )


def app_environment(stack: Stack) -> dict[str, str]:
    """The caller's environment, with the stack's settings instead of any of the same name."""
    return {**os.environ, **stack.environment()}


def stop_if_outdated(supervisor: Supervisor, app: list[Program]) -> None:
    """Stops the app's programs when the code is newer than they are, so that the new code gets started."""
    code = [file for room in APP_ROOMS for file in (ROOT / room).rglob("*.py")]
    code += [ROOT / "manage.py", ROOT / "deploy/gunicorn/gunicorn.conf.py"]
    running = [
        process
        for program in app
        for process in supervisor.processes()[program.name]
        if process["statename"] == "RUNNING"
    ]
    if running and min(process["start"] for process in running) < newest(code):
        with step("stopping the app: the code is newer than what runs"):
            supervisor.stop_programs([program.name for program in app])


def demo(stack: Stack) -> None:
    """Fills a small world, once, and says how to look at it. Raises Failed when that went wrong."""
    mark, summary = stack.dir / "demo-done", stack.dir / "summary.txt"
    if mark.exists():
        print(summary.read_text() if summary.exists() else "")
    elif DEMO.exists():
        if foreground([PYTHON, str(DEMO)], cwd=ROOT, env=app_environment(stack)):
            raise Failed("The stack is up, but the demo failed, see above. The next `make up` tries it again.")
        mark.touch()


def down(name: str) -> None:
    if not (LOCAL / name / "secrets.json").exists():
        return
    with alone(name), step(f"stopping the stack {name}"):
        stack = Stack(name)
        stack.load_secrets()
        Supervisor(stack).stop()


def run(name: str) -> int:
    """`up` in the foreground: shows what the app says until Ctrl-C, which stops everything."""
    try:
        up(name)
        print("Ctrl-C stops it. Below is what the app logs.", flush=True)
        logs = [LOCAL / name / "logs" / f"{program}.log" for program in ("gunicorn_1", "gunicorn_2", "worker", "relay")]
        foreground(["tail", "-n0", "-F", *logs])
    finally:
        down_for_sure([name])
    return 0


def down_for_sure(names: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print()
    at_once("down", names)


def test(arguments: list[str]) -> int:
    """All checks, on stacks made from nothing; says which of them failed."""
    prepare_local_dir()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    stacks = TEST_STACKS[: 1 if arguments else max(1, memory // BYTES_OF_A_STACK)]
    pytest = [
        "pytest",
        *(arguments or [f"--numprocesses={len(stacks)}", "--dist=loadfile", "--no-loadscope-reorder", *NOT_SLOW]),
    ]
    with open(LOCAL / "make-test.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failed("Another `make test` runs in this clone.") from None
        for name in stacks:
            clean_stack(name)
        machine.install_packages(machine.PACKAGES | (machine.TEST_PACKAGES if arguments else {}))
        try:
            up(stacks[0])  # with what all of them need
            at_once("up", stacks[1:])
            checks = [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["lint-imports"], pytest]
            failed = [
                " ".join(check)
                for check in checks
                if foreground([VENV / "bin" / check[0], *check[1:]], cwd=ROOT, env=test_environment(stacks))
            ]
        finally:
            down_for_sure(stacks)
    print(f"Failed: {', '.join(failed)}" if failed else "All checks passed.")
    return 1 if failed else 0


def at_once(command: str, stacks: list[str]) -> None:
    """The command for each of these stacks, at the same time; of what it says, its errors are shown."""
    with step(f"{command} {', '.join(stacks)}"):
        driver = [sys.executable, str(ROOT / "deploy/local/stack.py"), command]
        processes = [subprocess.Popen([*driver, name], stdout=subprocess.DEVNULL) for name in stacks]
        codes = [process.wait() for process in processes]
        if any(codes):
            raise Failed(f"stack.py {command} failed.")


def test_environment(stacks: list[str]) -> dict[str, str]:
    """The caller's environment, without settings of the app; tests/conftest.py gives each process a stack."""
    stack = Stack(stacks[0])
    stack.load_secrets()
    settings = stack.environment()
    return {name: value for name, value in os.environ.items() if name not in settings} | {"STACKS": " ".join(stacks)}


def drill(name: str) -> int:
    """Whether what was backed up can be restored, and a primary replaced; exits with an error when it cannot."""
    up(name)
    drills = ["drill.py", "failover_drill.py"] if WITH_REPLICAS else ["drill.py"]
    return max(foreground([PYTHON, str(ROOT / "deploy" / drill), name], cwd=ROOT) for drill in drills)


def foreground(command: list, **options) -> int:
    """Runs a command to its end, which is also its own answer to Ctrl-C: that reaches it as it reaches us."""
    process = subprocess.Popen(command, **options)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue
        except SystemExit:
            process.terminate()
            process.wait()
            raise


def clean_stack(name: str) -> None:
    down(name)
    if (LOCAL / name).exists():
        shutil.rmtree(LOCAL / name)


def status(name: str) -> int:
    """Prints each process; the exit code says whether all of them run."""
    supervisor = supervisor_of(name)
    all_run = True
    for program, processes in supervisor.processes().items():
        for process in processes:
            all_run &= process["statename"] == "RUNNING"
            port = port_of(supervisor.stack, program) or ""
            print(f"{process['name']:19}{port!s:6}{process['statename']:10}{process['description']}")
    return 0 if all_run else 1


def logs(name: str, program: str | None) -> int:
    files = sorted((LOCAL / name / "logs").glob(f"{program or ''}*.log"))
    if not files:
        raise Failed(f"There is no log of {program or 'anything'} in {LOCAL / name / 'logs'}.")
    foreground(["tail", "-n", "30" if program else "5", "-F", *files])
    return 0


def control(name: str, action: str, programs: list[str]) -> int:
    """Stops, kills or starts programs. The supervisor starts a killed one again, a stopped one not.

    A name without its number stands for all of them: gunicorn is gunicorn_1 and gunicorn_2.
    """
    supervisor = supervisor_of(name)
    known = list(supervisor.processes())
    meant = {program: [one for one in known if re.fullmatch(rf"{program}(_\d)?", one)] for program in programs}
    if unknown := [program for program in programs if not meant[program]]:
        raise Failed(f"No program is called {', '.join(unknown)}. There are: {', '.join(known)}")
    programs = [one for ones in meant.values() for one in ones]
    if action == "kill":
        for program in programs:
            supervisor.rpc.signalProcessGroup(program, "KILL")
    if action in ("stop", "restart"):
        supervisor.stop_programs(programs)
    if action in ("start", "restart"):
        start_and_wait(supervisor, [Program(one, [], accepts_connections(supervisor.stack, one)) for one in programs])
    return 0


def supervisor_of(name: str) -> Supervisor:
    """The supervisor of a stack that is up."""
    stack = Stack(name)
    if (stack.dir / "secrets.json").exists():
        stack.load_secrets()
        supervisor = Supervisor(stack)
        if supervisor.answers():
            return supervisor
    raise Failed(f"The stack {name} is not up.")


def clean(name: str | None) -> None:
    """Removes a stack with all its data; without a name, all that was ever made here."""
    for stack in [name] if name else OFFSETS:
        clean_stack(stack)
    if not name:
        for directory in (LOCAL, VENV, BUGSINK_VENV):
            if directory.exists():
                shutil.rmtree(directory)
        LINK.unlink(missing_ok=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="stack.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    default = os.environ.get("STACK", "dev")

    def command(name: str, text: str, takes_stack: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        if takes_stack:
            sub.add_argument("stack", nargs="?", default=default, choices=OFFSETS)
        return sub

    command("up", "start everything, and return when it answers")
    command("down", "stop everything")
    command("run", "start everything, show the app's logs, stop everything on Ctrl-C")
    command("status", "list the programs")
    command("logs", "follow the logs", takes_stack=False).add_argument("program", nargs="?")
    command("test", "all checks on a fresh stack", takes_stack=False).add_argument("rest", nargs=argparse.REMAINDER)
    command("drill", "back up, restore elsewhere, and compare; with replicas, fail over")
    command("clean", "remove all that was made here, or one stack").set_defaults(stack=None)
    ctl = command("ctl", "control single programs", takes_stack=False)
    ctl.add_argument("action", choices=["start", "stop", "restart", "kill"])
    ctl.add_argument("programs", nargs="+", metavar="program")
    options = parser.parse_args(arguments)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    socket.setdefaulttimeout(60)  # supervisord's answers
    try:
        match options.command:
            case "up":
                return up(options.stack) or 0
            case "down":
                return down(options.stack) or 0
            case "run":
                return run(options.stack)
            case "status":
                return status(options.stack)
            case "logs":
                return logs(default, options.program)
            case "test":
                return test([argument for argument in options.rest if argument != "--"])
            case "drill":
                return drill(options.stack)
            case "clean":
                return clean(options.stack) or 0
            case "ctl":
                return control(default, options.action, options.programs)
    except Failed as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    except PermissionError as error:
        print(f"\n{error}. Did another user make it? Then remove it as that user: make clean", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
