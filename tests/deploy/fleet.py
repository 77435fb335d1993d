"""Ten hosts on this machine: an address of 127.0.1.0/24 each, with sshd, a directory and gunicorns of its own, and one
nginx in front of them. What is deployed is a copy of this tree, in a git repository of its own."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from getpass import getuser
from pathlib import Path

import requests
from fabric import Config
from invoke import Context

from deploy import hosts
from deploy.hosts import Inventory
from deploy.local import layout
from deploy.local.machine import PATH, which
from deploy.roles.edge import first_slots
from deploy.shipping import ROOT, requirements_of
from tests.support import eventually

STACK = layout.Stack(os.environ["STACK"])
# Behind the stack's own ports, and those of tests/redis_cluster.py.
SSH, NGINX, *SLOTS = (STACK.ports["edge"] + offset for offset in (180, 181, 182, 183))
NAMES = [f"app{number}" for number in range(1, 11)]
CODE = ("accounts", "bench", "deploy", "feeds", "instagram", "notifications", "photos", "shardmap", "workers",
        "fabfile.py", "manage.py", "requirements.txt")  # fmt: skip

# What systemd does elsewhere: stops a slot's gunicorn politely; starts it, and returns when it runs.
STOP = """#!/bin/sh
pid=$(cat $1.pid) && kill $pid || exit 0
while [ -e $1.pid ] && kill -0 $pid; do sleep 0.02; done 2>/dev/null
"""
RESTART = """#!/bin/sh
./stop $1
log=$PWD/gunicorn.log pid=$PWD/$1.pid
cd -P slots/$1
GUNICORN_BIND={address}:$1 ENV_FILES={env} .venv/bin/python -m gunicorn --config deploy/gunicorn/gunicorn.conf.py \\
    --workers 1 --threads 4 --pid $pid --daemon --error-logfile $log
for try in $(seq 500); do
    [ -e $pid ] && exit
    sleep 0.02
done
exit 1
"""

INVENTORY = """
lock = "app1"
migrations = "app1"
migration_env_files = "{root}/env:{root}/migrations.env"
known_hosts = "{root}/known_hosts"

[defaults]
user = "{user}"
port = {ssh}
# One virtual environment for all ten, the stack's: making ten would take minutes.
venvs = "{root}/venvs"

[roles.app]
slots = {slots}
patience = 90  # ten of them start at once on a machine that does other things, too
restart = "./restart {{port}}"
stop = "./stop {{port}}"

[roles.edge]
app_servers = "{root}/app_servers.conf"
maintenance = "{root}/maintenance"
reload = "{nginx} -c {root}/nginx.conf -s reload"
master = "cat {root}/nginx/nginx.pid"

[hosts]
edge1 = {{ address = "127.0.1.11", directory = "{root}", roles = ["edge"] }}
"""
SSHD = """
Port {ssh}
{addresses}
HostKey {root}/host_key
AuthorizedKeysFile {root}/key.pub
PidFile {root}/sshd.pid
PasswordAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
# All ten are asked at once, and it is one sshd.
MaxStartups 100
# The Python that the stack's virtual environment is made with; and a home without a .bashrc, as the user `deploy` has.
SetEnv PATH={path} HOME={root}
Subsystem sftp internal-sftp
"""


@dataclass
class Fleet:
    root: Path
    inventory: Path = field(init=False)
    repository: Path = field(init=False)

    def __post_init__(self) -> None:
        self.inventory = self.root / "inventory.toml"
        self.repository = self.root / "repository"
        self.url = f"http://127.0.1.11:{NGINX}"

    def host(self, name: str) -> Path:
        return self.root / name

    def serving(self, name: str) -> int:
        """The port where nginx finds the host's app."""
        (port,) = set(re.findall(rf"server {address_of(name)}:(\d+) ", self.app_servers()))
        return int(port)

    def current(self, name: str) -> str:
        """Which release the host's gunicorn says that it runs, where it serves."""
        response = requests.get(f"http://{address_of(name)}:{self.serving(name)}/healthz", timeout=10)
        return response.headers["X-Release"]

    def gunicorns(self, name: str) -> dict[str, str]:
        """The processes, to see whether they are still the same."""
        return {file.name: file.read_text() for file in self.host(name).glob("*.pid")}

    def releases(self, name: str) -> list[str]:
        return sorted(path.name for path in (self.host(name) / "releases").glob("*"))

    def commit(self, message: str) -> None:
        git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com"]
        for command in (["add", "-A"], ["commit", "-qm", message, "--allow-empty"]):
            subprocess.run([*git, *command], cwd=self.repository, check=True, timeout=60)

    @contextmanager
    def changed(self, path: str, old: str, new: str) -> Iterator[None]:
        """A commit in which a file of the code is another."""
        file = self.repository / path
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))
        self.commit("Another text")
        yield
        file.write_text(text)
        self.commit("The text as it was")

    @contextmanager
    def another_host(self, address: str) -> Iterator[None]:
        """One more host, at an address where nobody listens."""
        text = self.inventory.read_text()
        self.inventory.write_text(f'{text}another = {{ address = "{address}", directory = "/", roles = ["app"] }}\n')
        yield
        self.inventory.write_text(text)

    def app_servers(self) -> str:
        return (self.root / "app_servers.conf").read_text()

    def stop_gunicorn(self, name: str) -> None:
        pid_file = self.host(name) / f"{self.serving(name)}.pid"
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
        eventually(lambda: not pid_file.exists(), 60, f"{name}'s gunicorn has ended")

    def start_fab(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [layout.VENV / "bin/fab", "-i", self.root / "key", *arguments],
            cwd=self.repository,
            env=os.environ | {"INVENTORY": str(self.inventory), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def fab(self, *arguments: str, succeeds: bool = True) -> str:
        """What `fab` said."""
        process = self.start_fab(*arguments)
        said, _ = process.communicate(timeout=400)
        assert (process.returncode == 0) == succeeds, said
        return said

    # Making it, and taking it down

    def make(self) -> None:
        self.make_repository()
        (self.root / "venvs").mkdir()
        (self.root / "venvs" / requirements_of(self.repository)).symlink_to(layout.VENV)
        values = {
            "root": self.root,
            "ssh": SSH,
            "slots": SLOTS,
            "user": getuser(),
            "nginx": which("nginx"),
            "path": f"{sys.base_prefix}/bin:{PATH}",
        }
        inventory = INVENTORY.format(**values)
        for name in NAMES:
            inventory += (
                f'{name} = {{ address = "{address_of(name)}", directory = "{self.host(name)}", roles = ["app"] }}\n'
            )
            self.host(name).mkdir()
            for command, text in (("stop", STOP), ("restart", RESTART)):
                script = self.host(name) / command
                script.write_text(text.format(address=address_of(name), env=self.root / "env"))
                script.chmod(0o755)
        self.inventory.write_text(inventory)
        self.make_settings()
        self.start_sshd(values)
        self.start_nginx()

    def make_repository(self) -> None:
        self.repository.mkdir()
        for name in CODE:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, self.repository / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, self.repository)
        subprocess.run(["git", "init", "-q"], cwd=self.repository, check=True, timeout=60)
        self.commit("All there is")

    def make_settings(self) -> None:
        STACK.load_secrets()
        # One person does what the whole load does.
        settings = STACK.environment() | {"RATE_LIMITS": "requests=1000000 comments=1000000"}
        for file, values in (("env", settings), ("migrations.env", STACK.migration_environment())):
            layout.write(self.root / file, "".join(f"{name}={value}\n" for name, value in values.items()))

    def start_sshd(self, values: dict) -> None:
        for key in ("key", "host_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.root / key]
            subprocess.run(command, check=True, timeout=60)
        addresses = [address_of(name) for name in (*NAMES, "edge1")]
        host_key = (self.root / "host_key.pub").read_text()
        (self.root / "known_hosts").write_text("".join(f"[{address}]:{SSH} {host_key}" for address in addresses))
        lines = "\n".join(f"ListenAddress {address}" for address in addresses)
        (self.root / "sshd_config").write_text(SSHD.format(**values, addresses=lines))
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd wants it, Debian's unit makes it
        subprocess.run([which("sshd"), "-f", self.root / "sshd_config"], check=True, timeout=60)

    def start_nginx(self) -> None:
        (self.root / "nginx").mkdir()
        values = {
            "listen": "127.0.1.11",
            "port": NGINX,
            "worker_processes": 1,
            "data": self.root / "nginx",
            "access_log": self.root / "access.log",
            "app_servers": self.root / "app_servers.conf",
            "maintenance": self.root / "maintenance",
            "munin": self.root / "munin",
            "balancer": "127.0.0.1",
            "tls": "",
            "requests_a_second": 10_000,
            "requests_of_a_burst": 10_000,
            "requests_at_once": 1_000,
        }
        (self.root / "nginx.conf").write_text(layout.render(layout.DEPLOY / "nginx/edge.conf", values))
        (self.root / "app_servers.conf").write_text(first_slots(self.read_inventory()))
        with open(self.root / "nginx.log", "w") as log:
            subprocess.run([which("nginx"), "-c", self.root / "nginx.conf"], stderr=log, check=True, timeout=60)

    def read_inventory(self) -> Inventory:
        config = Config(overrides={"connect_kwargs": {"key_filename": str(self.root / "key")}})
        return hosts.load(Context(config), str(self.inventory))

    def remove(self) -> None:
        """Ends all that was started, and removes the directory."""
        files = [*self.root.glob("app*/*.pid"), self.root / "nginx/nginx.pid", self.root / "sshd.pid"]
        for file in filter(Path.exists, files):
            os.kill(int(file.read_text()), signal.SIGTERM)
        eventually(lambda: not any(file.exists() for file in files), 30, "gunicorns, nginx and sshd have ended")
        shutil.rmtree(self.root)


def address_of(name: str) -> str:
    return f"127.0.1.{re.sub('[a-z]+', '', name)}" if name in NAMES else "127.0.1.11"
