"""The supervisor that keeps a stack's programs running: supervisord's configuration, and talking to it.

Each program can be stopped, killed and restarted alone (`stack.py ctl`). All are started through `setpriv
--pdeathsig`: should the supervisor itself be killed, the kernel ends its children, so nothing is ever left over.
(The children of gunicorn, Postgres and the worker pool end with their parents by themselves.)
"""

import http.client
import os
import resource
import shlex
import signal
import subprocess
import time
import xml.parsers.expat
import xmlrpc.client
from pathlib import Path

from deploy.local.layout import AS_ROOT, ROOT, VENV, Failed, Stack
from deploy.local.machine import PATH, last_lines
from deploy.local.ports import taken_ports
from deploy.local.programs import Program

PROGRAM_STOP_PATIENCE = 20  # seconds for a program to end before it is killed: the longest job may take that
STOP_PATIENCE = 45  # seconds for the whole stack
ACCESS_LOG_BYTES = 50_000_000  # nginx writes it itself; the other logs are supervisord's, who keeps them small
OPEN_FILES = 65_536  # connections are files; the usual limit of 1024 is too low for nginx and pgbouncer


def supervisor_conf(stack: Stack, programs: list[Program]) -> str:
    """supervisord's configuration. (It expands % in values, and knows % from %%.)"""
    logs = str(stack.logs).replace("%", "%%")
    sections: dict[str, dict] = {
        "supervisord": {
            "pidfile": f"{stack.dir}/supervisord.pid".replace("%", "%%"),
            "logfile": f"{logs}/supervisord.log",
        },
        "inet_http_server": {
            "port": stack.address("supervisor"),
            "username": "stack",
            "password": stack.secrets["supervisor_password"],
        },
        "rpcinterface:supervisor": {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface",
        },
    }
    if AS_ROOT:
        sections["supervisord"]["user"] = "root"
    for program in programs:
        section = {
            "command": shlex.join(["setpriv", "--pdeathsig", "KILL", *program.command]).replace("%", "%%"),
            "directory": str(ROOT if program.is_app else stack.data(program.name)).replace("%", "%%"),
            "autostart": not (program.is_app or program.primary or program.watches),
            "autorestart": True,
            # Never give up: the pause between tries grows by a second each time.
            "startretries": 1_000_000,
            "stopsignal": program.stop_signal,
            "stopwaitsecs": PROGRAM_STOP_PATIENCE,
            "killasgroup": True,
            "redirect_stderr": True,
            "stdout_logfile": f"{logs}/{program.name}.log",
            "stdout_logfile_maxbytes": "10MB",
            "stdout_logfile_backups": 2,
        }
        if program.user:
            section["user"] = program.user
        if program.is_app:
            environment = {"STACK": stack.name} | program.environment
            section["environment"] = ",".join(f'{name}="{value}"' for name, value in environment.items())
        sections[f"program:{program.name}"] = section
    return "\n".join(
        f"[{title}]\n" + "".join(f"{key} = {value}\n" for key, value in section.items())
        for title, section in sections.items()
    )


class Supervisor:
    """The supervisord of a stack. Every program is a group of its own, of one process or more."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.conf = stack.conf / "supervisord.conf"
        self.pidfile = stack.dir / "supervisord.pid"
        self.log = stack.logs / "supervisord.log"
        login = f"stack:{stack.secrets['supervisor_password']}"
        self.url = f"http://{login}@{stack.address('supervisor')}/RPC2"
        self.rpc = xmlrpc.client.ServerProxy(self.url).supervisor

    def pid(self) -> int | None:
        """supervisord's process, whether it answers or not."""
        try:
            pid = int(self.pidfile.read_text())
        except (OSError, ValueError):
            return None
        return pid if self.lives(pid) else None

    def lives(self, pid: int) -> bool:
        """Whether the process is (still) our supervisord; numbers are used again."""
        try:
            return str(self.conf).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    def answers(self) -> bool:
        try:
            return self.rpc.getPID() == self.pid()
        except (OSError, http.client.HTTPException, xmlrpc.client.Error, xml.parsers.expat.ExpatError):
            return False

    def started_at(self) -> float:
        return self.pidfile.stat().st_mtime

    def start(self) -> None:
        """Starts supervisord, and with it the servers. Raises Failed when one of their ports is taken."""
        deadline = time.monotonic() + 3
        while taken := taken_ports(self.stack.ports):
            # Who was killed a moment ago may still be letting go of its port.
            if time.monotonic() > deadline:
                raise Failed("\n".join(taken))
            time.sleep(0.1)
        self.remove_sockets()
        for log in self.stack.logs.glob("*.access.log"):
            if log.stat().st_size > ACCESS_LOG_BYTES:
                os.truncate(log, 0)
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
        done = subprocess.run(
            [VENV / "bin/python", VENV / "bin/supervisord", "-c", self.conf],
            cwd=self.stack.dir,
            # The caller's environment stays outside: the stack's env file alone decides.
            env={"PATH": PATH, "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8", "TZ": "UTC"},
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        deadline = time.monotonic() + 15
        while not self.answers():
            if done.returncode or time.monotonic() > deadline:
                raise Failed(f"supervisord does not start. {done.stdout}{done.stderr}\n{last_lines(self.log)}")
            time.sleep(0.05)

    def remove_sockets(self) -> None:
        """Removes SeaweedFS' sockets, which it leaves behind in a place of its own choice."""
        for server, port in self.stack.ports.items():
            part = server.removeprefix("weed_").removesuffix("_grpc")
            path = Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock")  # noqa: S108
            try:
                path.unlink(missing_ok=True)
            except PermissionError:
                raise Failed(f"{path} was left behind by another user, and SeaweedFS needs it: remove it.") from None

    def stop(self) -> None:
        """Ends supervisord and everything under it: politely, and if that takes too long, by force."""
        if pid := self.pid():
            self.shut_down(pid)
            if taken := taken_ports(self.stack.ports):
                raise Failed("Everything was stopped, and yet:\n" + "\n".join(taken))
        self.remove_sockets()

    def shut_down(self, pid: int) -> None:
        deadline = time.monotonic() + STOP_PATIENCE
        if self.answers():
            # S3 last: Postgres does not end before it has sent its last WAL there.
            self.stop_programs([program for program in self.processes() if program != "seaweedfs"])
        os.kill(pid, signal.SIGTERM)
        while self.lives(pid):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)  # the kernel then ends its programs, see programs.py
            time.sleep(0.02)

    def stop_programs(self, programs: list[str]) -> None:
        """Ends programs all at once, where supervisord by itself would stop one after the other, a second for each.

        Being asked all the time also makes it notice the ends of processes sooner.
        """
        for program in programs:
            self.rpc.stopProcessGroup(program, False)
        deadline = time.monotonic() + STOP_PATIENCE
        while time.monotonic() < deadline:
            known = self.processes()
            if not any(process["pid"] for program in programs for process in known[program]):
                return
            time.sleep(0.02)

    def processes(self) -> dict[str, list[dict]]:
        """Program → its processes, as supervisord describes them."""
        found: dict[str, list[dict]] = {}
        for process in self.rpc.getAllProcessInfo():
            found.setdefault(process["group"], []).append(process)
        return found

    def runs(self, program: str) -> bool:
        return all(process["statename"] == "RUNNING" for process in self.processes()[program])
