"""Talking to supervisord: starting and stopping it, and what it says about the programs under it."""

import http.client
import os
import signal
import subprocess
import time
import xml.parsers.expat
import xmlrpc.client
from pathlib import Path

from deploy.local.layout import VENV, Failed, Stack
from deploy.local.machine import last_lines
from deploy.local.ports import taken_ports

STOP_PATIENCE = 45  # seconds for all programs to end before they are killed; a program gets 20 (see programs.py)
ACCESS_LOG_BYTES = 50_000_000  # nginx writes it itself; the other logs are supervisord's, who keeps them small


class Supervisor:
    """The supervisord of a stack. Every program is a group of its own, of one process or more."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.conf = stack.conf / "supervisord.conf"
        self.pidfile = stack.dir / "supervisord.pid"
        self.log = stack.logs / "supervisord.log"
        login = f"stack:{stack.secrets['supervisor_password']}"
        self.rpc = xmlrpc.client.ServerProxy(f"http://{login}@{stack.address('supervisor')}/RPC2").supervisor

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
        command = [VENV / "bin/python", VENV / "bin/supervisord", "-c", self.conf]
        quietly = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        done = subprocess.run(command, cwd=self.stack.dir, start_new_session=True, **quietly)
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
            # All at once, where supervisord by itself would stop one after the other, a second for each.
            self.rpc.stopAllProcesses(False)
            while time.monotonic() < deadline and any(
                process["pid"] for processes in self.processes().values() for process in processes
            ):
                time.sleep(0.05)
        os.kill(pid, signal.SIGTERM)
        while self.lives(pid):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)  # the kernel then ends its programs, see programs.py
            time.sleep(0.02)

    def processes(self) -> dict[str, list[dict]]:
        """Program → its processes, as supervisord describes them."""
        found: dict[str, list[dict]] = {}
        for process in self.rpc.getAllProcessInfo():
            found.setdefault(process["group"], []).append(process)
        return found

    def runs(self, program: str) -> bool:
        return all(process["statename"] == "RUNNING" for process in self.processes()[program])
