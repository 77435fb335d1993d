"""A bare Debian host for tests: a fresh system in a directory, run by its own systemd, with its own sshd.

It shares the machine's network: its sshd listens on a port of loopback, and it reaches the stack's servers.
"""

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from tests.support import eventually

HOST = "127.0.0.1"
# What every Debian host has, and no more: no Python, no server.
SYSTEM = "systemd-sysv,dbus,openssh-server"
MAKE_SECONDS = 600
# Where systemd keeps its own: beside older hierarchies, or alone.
CGROUPS = next(path for path in map(Path, ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")) if path.exists())
BOOT_SECONDS = 60


def free_port() -> int:
    with socket.create_server((HOST, 0)) as probe:
        return probe.getsockname()[1]


class BareHost:
    """`with BareHost(directory) as host:` runs it; then nothing of it is left. `like` another one is made sooner."""

    def __init__(self, directory: Path, address: str = HOST, like: "BareHost | None" = None) -> None:
        assert os.getuid() == 0, "a host of one's own takes root"
        self.address, self.like = address, like
        self.root, self.log = directory / "root", directory / "boot.log"
        self.key = like.key if like else directory / "key"
        self.known_hosts = directory / "known_hosts"
        self.port = free_port()
        self.cgroup = CGROUPS / f"bare-host-{self.port}"

    def __enter__(self) -> "BareHost":
        try:
            self.install()
        except BaseException:
            shutil.rmtree(self.root, ignore_errors=True)
            raise
        self.allow_ssh()
        # Its own processes, mounts, cgroups and devices; the kernel's settings are out of its reach.
        command = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--link-journal=no"]
        command += ["--console=read-only", "--resolv-conf=copy-host", "--timezone=off", f"--directory={self.root}"]
        command += [f"--machine=bare-host-{self.port}"]
        # One systemd would end the services of another in the same cgroup.
        in_cgroup = ["sh", "-c", 'mkdir "$0" && echo $$ > "$0/cgroup.procs" && exec "$@"', self.cgroup]
        command = [*in_cgroup, *command]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            eventually(self.answers, BOOT_SECONDS, "sshd of the bare host answers")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # Its first process, and the kernel all others: they would outlive a killed systemd-nspawn.
        if self.process.poll() is None:
            for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
        self.process.wait(20)
        # What dies may still write.
        eventually(lambda: shutil.rmtree(self.root, ignore_errors=True) or not self.root.exists(), 20)
        eventually(lambda: subprocess.run(["find", self.cgroup, "-depth", "-type", "d", "-delete"]).returncode == 0, 20)

    def install(self) -> None:
        """This machine's Debian, from where its own apt gets it."""
        if self.like:
            subprocess.run(["cp", "-a", self.like.root, self.root], check=True, timeout=MAKE_SECONDS)
            return
        release = subprocess.check_output(["sh", "-c", ". /etc/os-release; echo $VERSION_CODENAME"], text=True).strip()
        line = "deb $(REPO_URI) $(RELEASE) main"
        found = subprocess.check_output(
            ["apt-get", "indextargets", "--format", line, "Created-By: Packages", "Component: main"], text=True
        )
        ours = {f"{release}{pocket}" for pocket in ("", "-updates", "-security")}
        sources = "\n".join(dict.fromkeys(one for one in found.splitlines() if one.split()[2] in ours))
        how = subprocess.check_output(["apt-config", "dump"], text=True).splitlines()
        options = [f"--aptopt={one}" for one in how if one.startswith(("Acquire::http", "Acquire::Check"))]
        # A throwaway: neither synced to the disk after each file, nor documented.
        options += ["--dpkgopt=force-unsafe-io", "--dpkgopt=path-exclude=/usr/share/doc/*"]
        subprocess.run(
            # `timeout` ends its children as well.
            ["timeout", str(MAKE_SECONDS), "mmdebstrap", "--quiet", "--variant=apt", f"--include={SYSTEM}", *options,
             release, str(self.root), "-"],
            input=sources, text=True, check=True, timeout=MAKE_SECONDS + 10,
        )  # fmt: skip

    def allow_ssh(self) -> None:
        if not self.like:
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True, timeout=10)
        (self.root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
        shutil.copy(f"{self.key}.pub", self.root / "root/.ssh/authorized_keys")
        (self.root / "etc/ssh/sshd_config.d/port.conf").write_text(f"Port {self.port}\nListenAddress {self.address}\n")
        key = (self.root / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
        self.known_hosts.write_text(f"[{self.address}]:{self.port} {key}")

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            with socket.create_connection((self.address, self.port), timeout=2) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def run(self, command: str) -> str:
        """What a command of root prints there."""
        ssh = ["ssh", "-i", self.key, "-p", str(self.port), "-o", f"UserKnownHostsFile={self.known_hosts}"]
        done = subprocess.run([*ssh, f"root@{self.address}", command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout
